"""Learning from masks: what the teacher, the fine-tuned student and the controls share."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tskd.artifacts import Artifact
from tskd.data.prepared import OF_TARGET, Prepared
from tskd.data.volumes import find_stacks, scored_together
from tskd.engine import FitResult, ImageBatches, Runtime, Training, fit
from tskd.engine.batches import ImageArray, allowed_flips, to_images
from tskd.engine.fit import Validate
from tskd.losses.classes import hard_prediction
from tskd.losses.segmentation import deep_label_loss, label_loss
from tskd.metrics.segmentation import agreement
from tskd.models.description import NetworkDescription
from tskd.models.flops import gflops, training_flops
from tskd.models.registry import STUDENT_FILE, save_model
from tskd.models.timm_segmenter import resize_logits
from tskd.recipe.schema import AugmentConfig, AugmentedConfig
from tskd.seeding import derive
from tskd.types import Batch, StepFn

VALIDATION_BATCH = 16


@dataclass(frozen=True)
class Labelled:
    """Images with masks, of experts or of a teacher."""

    images: ImageArray
    masks: np.ndarray
    """(N, S, S) uint8 class index."""
    names: Sequence[str]
    others: ImageArray | None = None
    """Images without labels whose amplitudes ``augment.amplitude`` takes; None: ``images``."""


def label_step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """One step of learning from labels."""
    assert batch.masks is not None
    return label_loss(module(batch.views).logits, batch.masks)


def deep_label_step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """One step of learning from labels at every level for which the network in training gives logits."""
    assert batch.masks is not None
    scales = module(batch.views).features
    return deep_label_loss([resize_logits(logits, batch.masks.shape[-2:]) for logits in scales], batch.masks)


def training_labels(prepared: Prepared, target: Artifact | None = None) -> Labelled:
    """Return the labelled training images; ``target``: prepared images of the site where the network will work."""
    rows = prepared.rows("train")  # the first ones: a slice stays on the disk, and a teacher's images may be gigabytes
    return Labelled(
        prepared.images[: len(rows)], prepared.masks[: len(rows)], prepared.names(rows), _others(prepared, target)
    )


def labels_without(prepared: Prepared, rows: np.ndarray | None, target: Artifact | None = None) -> Labelled:
    """Return all labelled images, those for validation included, but the rows left out; ``target`` as above."""
    kept = np.setdiff1d(prepared.rows("train", "val"), [] if rows is None else rows)
    return Labelled(prepared.images[kept], prepared.masks[kept], prepared.names(kept), _others(prepared, target))


def styled_after(augment: AugmentConfig, target: Artifact | None) -> dict[str, str]:
    """Return what a training on labels depends on beside its settings and data: the target, where it takes styles."""
    return {"target": target.digest} if target is not None and augment.amplitude > 0 else {}


def _others(prepared: Prepared, target: Artifact | None) -> ImageArray:
    """Return the images whose style those with labels may take: the target's, else those of training."""
    if target is not None:
        return Prepared(target.path).unlabelled_images(prepared.image_size, *OF_TARGET)
    return prepared.unlabelled_images(prepared.image_size, "train", "unlabelled")


def labelled_batches(labelled: Labelled, classes: Sequence[str], settings: AugmentedConfig, seed: int) -> ImageBatches:
    """Return the batches of images with masks; the names of the classes decide whether they may be mirrored."""
    return ImageBatches(
        images=labelled.images,
        masks=labelled.masks,
        names=labelled.names,
        batch_size=settings.batch_size,
        augment=settings.augment,
        seed=seed,
        flip=allowed_flips(settings.augment.flip, classes),
        others=labelled.others,
    )


def validation(prepared: Prepared) -> Validate | None:
    """Return the score on the validation part of the labelled budget; None where all labels train."""
    rows = prepared.rows("val")
    return score_on(prepared, rows) if len(rows) else None


def score_on(prepared: Prepared, rows: np.ndarray) -> Validate:
    """Return the score on labelled rows, at the network's size: mean Dice over images and classes or, for a set of
    volumes, over cases and in each over its volumes and classes, as they are scored. A class that none of the rows
    holds counts too: 1 where nothing of it is found.

    Tiles of an image are scored as one, the pixels where two overlap in both: most show no structure, and each by
    itself would be right where nothing is found.
    """
    parts = [rows[start : start + VALIDATION_BATCH] for start in range(0, len(rows), VALIDATION_BATCH)]
    classes = len(prepared.classes)
    wholes = scored_together(prepared.records, rows)

    def predict(module: nn.Module) -> dict[int, np.ndarray]:
        device = next(module.parameters()).device
        found: dict[int, np.ndarray] = {}
        for part in parts:
            with torch.inference_mode():
                logits = module(to_images(prepared.images[part]).to(device)).logits
            found |= zip(map(int, part), hard_prediction(logits).cpu().numpy(), strict=True)
        return found

    def score(module: nn.Module) -> Mapping[str, float]:
        found = predict(module)
        dice: dict[str, list[float]] = defaultdict(list)
        for whole, own in wholes:
            answers = np.stack([found[row] for row in own])
            dice[whole].append(agreement(answers, prepared.masks[own], classes))
        return {"score": float(np.mean([np.mean(of_whole) for of_whole in dice.values()]))}

    return score


def selection(data: Artifact) -> dict[str, str]:
    """Return what a training that is selected on validation depends on beside its settings and data: volumes are
    validated whole, and tiles as images. Sets of single images have no such input, so their trainings keep their names.
    """
    prepared = Prepared(data.path)
    rows = prepared.rows("val")
    if any(prepared.records[row].tile_of is not None for row in rows):
        return {"selected_by": "tiles together"}
    stacks, _ = find_stacks(prepared.records, rows)
    return {"selected_by": "volume"} if stacks else {}


def training_metrics(result: FitResult, **more: Any) -> dict[str, Any]:
    """Return what a stage's manifest says of a training."""
    validated = result.best_score > -math.inf
    scored = {"val_dice": round(result.best_score, 5), "best_step": result.best_step} if validated else {}
    return {"steps": result.steps, **scored, "train_seconds": round(result.seconds, 2), **more}


def train_on_labels(
    config: AugmentedConfig,
    description: NetworkDescription,
    model: torch.nn.Module,
    labelled: Labelled,
    prepared: Prepared,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
    label: str,
    lr: float | None = None,
    layer_decay: float = 1.0,
    encoder_lr: float = 1.0,
    step: StepFn = label_step,
    validate_start: bool = False,
) -> dict[str, Any]:
    """Train a network on labels, selected on the validation part; save it and return the metrics."""
    flops = training_flops(model, prepared.image_size)
    training = Training(
        label=label,
        module=model,
        step=step,
        batches=labelled_batches(labelled, prepared.classes, config, derive(seed, label, "batches")),
        settings=config,
        seed=seed,
        validate=validation(prepared),
        validate_start=validate_start,
        lr=lr,
        layer_decay=layer_decay,
        encoder_lr=encoder_lr,
    )
    result = fit(training, folder, runtime)
    if runtime.fabric.is_global_zero:
        save_model(folder, model, description, file=STUDENT_FILE)
    return training_metrics(result, student_gflops=gflops(result.steps * config.batch_size * flops))
