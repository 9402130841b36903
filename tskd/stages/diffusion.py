"""Diffusion: train the model that invents images on the training images, without their labels.

It sees the parts ``train`` and ``unlabelled``: never the test, and not the validation part either, so that no student
is selected on images that its transfer set was modelled on. Shapes as in :mod:`tskd.models.diffusion`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tskd.artifacts import CHECKPOINTS, Artifact
from tskd.console import say, warn
from tskd.data.prepared import Part, Prepared
from tskd.data.transfer_set import SAMPLE_SHEET
from tskd.engine import Runtime, Training, fit
from tskd.engine.batches import allowed_flips, to_images
from tskd.engine.order import batch_order, part_of
from tskd.errors import UserError
from tskd.machine.disk import write_json
from tskd.models.diffusion import (
    MOST_COMPARED,
    CollapseCheck,
    DDPMScheduler,
    SamplingPlan,
    build_scheduler,
    collapse_check,
    denoising_loss,
    draw_training_noise,
    sample,
    to_uint8,
)
from tskd.models.registry import save_tensors
from tskd.models.swin_unet import PRESETS, check_image_size
from tskd.models.timm_segmenter import resize_images
from tskd.overlays import contact_sheet
from tskd.recipe.schema import DiffusionConfig
from tskd.seeding import derive, numpy_generator, torch_generator
from tskd.stages.denoisers import (
    FILE,
    SAMPLING_SETTINGS,
    SEEN_CASES,
    DenoiserDescription,
    build_denoiser,
    own_seed,
    plan_of,
)
from tskd.stages.label_training import training_metrics
from tskd.stages.workbench import Workbench
from tskd.types import Batch, StepFn

VERSION = 1
SEEN_PARTS: tuple[Part, ...] = ("train", "unlabelled")
OUTSIDE_CONFIG = SAMPLING_SETTINGS | {"grid_minutes", "seed"}
"""What the settings of the trained model leave out; its seed is named apart."""
GRID = 4
"""A grid of samples has so many rows and columns."""
MOST_CLASSES = 50
"""More folders than this are patients or volumes, not classes."""


def build(bench: Workbench, config: DiffusionConfig, data: Artifact) -> Artifact:
    """Return the diffusion model trained on the prepared training images."""
    seed = own_seed(config, bench.seed)
    return bench.train(
        "diffusion",
        lambda folder: train_diffusion(config, Prepared(data.path), folder, seed=seed, runtime=bench.runtime),
        config,
        without=OUTSIDE_CONFIG,
        seed=seed,
        inputs={"data": data.digest},
        version=VERSION,
    )


def train_diffusion(
    config: DiffusionConfig, prepared: Prepared, folder: Path, *, seed: int, runtime: Runtime
) -> dict[str, Any]:
    """Train a denoiser on the training images; save it, the cases it saw and a grid of samples.

    Raises UserError for an image size that the preset cannot take and for class folders that are none.
    """
    require_image_size(config, prepared.image_size)
    names = prepared.names(prepared.rows(*SEEN_PARTS))
    classes = class_counts(names) if config.conditional else {}
    description = describe(config, prepared, classes)
    torch.manual_seed(derive(seed, "denoiser"))
    model = build_denoiser(description, checkpointing=config.gradient_checkpointing)
    batches = DenoisingBatches.of(config, prepared, description, seed=derive(seed, "diffusion batches"))
    grid = SampleGrid(plan_of(description), len(classes), batches.reference())
    training = Training(
        label="diffusion",
        module=model,
        step=denoising_step(config, {name: index for index, name in enumerate(classes)}),
        batches=batches,
        settings=config,
        seed=seed,
        on_step=GridPainter(grid, folder, config.grid_minutes) if runtime.fabric.is_global_zero else None,
    )
    result = fit(training, folder, runtime)
    check = None
    if runtime.fabric.is_global_zero:
        check = grid.draw(model, folder / SAMPLE_SHEET)
        (warn if check.noise or check.repeated else say)(f"diffusion: {check.message}")
        save_tensors(folder, model.state_dict(), description.as_dict(), file=FILE)
        write_json(folder / SEEN_CASES, sorted(prepared.cases(*SEEN_PARTS)))
    check = runtime.fabric.broadcast(check)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = {"pure_noise": check.noise, "one_image_repeated": check.repeated, "verdict": check.message}
    return training_metrics(result, images=len(names), grey=description.channels == 1, parameters=parameters, **found)


def describe(config: DiffusionConfig, prepared: Prepared, classes: Mapping[str, int]) -> DenoiserDescription:
    """Return which denoiser the settings ask for."""
    return DenoiserDescription(
        preset=config.preset,
        size=PRESETS[config.preset],
        image_size=config.image_size or prepared.image_size,
        channels=1 if all_grey(prepared) else 3,
        classes=dict(classes),
        prediction=config.prediction,
        schedule=config.schedule,
    )


def require_image_size(config: DiffusionConfig, image_size: int) -> None:
    """Raise UserError, naming the nearest sizes that would do, where the preset cannot draw images of that size."""
    try:
        check_image_size(PRESETS[config.preset], config.image_size or image_size)
    except UserError as error:
        raise UserError(f"diffusion.image_size (diffusion.preset {config.preset}): {error}") from error


def denoising_step(config: DiffusionConfig, label_of: Mapping[str, int]) -> StepFn:
    """Return the step; ``label_of`` maps class folders to numbers, none: unconditional.

    ``fit`` names the global stream after the step: the noise is drawn from a generator of its own, named after that.
    """
    scheduler = build_scheduler("ddpm", prediction=config.prediction, schedule=config.schedule)
    assert isinstance(scheduler, DDPMScheduler)

    def step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        images = 2 * batch.images - 1
        draw = draw_training_noise(images.shape, torch_generator("diffusion noise", torch.initial_seed()))
        labels = None
        if label_of:
            labels = torch.tensor([label_of[folder_of(name)] for name in batch.names], device=images.device)
        return {"loss": denoising_loss(module, images, scheduler=scheduler, draw=draw, labels=labels)}

    return step


@dataclass(frozen=True)
class DenoisingBatches:
    """Training images at the denoiser's size, half of them mirrored where the data set allows it."""

    prepared: Prepared
    rows: np.ndarray
    batch_size: int
    image_size: int
    channels: int
    mirror: bool
    seed: int

    @classmethod
    def of(
        cls, config: DiffusionConfig, prepared: Prepared, description: DenoiserDescription, *, seed: int
    ) -> DenoisingBatches:
        """Return the batches for a described denoiser."""
        return cls(
            prepared=prepared,
            rows=prepared.rows(*SEEN_PARTS),
            batch_size=config.batch_size,
            image_size=description.image_size,
            channels=description.channels,
            mirror=allowed_flips(config.flip, prepared.classes)[0],
            seed=seed,
        )

    def __call__(self, step: int, part: int, parts: int) -> Batch:
        order = batch_order(len(self.rows), self.batch_size, step, self.seed)
        share = part_of(order, part, parts)
        rows = self.rows[order[share]]
        images = self.read(rows)
        if self.mirror:
            mirrored = numpy_generator(self.seed, "mirror", step).random(self.batch_size)[share] < 0.5
            images = torch.where(torch.from_numpy(mirrored)[:, None, None, None], images.flip(-1), images)
        return Batch(images, images, names=self.prepared.names(rows))

    def read(self, rows: np.ndarray) -> Tensor:
        """Return the images of the rows, (B, C, S, S) in [0, 1]."""
        images = resize_images(to_images(self.prepared.images[rows]), self.image_size)
        return images[:, :1] if self.channels == 1 else images

    def reference(self) -> np.ndarray:
        """Return training images, spread over all, that samples are compared with, (N, S, S, 3) uint8."""
        places = np.linspace(0, len(self.rows) - 1, min(MOST_COMPARED, len(self.rows))).astype(int)
        return to_uint8(self.read(self.rows[places]))


