"""Samples: draw images from the trained diffusion model; image k is the same however many are drawn, where and when."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from tskd.artifacts import CHECKPOINTS, Artifact
from tskd.console import progress
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import SAMPLES, write_images
from tskd.engine import Runtime
from tskd.engine.out_of_memory import inference_remedies, memory_explained
from tskd.errors import Paused, UserError
from tskd.machine.disk import write_atomic
from tskd.models.diffusion import SamplingPlan, images_at_once, sample, to_uint8
from tskd.models.swin_unet import Denoiser
from tskd.models.timm_segmenter import resize_images
from tskd.recipe.schema import DiffusionConfig
from tskd.seeding import derive, numpy_generator
from tskd.stages.denoisers import SAMPLING_SETTINGS, load_denoiser, own_seed, plan_of, read_seen_cases
from tskd.stages.leaks import refuse_seen_cases
from tskd.stages.workbench import Workbench

VERSION = 2
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
BLOCK = 500
"""Images of one artifact: a set of 3000 finds those of a set of 1000 drawn already."""


class Sampler(Protocol):
    """Draws images by number."""

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        ...

    @property
    def at_once(self) -> int:
        """How many it draws best in one call."""
        ...

    def __call__(self, numbers: Sequence[int]) -> np.ndarray:
        """Return (n, S, S, 3) uint8; image k depends on its number ``numbers[k]`` alone."""
        ...


@dataclass(frozen=True)
class DiffusionSampler:
    """Images of a trained denoiser, resized to the side that the students see."""

    model: Denoiser
    plan: SamplingPlan
    class_shares: Sequence[float]
    """Share of each class in the training images, which the samples repeat; empty: unconditional."""
    image_size: int
    seed: int
    device: torch.device

    @property
    def at_once(self) -> int:
        return images_at_once(self.plan.image_size)

    def __call__(self, numbers: Sequence[int]) -> np.ndarray:
        seeds = [derive(self.seed, "synthetic", number) for number in numbers]
        labels = [self._label(number) for number in numbers] if self.class_shares else None
        drawn = sample(self.model, plan=self.plan, seeds=seeds, labels=labels, device=self.device)
        # one by one: a resize of many may round otherwise than a resize of few
        return to_uint8(torch.cat([resize_images(one, self.image_size) for one in drawn.split(1)]))

    def _label(self, number: int) -> int:
        return int(numpy_generator(self.seed, "class", number).choice(len(self.class_shares), p=self.class_shares))


def open_sampler(
    denoiser: Path, config: DiffusionConfig, *, image_size: int, seed: int, runtime: Runtime
) -> DiffusionSampler:
    """Return the sampler of a ``diffusion`` artifact, by the solver, steps and guidance of the settings."""
    model, description = load_denoiser(denoiser)
    half = HALF.get(runtime.precision)
    changes = {"solver": config.sampler, "steps": config.sampling_steps, "guidance": config.guidance, "half": half}
    counts = np.array(list(description.classes.values()), dtype=np.float64)
    device = runtime.fabric.device
    shares = (counts / counts.sum()).tolist() if counts.size else []
    return DiffusionSampler(model.to(device), plan_of(description, **changes), shares, image_size, seed, device)


def blocks(count: int) -> list[range]:
    """Return the numbers of ``count`` images in blocks. Raises UserError where no image is wanted."""
    if count < 1:
        raise UserError("transfer.synthetic is 0: there is nothing to sample. Set how many images are wanted.")
    return [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def build(
    bench: Workbench, config: DiffusionConfig, denoiser: Artifact, prepared: Prepared, numbers: range
) -> Artifact:
    """Return the block of images of these numbers, drawn from a trained denoiser that saw no test case."""
    seed = own_seed(config, bench.seed)

    def make(folder: Path) -> Mapping[str, Any]:
        refuse_seen_cases(
            read_seen_cases(denoiser.path), prepared, what="the diffusion model",
            remedy="Train it again on this data set's training cases.",
        )  # fmt: skip
        size = prepared.image_size
        sampler = open_sampler(denoiser.path, config, image_size=size, seed=seed, runtime=bench.runtime)
        return draw_samples(numbers, sampler, folder, runtime=bench.runtime)

    settings = config.model_dump(include=set(SAMPLING_SETTINGS))
    return bench.build(
        "samples",
        make,
        config={**settings, "first": numbers.start, "count": len(numbers), "image_size": prepared.image_size},
        inputs={"diffusion": denoiser.digest},
        seed=seed,
        version=VERSION,
        together=True,
    )


def draw_samples(numbers: range, sampler: Sampler, folder: Path, *, runtime: Runtime) -> dict[str, Any]:
    """Write the images of these numbers as one array; finished chunks are kept, and processes share the chunks out.

    Raises Paused when the time limit is reached; the same work then goes on at the first chunk that is missing.
    """
    chunks = [numbers[start : start + sampler.at_once] for start in range(0, len(numbers), sampler.at_once)]
    paths = [folder / CHECKPOINTS / f"samples-{chunk.start:06d}.npy" for chunk in chunks]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    fabric = runtime.fabric
    explained = memory_explained("samples", fabric.device, inference_remedies("diffusion.image_size", runtime))
    with explained, progress(f"samples {numbers.start} to {numbers.stop - 1}", len(paths)) as advance:
        for place in range(fabric.global_rank, len(paths), fabric.world_size):
            if not paths[place].exists() and not runtime.out_of_time:
                _write_chunk(sampler(chunks[place]), paths[place])
            advance(place + 1)
    fabric.barrier()
    if missing := [path for path in paths if not path.exists()]:
        raise Paused(f"samples paused with {len(paths) - len(missing)} of {len(paths)} chunks drawn")
    if fabric.is_global_zero:
        write_images(folder / SAMPLES, _read_chunks(paths), count=len(numbers), size=sampler.image_size)
    fabric.barrier()
    return {"images": len(numbers), "image_size": sampler.image_size}


def _write_chunk(images: np.ndarray, path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def _read_chunks(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    return (image for path in paths for image in np.load(path, allow_pickle=False))
