"""Distill: the student learns a teacher's features and logits on the transfer set, without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tskd.artifacts import Artifact, Builder
from tskd.config import DistillConfig
from tskd.data.transfer_set import TransferSet
from tskd.engine import Batches, ImageBatches, Runtime, Training, fit
from tskd.engine.batches import allowed_flips
from tskd.losses.distance import DECODER_LOSSES, ENCODER_LOSSES, choose, match_grid, match_size
from tskd.models.flops import gflops, inference_flops, training_flops
from tskd.models.projections import Distilled, matching_level
from tskd.models.registry import STUDENT_FILE, build_model, save_model
from tskd.seeding import derive
from tskd.stages import cache
from tskd.stages.supervised import training_metrics
from tskd.types import Batch, SegmentationOutput, StepFn

VERSION = 4
PROJECTIONS = "projections.safetensors"
GUIDE_GFLOPS = "teacher_gflops"
"""Metric of a distillation and of a cache: what the answers that a student learned cost."""
Ask = Callable[[Batch], SegmentationOutput]
"""Gives the teacher's answer for a batch, computed or read from the cache."""


@dataclass(frozen=True)
class Guide:
    """Whose answers a student learns: the adapted teacher's or, for the task-agnostic arm, the bare one's."""

    digest: str
    """Of all that its answers depend on."""
    load: Callable[[], nn.Module]


@dataclass(frozen=True)
class Distillation:
    """One student, one guide, one transfer set."""

    config: DistillConfig
    student: Mapping[str, Any]
    """The student's description."""
    guide: Guide
    transfer: TransferSet
    shown: TransferSet
    """The same images as the guide sees them, at its own size."""
    inputs: Mapping[str, str]
    """Digests of all of them."""
    seed: int
    runtime: Runtime

    def cache(self, store: Builder) -> Artifact | None:
        """Return the guide's stored answers; None where computing them online is cheaper."""
        if not cache.cache_pays(self.config, len(self.transfer.images)):
            return None
        return store.build(
            "cache",
            self._build_cache,
            config={
                "views": self.config.views,
                "augment": self.config.augment.model_dump(),
                "precision": self.runtime.precision,  # the guide answers under it
            },
            inputs=self.inputs,
            seed=self.seed,
            version=cache.VERSION,
            together=True,
        )

    def learn(self, answers: Artifact | None, folder: Path) -> dict[str, Any]:
        """Train the student on stored answers, or (None) on the guide's own; return the metrics."""
        config = self.config
        common: dict[str, Any] = {
            "batch_size": config.batch_size,
            "augment": config.augment,
            "seed": derive(self.seed, "transfer batches"),
            "flip": allowed_flips(config.augment.flip, self.transfer.prepared.classes),
        }
        batches: Batches
        if answers is None:
            guide = self.guide.load()
            spent = self._guide_gflops(guide, config.steps * config.batch_size)
            ask = online(guide, self.runtime)
            sharp = None if self.shown.prepared == self.transfer.prepared else self.shown.images
            batches = ImageBatches(self.transfer.images, None, self.transfer.names, **common, teacher_images=sharp)
        else:  # the guide stays on the disk: it may be many times the student
            spent = answers.metrics[GUIDE_GFLOPS]
            ask = stored
            batches = cache.CachedBatches(answers.path, self.transfer, **common)
        metrics = distill(config, self.student, batches, ask, folder, seed=self.seed, runtime=self.runtime)
        return metrics | {GUIDE_GFLOPS: spent}

    def _build_cache(self, folder: Path) -> Mapping[str, Any]:
        config, guide = self.config, self.guide.load()
        layout = cache.plan_cache(
            guide, build_model(self.student), self.shown,
            image_size=self.student["image_size"], views=config.views, seed=self.seed,
        )  # fmt: skip
        spent = self._guide_gflops(guide, layout.images * layout.views)
        metrics = cache.build_cache(guide, self.shown, layout, config.augment, folder, runtime=self.runtime)
        return metrics | {GUIDE_GFLOPS: spent}

    def _guide_gflops(self, guide: nn.Module, images: int) -> float:
        return gflops(images * inference_flops(guide, self.shown.images.shape[1]))


