"""Distill: the student learns a teacher's features and logits on the transfer set, without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tskd.artifacts import Artifact
from tskd.engine import Batches, ImageBatches, Runtime, Training, fit
from tskd.engine.batches import allowed_flips
from tskd.losses.distance import DECODER_LOSSES, ENCODER_LOSSES, choose, match_grid, match_size
from tskd.losses.self_training import CUT_MIX, boxes
from tskd.models.description import NetworkDescription
from tskd.models.flops import gflops, inference_flops, training_flops
from tskd.models.projections import Distilled, matching_level
from tskd.models.registry import STUDENT_FILE, build_model, save_model
from tskd.recipe.schema import DistillConfig
from tskd.seeding import derive
from tskd.stages import stored_answers
from tskd.stages.label_training import training_metrics
from tskd.stages.lesson import Lesson
from tskd.stages.workbench import Workbench
from tskd.types import Batch, SegmentationOutput, StepFn

VERSION = 4
PROJECTIONS = "projections.safetensors"
Ask = Callable[[Batch], SegmentationOutput]
"""Gives the teacher's answer for a batch, computed or read from the cache."""


def build(
    bench: Workbench, config: DistillConfig, lesson: Lesson, stored_in: Callable[[], Artifact | None]
) -> Artifact:
    """Return the student that has learned its lesson; ``stored_in`` gives the stored answers, or None."""
    return bench.train(
        "distill",
        lambda folder: learn(bench, config, lesson, stored_in(), folder),
        config,
        without=frozenset({"rounds"}),
        inputs=lesson.inputs,
        version=VERSION,
    )


def learn(
    bench: Workbench, config: DistillConfig, lesson: Lesson, answers: Artifact | None, folder: Path
) -> dict[str, Any]:
    """Train the student on stored answers, or (None) on the teacher's own; return the metrics."""
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "augment": config.augment,
        "seed": derive(bench.seed, "transfer batches"),
        "flip": allowed_flips(config.augment.flip, lesson.seen.prepared.classes),
    }
    batches: Batches
    if answers is None:
        teacher, shown = lesson.teacher.load(), lesson.seen_by_teacher.images
        spent = gflops(config.steps * config.batch_size * inference_flops(teacher, shown.shape[1]))
        ask = online(teacher, bench.runtime)
        sharp = None if lesson.shown.path == lesson.data.path else shown
        batches = ImageBatches(lesson.seen.images, None, lesson.seen.names, **common, teacher_images=sharp)
    else:  # the teacher stays on the disk: it may be many times the student
        spent = answers.metrics[stored_answers.TEACHER_GFLOPS]
        ask = stored
        batches = stored_answers.CachedBatches(answers.path, lesson.seen, **common)
    metrics = distill(config, lesson.student, batches, ask, folder, seed=bench.seed, runtime=bench.runtime)
    return metrics | {stored_answers.TEACHER_GFLOPS: spent}


def distill(
    config: DistillConfig,
    description: NetworkDescription,
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
    flops = training_flops(module, description.image_size, _of_both)
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
        mix = draw_mix(len(batch.views), config.mix, batch.views.device)
        projected, student = module(mix(batch.views))
        encoder = encoder_loss(projected, mix(match_grid(teacher.features[level], projected.shape[-2:])))
        if config.decoder_weight == 0:
            return {"loss": config.encoder_weight * encoder, "encoder_loss": encoder}
        decoder = decoder_loss(student.logits, mix(teacher.logits), temperature=config.temperature)
        loss = config.encoder_weight * encoder + config.decoder_weight * decoder
        return {"loss": loss, "encoder_loss": encoder, "decoder_loss": decoder}

    return step


def draw_mix(count: int, share: float, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what cuts a box of the next image into that share of a batch, in planes (B, C, h, w) of any size alike.

    Drawn from torch's global generator on the CPU, which the loop sets for each step; nothing is drawn for share 0.
    """
    if share == 0:
        return lambda planes: planes
    numbers = torch.rand(count, 5).to(device)
    chosen = (numbers[:, 4] < share)[:, None, None, None]

    def mix(planes: Tensor) -> Tensor:
        box = boxes(numbers[:, :4], planes.shape[-2:], CUT_MIX)[:, None]
        return planes.roll(1, 0).where(box & chosen, planes)

    return mix


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
