"""Fine-tune: the student, pre-trained or from scratch, learns from the labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model

from tskd.artifacts import Artifact
from tskd.data.prepared import Prepared
from tskd.engine import Runtime
from tskd.models.description import NetworkDescription
from tskd.models.registry import STUDENT_FILE, build_model, description_digest
from tskd.recipe.schema import FinetuneConfig
from tskd.seeding import derive
from tskd.stages.label_training import selection, styled_after, train_on_labels, training_labels
from tskd.stages.workbench import Workbench

VERSION = 5


def build(
    bench: Workbench,
    config: FinetuneConfig,
    description: NetworkDescription,
    data: Artifact,
    start: Artifact | None,
    target: Artifact | None = None,
) -> Artifact:
    """Return that student fine-tuned from a pre-trained initialisation, or (None) trained from random weights.

    ``target``: prepared images of another site, whose amplitudes ``config.augment.amplitude`` takes.
    """
    started = {} if start is None else {"start": start.digest}
    return bench.train(
        "finetune",
        lambda folder: finetune(
            config, description, start.path if start else None, Prepared(data.path), folder,
            seed=bench.seed, runtime=bench.runtime, target=target,
        ),
        config,
        inputs={
            "data": data.digest,
            "student": description_digest(description),
            **started,
            **selection(data),
            **styled_after(config.augment, target),
        },
        version=VERSION,
    )  # fmt: skip


def finetune(
    config: FinetuneConfig,
    description: NetworkDescription,
    start: Path | None,
    prepared: Prepared,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
    target: Artifact | None = None,
) -> dict[str, Any]:
    """Train a student on the labels, from the weights in the folder ``start`` or (None) from random ones.

    A pre-trained initialisation is changed carefully: lower learning rate, lower still in early blocks.
    """
    torch.manual_seed(derive(seed, "student"))
    model = build_model(description)
    if start is not None:
        load_model(model, start / STUDENT_FILE)
    return train_on_labels(
        config, description, model, training_labels(prepared, target), prepared, folder,
        seed=seed, runtime=runtime, label="finetune",
        lr=config.scratch_lr if start is None else config.lr,
        layer_decay=1.0 if start is None else config.layer_decay,
        validate_start=config.keep_start and start is not None,
    )  # fmt: skip
