"""Self-training: a student learns from the labels and, on unlabelled images, from its own moving average.

``consistency`` is weak-to-strong consistency as in UniMatch (Yang et al. 2023, arXiv 2208.09910), without its
perturbed features: the average answers for the plain view, the student is asked about the strongly changed one, into
which a box of another image's view is cut. ``copy_paste`` is bidirectional copy-paste (Bai et al. 2023, arXiv
2305.00673), without its choice of connected components: a box of a labelled image lies in an unlabelled one and the
other way round, and each pixel has the label, or the average's answer, of the image that it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tskd.artifacts import Artifact
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet
from tskd.engine import ImageBatches, Runtime, Training, fit
from tskd.engine.batches import allowed_flips
from tskd.engine.order import part_of
from tskd.losses.segmentation import label_loss
from tskd.losses.self_training import CUT_MIX, Answers, answers_of, boxes, sure
from tskd.models.description import NetworkDescription
from tskd.models.flops import gflops, inference_flops, training_flops
from tskd.models.mean_teacher import MeanTeacher
from tskd.models.registry import STUDENT_FILE, build_model, save_model
from tskd.recipe.schema import SelfTrainingConfig
from tskd.seeding import derive, torch_generator
from tskd.stages.label_training import labelled_batches, training_labels, training_metrics, validation
from tskd.stages.lesson import pretraining_inputs
from tskd.stages.workbench import Workbench
from tskd.types import UNLABELLED, Batch, SegmentationOutput, StepFn

VERSION = 1
RAMP = 0.3
"""Share of the steps over which the average's answers gain their weight: at first they are noise."""
PASTE = (0.3, 0.5)
"""Smallest and largest area of the boxes of copy-paste, as shares of the image's."""


Mix = Literal["cut_mix", "copy_paste"]
"""Boxes of other unlabelled images, or of labelled images in unlabelled ones and the other way round."""


@dataclass(frozen=True)
class PairedBatches:
    """Batches whose first half has labels and whose second half has none: its masks are UNLABELLED throughout."""

    labelled: ImageBatches
    unlabelled: ImageBatches
    seed: int

    def __call__(self, step: int, part: int, parts: int) -> Batch:
        known, unknown = self.labelled(step, part, parts), self.unlabelled(step, part, parts)
        assert known.masks is not None
        drawn = torch.rand(self.labelled.batch_size, 4, generator=torch_generator(self.seed, "boxes", step))
        return Batch(
            images=torch.cat([known.images, unknown.images]),
            views=torch.cat([known.views, unknown.views]),
            masks=torch.cat([known.masks, torch.full_like(known.masks, UNLABELLED)]),
            names=known.names + unknown.names,
            noise=drawn[part_of(drawn.numpy(), part, parts)],
        )


def build(
    bench: Workbench,
    config: SelfTrainingConfig,
    mix: Mix,
    description: NetworkDescription,
    transfer: Artifact,
    data: Artifact,
) -> Artifact:
    """Return the student of that description trained on the labels and on the transfer set without labels; ``mix``
    says how images of both are mixed."""
    return bench.train(
        "self_training",
        lambda folder: self_train(
            config, mix, description, TransferSet(transfer.path, Prepared(data.path)), folder,
            seed=bench.seed, runtime=bench.runtime,
        ),
        config,
        inputs=pretraining_inputs(description, transfer, data) | {"mix": mix},
        version=VERSION,
    )  # fmt: skip


