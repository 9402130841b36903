"""Pseudo-label: a student learns the teacher's hard masks, the simple thing a user would try.

No features and no probabilities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tskd.artifacts import Artifact
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime, Training, fit
from tskd.models.description import NetworkDescription
from tskd.models.flops import gflops, training_flops
from tskd.models.registry import STUDENT_FILE, build_model, save_model
from tskd.recipe.schema import DistillConfig
from tskd.seeding import derive
from tskd.stages.label_training import Labelled, label_step, labelled_batches, training_metrics
from tskd.stages.lesson import pretraining_inputs
from tskd.stages.transfer_masks import pseudo_labels
from tskd.stages.workbench import Workbench

VERSION = 2
UNUSED_SETTINGS = frozenset(
    {
        "encoder_loss",
        "decoder_loss",
        "encoder_weight",
        "decoder_weight",
        "temperature",
        "cache",
        "views",
        "mix",
        "rounds",
    }
)
"""Of ``distill``: a student of hard masks knows none of them."""


def build(
    bench: Workbench,
    config: DistillConfig,
    description: NetworkDescription,
    masks: Artifact,
    transfer: Artifact,
    data: Artifact,
) -> Artifact:
    """Return the student that has learned the teacher's hard masks on the transfer set."""
    return bench.train(
        "pseudo_label",
        lambda folder: learn_pseudo_labels(
            config, description, pseudo_labels(TransferSet(transfer.path, Prepared(data.path)), masks.path), folder,
            seed=bench.seed, runtime=bench.runtime,
        ),
        config,
        without=UNUSED_SETTINGS,
        inputs=pretraining_inputs(description, transfer, data) | {"masks": masks.digest},
        version=VERSION,
    )  # fmt: skip


def learn_pseudo_labels(
    config: DistillConfig,
    description: NetworkDescription,
    labelled: Labelled,
    folder: Path,
    *,
    seed: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train a student on pseudo-labels, for as long and in the way distillation would; save it."""
    torch.manual_seed(derive(seed, "student"))
    student = build_model(description)
    flops = training_flops(student, description.image_size)
    batches = labelled_batches(labelled, description.classes, config, derive(seed, "transfer batches"))
    training = Training("pseudo-labels", student, label_step, batches, config, seed)
    result = fit(training, folder, runtime)
    if runtime.fabric.is_global_zero:
        save_model(folder, student, description, file=STUDENT_FILE)
    return training_metrics(result, student_gflops=gflops(result.steps * config.batch_size * flops))