def distill(
    config: DistillConfig,
    description: Mapping[str, Any],
    batches: Batches,
    ask_teacher: Ask,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train a student of that description; save it, and apart from it the projection.

    The last (averaged) weights are kept: the transfer set is large enough to learn from to the end, and a selection by
    the few labelled validation images was seen to pick a student that had hardly begun.
    """
    torch.manual_seed(derive(seed, "student"))
    student = build_model(description)
    answer = ask_teacher(batches(0, 0, config.accumulate))
    level, module = attach_projection(student, answer, decode=config.decoder_weight > 0)
    flops = training_flops(module, description["image_size"], _of_both)
    training = distillation(config, module, level, batches, ask_teacher, seed=seed)
    result = fit(training, folder, runtime)
    if runtime.fabric.is_global_zero:
        save_model(folder, student, description, file=STUDENT_FILE)
        save_file(module.projection.state_dict(), folder / PROJECTIONS)
    spent = gflops(result.steps * config.batch_size * flops)
    return training_metrics(result, teacher_level=level, student_gflops=spent)


def distillation(
    config: DistillConfig, module: Distilled, level: int, batches: Batches, ask_teacher: Ask, *, seed: int
) -> Training:
    """Return the training of a student with its projection on the teacher's features of that level and its logits."""
    step = distillation_step(config, ask_teacher, level)
    return Training(label="distill", module=module, step=step, batches=batches, settings=config, seed=seed)


def attach_projection(student: nn.Module, answer: SegmentationOutput, *, decode: bool = True) -> tuple[int, Distilled]:
    """Return which teacher features are matched, and the student with a projection to their width."""
    student.eval()
    with torch.no_grad():
        side = student(torch.zeros(1, 3, *answer.logits.shape[-2:])).features[-1].shape[-1]
    level = matching_level(answer.features, side)
    dims: Any = student.feature_dims
    teacher_dim = answer.features[level].shape[1]
    return level, Distilled(student, student_dim=dims[-1], teacher_dim=teacher_dim, decode=decode)


def distillation_step(config: DistillConfig, ask_teacher: Ask, level: int) -> StepFn:
    """Return the step: weighted sum of the encoder loss (features) and the decoder loss (logits), both logged.

    Where the decoder loss has no weight it is left out: the student's decoder is not run then.
    """
    encoder_loss = choose(ENCODER_LOSSES, config.encoder_loss, "distill.encoder_loss")
    decoder_loss = choose(DECODER_LOSSES, config.decoder_loss, "distill.decoder_loss")

    def step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        teacher = ask_teacher(batch)
        projected, student = module(batch.views)
        encoder = encoder_loss(projected, match_grid(teacher.features[level], projected.shape[-2:]))
        if config.decoder_weight == 0:
            return {"loss": config.encoder_weight * encoder, "encoder_loss": encoder}
        decoder = decoder_loss(student.logits, teacher.logits, temperature=config.temperature)
        loss = config.encoder_weight * encoder + config.decoder_weight * decoder
        return {"loss": loss, "encoder_loss": encoder, "decoder_loss": decoder}

    return step


def online(teacher: nn.Module, runtime: Runtime) -> Ask:
    """Return the teacher's answers computed when they are needed, their logits at the size that the student sees."""
    teacher = teacher.to(runtime.fabric.device).requires_grad_(False).eval()

    def ask(batch: Batch) -> SegmentationOutput:
        shown = batch.images if batch.teacher_images is None else batch.teacher_images
        with torch.no_grad(), runtime.fabric.autocast():
            answer = teacher(shown.to(runtime.fabric.device))
        return SegmentationOutput(answer.features, match_size(answer.logits, batch.images.shape[-2:]))

    return ask


def stored(batch: Batch) -> SegmentationOutput:
    """Return the teacher's answers that came with the batch from the cache."""
    assert batch.targets is not None
    return batch.targets


def encoder_flops(student: nn.Module, image_size: int) -> int:
    """Return the operations of one forward and backward pass through the encoder alone, for one image."""
    return training_flops(student, image_size, _of_embedding)


def _of_embedding(student: Any, images: Tensor) -> Tensor:
    embedding: Tensor = student.encode(images)[-1]
    return embedding.square().mean()


def _of_both(module: nn.Module, images: Tensor) -> Tensor:
    projected, student = module(images)
    return projected.square().mean() + student.logits.square().sum()
