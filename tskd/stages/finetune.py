"""Fine-tune: the student, distilled or from scratch, and the control learn from the labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model

from tskd.config import AugmentConfig, ControlConfig, FinetuneConfig, TrainConfig
from tskd.data.prepared import Prepared
from tskd.engine import Runtime, Training, fit
from tskd.models.flops import gflops, training_flops
from tskd.models.registry import STUDENT_FILE, build_model, save_model
from tskd.seeding import derive
from tskd.stages.supervised import (
    Labelled,
    label_step,
    labelled_batches,
    training_labels,
    training_metrics,
    validation,
)

VERSION = 5


def finetune(
    config: FinetuneConfig,
    description: Mapping[str, Any],
    start: Path | None,
    prepared: Prepared,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train a student on the labels, from the weights in the folder ``start`` or (None) from random ones.

    A trained start is changed carefully: lower learning rate, lower still in early blocks.
    """
    torch.manual_seed(derive(seed, "student"))
    model = build_model(description)
    if start is not None:
        load_model(model, start / STUDENT_FILE)
    return _train_on_labels(
        config, description, model, training_labels(prepared), prepared, folder,
        seed=seed, runtime=runtime, label="finetune", augment=config.augment,
        lr=config.scratch_lr if start is None else config.lr,
        layer_decay=1.0 if start is None else config.layer_decay,
        validate_start=config.keep_start and start is not None,
    )  # fmt: skip


def train_control(
    config: ControlConfig,
    description: Mapping[str, Any],
    labelled: Labelled,
    prepared: Prepared,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train the control on images with masks, selected on the validation part of the labels."""
    torch.manual_seed(derive(seed, "control"))
    model = build_model(description)
    return _train_on_labels(
        config, description, model, labelled, prepared, folder,
        seed=seed, runtime=runtime, label="control", augment=config.augment,
    )  # fmt: skip


def _train_on_labels(
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
    validate_start: bool = False,
) -> dict[str, Any]:
    flops = training_flops(model, prepared.image_size)
    training = Training(
        label=label,
        module=model,
        step=label_step,
        batches=labelled_batches(labelled, prepared.classes, config, augment, derive(seed, label, "batches")),
        settings=config,
        seed=seed,
        validate=validation(prepared),
        validate_start=validate_start,
        lr=lr,
        layer_decay=layer_decay,
    )
    result = fit(training, folder, runtime)
    if runtime.fabric.is_global_zero:
        save_model(folder, model, description, file=STUDENT_FILE)
    return training_metrics(result, student_gflops=gflops(result.steps * config.batch_size * flops))