@dataclass(frozen=True)
class SampleGrid:
    """A picture of samples from fixed noise, and what is wrong with them."""

    plan: SamplingPlan
    num_classes: int
    reference: np.ndarray

    def draw(self, model: nn.Module, path: Path) -> CollapseCheck:
        """Sample, write the picture, compare with the training images; the network is left as it was."""
        count, was_training = GRID**2, model.training
        labels = [index % self.num_classes for index in range(count)] if self.num_classes else None
        device = next(model.parameters()).device
        samples = to_uint8(sample(model.eval(), plan=self.plan, seeds=range(count), labels=labels, device=device))
        model.train(was_training)
        rows = [list(samples[start : start + GRID]) for start in range(0, count, GRID)]
        sheet = contact_sheet(rows, titles=[[""] * GRID] * GRID, heading=path.stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        _save_picture(sheet, path)
        return collapse_check(samples, self.reference)


class GridPainter:
    """Shows a grid now and then while the denoiser trains.

    It is drawn from the weights of the moment, which are noisier than the averaged ones that are kept. How many grids
    there are depends on the clock, so they lie with the checkpoints, outside of what the artifact's digest covers.
    """

    def __init__(self, grid: SampleGrid, folder: Path, minutes: float) -> None:
        self.grid, self.folder, self.seconds = grid, folder / CHECKPOINTS, 60 * minutes
        self.last = time.monotonic()

    def __call__(self, step: int, module: nn.Module) -> None:
        if time.monotonic() - self.last < self.seconds:
            return
        path = self.folder / f"samples-{step:06d}.png"
        check = self.grid.draw(module, path)
        say(f"diffusion: samples after {step} steps (weights not averaged yet) are in {path}. {check.message}")
        self.last = time.monotonic()


def all_grey(prepared: Prepared) -> bool:
    """Say whether every training image has three equal channels."""
    images = (prepared.images[row] for row in prepared.rows(*SEEN_PARTS))
    return all(bool((image == image[..., :1]).all()) for image in images)


def folder_of(name: str) -> str:
    """Return the folder part of a record id, the class of its image; empty where it has none."""
    return name.rpartition("/")[0]


def class_counts(names: Sequence[str]) -> dict[str, int]:
    """Return how many images each class folder holds, by name; UserError where the folders are not classes."""
    counts = Counter(folder_of(name) for name in names)
    if not 2 <= len(counts) <= MOST_CLASSES:
        raise UserError(
            f"diffusion.conditional=true takes the folder of an image as its class: 2 to {MOST_CLASSES} folders are "
            f"needed, the training images lie in {len(counts)}. Set diffusion.conditional=false."
        )
    return dict(sorted(counts.items()))


def _save_picture(picture: Image.Image, path: Path) -> None:
    partial = path.with_name(f".{path.name}")
    picture.save(partial, format="png")
    partial.replace(path)
