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
from tskd.models.flops import training_flops
from tskd.models.registry import build_model, save_model
from tskd.seeding import derive
from tskd.stages.supervised import label_step, labelled_batches, training_metrics, validation

VERSION = 3
FILE = "student.safetensors"


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
    """Train a student on the labels, from the weights in the folder ``start`` or (None) from its description's.

    A trained start is changed carefully: lower learning rate, lower still in early blocks.
    """
    torch.manual_seed(derive(seed, "student"))
    model = build_model(description)
    if start is not None:
        load_model(model, start / FILE)
    return _train_on_labels(
        config, description, model, prepared, folder, seed=seed, runtime=runtime, label="finetune",
        augment=config.augment,
        lr=config.scratch_lr if start is None else config.lr,
        layer_decay=1.0 if start is None else config.layer_decay,
        validate_start=config.keep_start and start is not None,
    )  # fmt: skip


def train_control(
    config: ControlConfig,
    description: Mapping[str, Any],
    prepared: Prepared,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train the control on the labels."""
    torch.manual_seed(derive(seed, "control"))
    model = build_model(description)
    return _train_on_labels(
        config,
        description,
        model,
        prepared,
        folder,
        seed=seed,
        runtime=runtime,
        label="control",
        augment=config.augment,
    )


def steps_within(budget_flops: float, model_description: Mapping[str, Any], batch_size: int) -> int:
    """Return how many training steps of a model cost the budget; at least 1."""
    model = build_model(model_description)
    return max(int(budget_flops / (training_flops(model, model_description["image_size"]) * batch_size)), 1)


def _train_on_labels(
    config: TrainConfig,
    description: Mapping[str, Any],
    model: torch.nn.Module,
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
    training = Training(
        label=label,
        module=model,
        step=label_step,
        batches=labelled_batches(prepared, config, augment, derive(seed, label, "batches")),
        settings=config,
        seed=seed,
        validate=validation(prepared),
        validate_start=validate_start,
        lr=lr,
        layer_decay=layer_decay,
    )
    result = fit(training, folder, runtime)
    if runtime.fabric.is_global_zero:
        save_model(folder, model, description, file=FILE)
    return training_metrics(result)