def self_train(
    config: SelfTrainingConfig,
    mix: Mix,
    description: NetworkDescription,
    transfer: TransferSet,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train a student on both halves of each batch; save it."""
    torch.manual_seed(derive(seed, "student"))
    student = build_model(description)
    prepared, half = transfer.prepared, config.batch_size // 2
    trained = training_flops(student, description.image_size)
    answered = inference_flops(student.eval(), description.image_size)
    halves = config.model_copy(update={"batch_size": half})
    labelled = labelled_batches(
        training_labels(prepared), prepared.classes, halves, config.augment, derive(seed, "labelled batches")
    )
    unlabelled = ImageBatches(
        transfer.images, None, transfer.names, half, config.augment, derive(seed, "unlabelled batches"),
        flip=allowed_flips(config.augment.flip, prepared.classes),
    )  # fmt: skip
    score = validation(prepared)
    training = Training(
        label=mix.replace("_", " "),
        module=MeanTeacher(student, decay=config.ema),
        step=STEPS[mix](config),
        batches=PairedBatches(labelled, unlabelled, derive(seed, "boxes")),
        settings=config,
        seed=seed,
        validate=None if score is None else lambda module: score(_bare(module).student),
    )
    result = fit(training, folder, runtime)
    if runtime.fabric.is_global_zero:
        save_model(folder, student, description, file=STUDENT_FILE)
    return training_metrics(
        result,
        student_gflops=gflops(result.steps * config.batch_size * trained),
        teacher_gflops=gflops(result.steps * half * answered),
    )


def consistency(config: SelfTrainingConfig) -> StepFn:
    """Return the step of weak-to-strong consistency with boxes of the next image cut into each strong view."""

    def step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        half = len(batch.images) // 2
        answers = ask_average(module, batch.images[half:])
        box = _boxes(batch, CUT_MIX)
        views = batch.views[half:]
        mixed = views.roll(1, 0).where(box[:, None], views)
        wanted = Answers(*(value.roll(1, 0).where(box, value) for value in answers))
        logits = module(torch.cat([batch.views[:half], mixed])).logits
        return _both(
            config, module, label_loss(logits[:half], _masks(batch)[:half])["loss"],
            label_loss(logits[half:], sure(wanted, config.threshold))["loss"],
        )  # fmt: skip

    return step


def copy_paste(config: SelfTrainingConfig) -> StepFn:
    """Return the step of bidirectional copy-paste: labelled boxes in unlabelled images, and the other way round."""

    def step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        half = len(batch.images) // 2
        guessed = sure(ask_average(module, batch.images[half:]), config.threshold)
        known, box = _masks(batch)[:half], _boxes(batch, PASTE)
        labelled, unlabelled = batch.views[:half], batch.views[half:]
        mixed = [labelled.where(box[:, None], unlabelled), unlabelled.where(box[:, None], labelled)]
        logits = module(torch.cat(mixed)).logits
        nothing = torch.full_like(known, UNLABELLED)
        true = torch.cat([known.where(box, nothing), nothing.where(box, known)])
        taught = torch.cat([nothing.where(box, guessed), guessed.where(box, nothing)])
        return _both(config, module, label_loss(logits, true)["loss"], label_loss(logits, taught)["loss"])

    return step


STEPS = {"cut_mix": consistency, "copy_paste": copy_paste}


def ask_average(module: nn.Module, images: Tensor) -> Answers:
    """Return what the moving average says of plain views; a wrapped module (several processes) is seen through."""
    with torch.no_grad():
        answer: SegmentationOutput = _bare(module).teacher(images)
    return answers_of(answer.logits)


def _both(config: SelfTrainingConfig, module: nn.Module, known: Tensor, taught: Tensor) -> dict[str, Tensor]:
    updates = _bare(module).updates
    weight = config.weight * (updates / max(RAMP * config.steps, 1)).clamp(max=1)
    return {"loss": known + weight * taught, "label_loss": known, "self_loss": taught}


def _bare(module: Any) -> Any:
    """Return the network within what processes share it by."""
    return getattr(module, "module", module)


def _boxes(batch: Batch, areas: tuple[float, float]) -> Tensor:
    assert batch.noise is not None
    return boxes(batch.noise, batch.images.shape[-2:], areas)


def _masks(batch: Batch) -> Tensor:
    assert batch.masks is not None
    return batch.masks
