"""Self-training: a student learns from the labels and, on unlabelled images, from its own moving average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tskd.artifacts import Artifact
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime, fit
from tskd.models.description import NetworkDescription
from tskd.models.flops import gflops, training_flops
from tskd.models.registry import STUDENT_FILE, build_model, save_model
from tskd.recipe.schema import Mix, SelfTrainingConfig
from tskd.seeding import derive
from tskd.stages.label_training import selection, training_labels, training_metrics, validation
from tskd.stages.lesson import pretraining_inputs
from tskd.stages.own_answers import answer_flops, self_taught
from tskd.stages.workbench import Workbench

VERSION = 1


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
        # in parts the average once followed every part, not every step
        inputs=pretraining_inputs(description, transfer, data)
        | {"mix": mix}
        | selection(data)
        | ({"average": "by step"} if config.accumulate > 1 else {}),
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
    prepared = transfer.prepared
    trained = training_flops(student, description.image_size)
    answered = answer_flops(student, config, description.image_size)
    training = self_taught(
        student, mix, training_labels(prepared), transfer, config, config,
        label=mix.replace("_", " "), seed=seed, validate=validation(prepared),
    )  # fmt: skip
    result = fit(training, folder, runtime)
    if runtime.fabric.is_global_zero:
        save_model(folder, student, description, file=STUDENT_FILE)
    return training_metrics(
        result,
        student_gflops=gflops(result.steps * config.batch_size * trained),
        teacher_gflops=gflops(result.steps * answered),
    )
