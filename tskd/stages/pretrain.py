"""Pretrain: initialisations of the student without a teacher, as baselines: MAE and MoCo v3 on the transfer set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tskd.artifacts import Artifact
from tskd.console import warn
from tskd.data.augment import Photometry, apply_photometry, draw_photometry, draw_resized_crops, move_images
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime, Training, fit
from tskd.engine.batches import ImageArray, allowed_flips, to_images
from tskd.engine.order import batch_order, part_of
from tskd.losses.pretraining import hidden_patch_loss, info_nce, normalise_patches
from tskd.models.description import NetworkDescription
from tskd.models.diffusion import to_uint8
from tskd.models.flops import count_flops, gflops
from tskd.models.mae import MaskedAutoencoder
from tskd.models.moco import MomentumContrast
from tskd.models.registry import STUDENT_FILE, build_model, save_model
from tskd.overlays import contact_sheet
from tskd.recipe.schema import MaeConfig, MocoConfig, PretrainConfig
from tskd.seeding import derive, torch_generator
from tskd.stages.label_training import training_metrics
from tskd.stages.lesson import pretraining_inputs
from tskd.stages.workbench import Workbench
from tskd.types import Batch, StepFn

VERSION = 3
SHEET = "reconstructions.png"
_SHOWN = 6


class StepCost(NamedTuple):
    """Operations of one step for each image of its batch."""

    student: int
    """Forward and backward passes of all that is trained."""
    teacher: int
    """Forward passes that only give targets."""


@dataclass(frozen=True)
class Objective:
    """What is trained around a student's encoder, and how."""

    label: str
    module: nn.Module
    step: StepFn
    views: int = 1
    """Of each image in a batch."""
    photometric: float = 0.0
    tokens: int = 0
    """Random numbers an image, for masks."""


@dataclass(frozen=True)
class CropBatches:
    """Batches of crops for learning without labels: ``views`` is (B, V, 3, S, S), V views of each image.

    Images stay in their colours: a grey image's brightness is its signal, so there is no solarisation and no change to
    grey as for photographs.
    """

    images: ImageArray
    names: Sequence[str]
    batch_size: int
    smallest: float
    """Area of a crop, as a share of the image's."""
    flip: tuple[bool, bool]
    objective: Objective
    seed: int

    def __call__(self, step: int, part: int, parts: int) -> Batch:
        count, several = len(self.images), self.objective.views > 1
        distinct = several and count >= self.batch_size  # an image must not be told from itself
        indices = batch_order(count, self.batch_size, step, self.seed, distinct=distinct)
        rows = part_of(indices, part, parts)
        images = to_images(self.images[indices[rows]])
        views = torch.stack([self._view(images, step, view, rows) for view in range(self.objective.views)], dim=1)
        generator = torch_generator(self.seed, "masks", step)
        noise = torch.rand(self.batch_size, self.objective.tokens, generator=generator)[rows]
        return Batch(images, views, names=tuple(self.names[k] for k in indices[rows]), noise=noise)

    def _view(self, images: Tensor, step: int, view: int, rows: slice) -> Tensor:
        """Draw for the whole batch and cut: the same numbers whatever the number of processes."""
        generator, strength = torch_generator(self.seed, "view", step, view), self.objective.photometric
        maps = draw_resized_crops(self.batch_size, self.smallest, self.flip, generator)
        moved = move_images(images, maps[rows])
        if strength == 0:
            return moved
        drawn = draw_photometry(torch.Size((self.batch_size, *images.shape[1:])), strength, generator)
        return apply_photometry(moved, Photometry(*(value[rows] for value in drawn)))


def build(
    bench: Workbench, config: PretrainConfig, description: NetworkDescription, transfer: Artifact, data: Artifact
) -> Artifact:
    """Return the student whose encoder has learned from the transfer images alone, MAE or MoCo v3 by ``config``."""
    return bench.train(
        "pretrain",
        lambda folder: pretrain(
            config, description, TransferSet(transfer.path, Prepared(data.path)), folder,
            seed=bench.seed, runtime=bench.runtime,
        ),
        config,
        inputs=pretraining_inputs(description, transfer, data),
        version=VERSION,
    )  # fmt: skip


