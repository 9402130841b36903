"""Learning from masks: what the teacher, the fine-tuned student and the controls share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tskd.data.prepared import Prepared
from tskd.engine import FitResult, ImageBatches, Runtime, Training, fit
from tskd.engine.batches import ImageArray, allowed_flips, to_images
from tskd.losses.classes import hard_prediction
from tskd.losses.segmentation import deep_label_loss, label_loss
from tskd.metrics.segmentation import agreement
from tskd.models.flops import gflops, training_flops
from tskd.models.registry import STUDENT_FILE, save_model
from tskd.models.timm_segmenter import resize_logits
from tskd.recipe.schema import AugmentConfig, TrainConfig
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


def label_step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """One step of learning from labels."""
    assert batch.masks is not None
    return label_loss(module(batch.views).logits, batch.masks)


def deep_label_step(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """One step of learning from labels at every level for which the network in training gives logits."""
    assert batch.masks is not None
    scales = module(batch.views).features
    return deep_label_loss([resize_logits(logits, batch.masks.shape[-2:]) for logits in scales], batch.masks)


def training_labels(prepared: Prepared) -> Labelled:
    """Return the labelled training images."""
    rows = prepared.rows("train")  # the first ones: a slice stays on the disk, and a teacher's images may be gigabytes
    return Labelled(prepared.images[: len(rows)], prepared.masks[: len(rows)], prepared.names(rows))


def labelled_batches(
    labelled: Labelled, classes: Sequence[str], settings: TrainConfig, augment: AugmentConfig, seed: int
) -> ImageBatches:
    """Return the batches of images with masks; the names of the classes decide whether they may be mirrored."""
    return ImageBatches(
        images=labelled.images,
        masks=labelled.masks,
        names=labelled.names,
        batch_size=settings.batch_size,
        augment=augment,
        seed=seed,
        flip=allowed_flips(augment.flip, classes),
    )


def validation(prepared: Prepared) -> Callable[[nn.Module], Mapping[str, float]]:
    """Return the score on the validation part of the labelled budget: mean Dice over images and classes at the
    network's size."""
    rows = prepared.rows("val")
    parts = [rows[start : start + VALIDATION_BATCH] for start in range(0, len(rows), VALIDATION_BATCH)]
    classes = len(prepared.classes)

    def score(module: nn.Module) -> Mapping[str, float]:
        device = next(module.parameters()).device
        dice: list[float] = []
        for part in parts:
            with torch.inference_mode():
                logits = module(to_images(prepared.images[part]).to(device)).logits
            predictions = hard_prediction(logits).cpu().numpy()
            dice += [
                agreement(prediction, mask, classes) for prediction, mask in zip(predictions, prepared.masks[part])
            ]
        return {"score": float(np.mean(dice))}

    return score


def training_metrics(result: FitResult, **more: Any) -> dict[str, Any]:
    """Return what a stage's manifest says of a training."""
    validated = result.best_score > -math.inf
    scored = {"val_dice": round(result.best_score, 5), "best_step": result.best_step} if validated else {}
    return {"steps": result.steps, **scored, "train_seconds": round(result.seconds, 2), **more}


def train_on_labels(
    config: TrainConfig,
    description: Mapping[str, Any],
    model: torch.nn.Module,
    labelled: Labelled,
    prepared: Prepared,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
    label: str,
    augment: AugmentConfig,
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
        batches=labelled_batches(labelled, prepared.classes, config, augment, derive(seed, label, "batches")),
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
