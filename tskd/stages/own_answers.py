"""Learning from labels and, on images without labels, from one's own moving average.

``consistency`` is weak-to-strong consistency as in UniMatch (Yang et al. 2023, arXiv 2208.09910), without its
perturbed features: the average answers for the plain view, the network is asked about the strongly changed one, into
which a box of another image's view is cut. ``copy_paste`` is bidirectional copy-paste (Bai et al. 2023, arXiv
2305.00673), without its choice of connected components: a box of a labelled image lies in an unlabelled one and the
other way round, and each pixel has the label, or the average's answer, of the image that it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tskd.data.transfer_set import TransferSet
from tskd.engine import ImageBatches, Training
from tskd.engine.batches import allowed_flips
from tskd.engine.fit import Validate
from tskd.engine.order import part_of
from tskd.losses.segmentation import label_loss
from tskd.losses.self_training import CUT_MIX, Answers, answers_of, boxes, sure
from tskd.models.flops import inference_flops
from tskd.models.mean_teacher import MeanTeacher
from tskd.recipe.schema import AugmentedConfig, Mix, SelfTrainingConfig, TrainConfig
from tskd.seeding import derive, torch_generator
from tskd.stages.label_training import Labelled, labelled_batches
from tskd.types import UNLABELLED, Batch, SegmentationOutput, StepFn

RAMP = 0.3
"""Share of the steps over which the average's answers gain their weight: at first they are noise."""
PASTE = (0.3, 0.5)
"""Smallest and largest area of the boxes of copy-paste, as shares of the image's."""


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


def self_taught(
    network: nn.Module,
    mix: Mix,
    labelled: Labelled,
    transfer: TransferSet,
    settings: AugmentedConfig,
    lesson: SelfTrainingConfig,
    *,
    label: str,
    seed: int,
    validate: Validate | None,
    encoder_lr: float = 1.0,
) -> Training:
    """Return the training of a network of whose batches half has labels and half comes from the transfer set.

    ``lesson`` says what its moving average's answers weigh, and from which probability on they count.
    """
    return Training(
        label=label,
        module=MeanTeacher(network, decay=settings.ema, parts=settings.accumulate),
        step=STEPS[mix](lesson.model_copy(update={"steps": settings.steps})),
        batches=_paired_batches(labelled, transfer, settings, seed),
        settings=settings,
        seed=seed,
        validate=None if validate is None else lambda module: validate(_bare(module).student),
        encoder_lr=encoder_lr,
    )


def answer_flops(network: nn.Module, settings: TrainConfig, image_size: int) -> int:
    """Return the operations of the average's answers in one step."""
    return settings.batch_size // 2 * inference_flops(network.eval(), image_size)


def _paired_batches(labelled: Labelled, transfer: TransferSet, settings: AugmentedConfig, seed: int) -> PairedBatches:
    half, classes = settings.batch_size // 2, transfer.prepared.classes
    halves = settings.model_copy(update={"batch_size": half})
    known = labelled_batches(labelled, classes, halves, derive(seed, "labelled batches"))
    drawn_alike = settings.augment.model_copy(update={"foreground": 0.0})  # what these show is not known
    unlabelled = ImageBatches(
        transfer.images, None, transfer.names, half, drawn_alike, derive(seed, "unlabelled batches"),
        flip=allowed_flips(drawn_alike.flip, classes),
    )  # fmt: skip
    return PairedBatches(known, unlabelled, derive(seed, "boxes"))


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