def pretrain(
    config: PretrainConfig,
    description: NetworkDescription,
    transfer: TransferSet,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train the encoder of a student of that description; save the student, its decoder as random as it began."""
    torch.manual_seed(derive(seed, "student"))
    student = build_model(description)
    objective = build_objective(config, student, runtime)
    batches = CropBatches(
        transfer.images,
        transfer.names,
        batch_size=config.batch_size,
        smallest=config.crop,
        flip=allowed_flips(config.flip, description.classes),
        objective=objective,
        seed=derive(seed, "transfer batches"),
    )
    if objective.views > 1 and len(transfer.images) < config.batch_size:
        warn(
            f"{objective.label}: {len(transfer.images)} images are fewer than a batch of {config.batch_size}, so they "
            f"are told from themselves. Set {objective.label}.batch_size to at most {len(transfer.images)}."
        )
    result = fit(Training(objective.label, objective.module, objective.step, batches, config, seed), folder, runtime)
    if runtime.fabric.is_global_zero:
        save_model(folder, student, description, file=STUDENT_FILE)
        if isinstance(objective.module, MaskedAutoencoder):
            draw_reconstructions(objective.module, transfer.images, folder)
    cost, images = step_cost(config, description), result.steps * config.batch_size
    spent = {"student_gflops": gflops(images * cost.student), "teacher_gflops": gflops(images * cost.teacher)}
    return training_metrics(result, **spent)


def build_objective(config: PretrainConfig, student: nn.Module, runtime: Runtime | None = None) -> Objective:
    """Return what the settings ask to be trained around a student; ``runtime`` None: for one process."""
    if isinstance(config, MaeConfig):
        mae = MaskedAutoencoder(student, mask=config.mask, width=config.decoder_width, depth=config.decoder_depth)
        return Objective("mae", mae, mae_step, tokens=mae.tokens)
    assert isinstance(config, MocoConfig)
    moco = MomentumContrast(
        student, hidden=config.hidden, width=config.width, momentum=config.momentum, steps=config.steps
    )
    step = moco_step(config.temperature, runtime)
    return Objective("moco_v3", moco, step, views=2, photometric=config.photometric)


def mae_step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """One step of drawing hidden patches, each normalised by its own mean and variance."""
    predicted, patches, hidden = module(batch.views[:, 0], batch.noise)
    return {"loss": hidden_patch_loss(predicted, normalise_patches(patches), hidden)}


def moco_step(temperature: float, runtime: Runtime | None = None) -> StepFn:
    """Return the step of finding a view's image by its other view, among the images of all processes' batches."""

    def step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        queries, keys = module(batch.views[:, 0], batch.views[:, 1])
        rank = 0 if runtime is None else runtime.fabric.global_rank
        losses = [
            info_nce(query, _gather(key, runtime), temperature=temperature, first=rank * len(query))
            for query, key in zip(queries, reversed(keys))
        ]
        return {"loss": torch.stack(losses).sum()}

    return step


def step_cost(config: PretrainConfig, description: NetworkDescription) -> StepCost:
    """Return what a step costs; the answer is kept for the life of the process."""
    return _counted(config, description.bare())


@cache
def _counted(config: PretrainConfig, description: NetworkDescription) -> StepCost:
    objective, size = build_objective(config, build_model(description)), description.image_size
    views = torch.zeros(2, objective.views, 3, size, size)
    batch = Batch(views[:, 0], views, noise=torch.zeros(2, objective.tokens))
    total = count_flops(lambda: objective.step(objective.module.train(), batch)["loss"].backward())
    teacher = 0
    if isinstance(objective.module, MomentumContrast):
        keys, view = objective.module.keys, views[:, 0]
        teacher = count_flops(lambda: keys((view, view)))
    return StepCost((total - teacher) // 2, teacher // 2)


def draw_reconstructions(module: MaskedAutoencoder, images: ImageArray, folder: Path) -> None:
    """Write a sheet: transfer images, what the encoder sees of them, and how the decoder completes that."""
    device = module.mask_token.device
    shown = to_images(images[np.arange(min(len(images), _SHOWN))]).to(device)
    noise = torch.rand(len(shown), module.tokens, generator=torch_generator("reconstructions")).to(device)
    seen, drawn = (to_uint8(picture.cpu()) for picture in module.complete(shown, noise))
    columns = {"image": to_uint8(shown.cpu()), "visible": seen, "completed": drawn}
    rows = [list(tiles) for tiles in zip(*columns.values(), strict=True)]
    contact_sheet(rows, titles=[list(columns)] * len(rows), heading="MAE on transfer images").save(folder / SHEET)


def _gather(keys: Tensor, runtime: Runtime | None) -> Tensor:
    """Return the keys of all processes, (processes x B, D), in the order of their ranks."""
    if runtime is None or runtime.fabric.world_size == 1:
        return keys
    gathered: Tensor = runtime.fabric.all_gather(keys)
    return gathered.flatten(0, 1)
