"""Fine-tune: the student, pre-trained or from scratch, learns from the labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model

from tskd.artifacts import Artifact
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime, Training, fit
from tskd.models.description import NetworkDescription
from tskd.models.flops import gflops, training_flops
from tskd.models.registry import STUDENT_FILE, build_model, description_digest, save_model
from tskd.recipe.schema import FinetuneConfig, SelfTrainingConfig
from tskd.seeding import derive
from tskd.stages.label_training import (
    label_step,
    labelled_batches,
    selection,
    styled_after,
    training_labels,
    training_metrics,
    validation,
)
from tskd.stages.own_answers import answer_flops, self_taught
from tskd.stages.workbench import Workbench

VERSION = 5


def build(
    bench: Workbench,
    config: FinetuneConfig,
    description: NetworkDescription,
    data: Artifact,
    start: Artifact | None,
    target: Artifact | None = None,
    transfer: Artifact | None = None,
) -> Artifact:
    """Return that student fine-tuned from a pre-trained initialisation, or (None) trained from random weights.

    ``target``: prepared images of another site, whose amplitudes ``config.augment.amplitude`` takes. ``transfer``: the
    images that it learns from without labels, where ``config.unlabelled`` says so.
    """
    started = {} if start is None else {"start": start.digest}
    return bench.train(
        "finetune",
        lambda folder: finetune(
            config, description, start.path if start else None, Prepared(data.path), folder,
            seed=bench.seed, runtime=bench.runtime, target=target, transfer=transfer,
        ),
        config,
        inputs={
            "data": data.digest,
            "student": description_digest(description),
            **started,
            **selection(data),
            **styled_after(config.augment, target),
            **({} if transfer is None else {"transfer": transfer.digest}),
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
    transfer: Artifact | None = None,
) -> dict[str, Any]:
    """Train a student on the labels, from the weights in the folder ``start`` or (None) from random ones; save it.

    A pre-trained initialisation is changed carefully: lower learning rate, lower still in early blocks. Where
    ``config.unlabelled`` says so, half of each batch comes from the images of ``transfer``, without labels.
    """
    torch.manual_seed(derive(seed, "student"))
    model = build_model(description)
    if start is not None:
        load_model(model, start / STUDENT_FILE)
    labelled, validate = training_labels(prepared, target), validation(prepared)
    flops, answered = training_flops(model, prepared.image_size), 0
    if config.unlabelled is None:
        batches = labelled_batches(
            labelled, prepared.classes, config, config.augment, derive(seed, "finetune", "batches")
        )
        training = Training(
            label="finetune", module=model, step=label_step, batches=batches, settings=config, seed=seed,
            validate=validate,
        )  # fmt: skip
    else:
        assert transfer is not None, "whoever asks for such a student gives the images"
        answered = answer_flops(model, config, prepared.image_size)
        training = self_taught(
            model, config.unlabelled, labelled, TransferSet(transfer.path, prepared), config, SelfTrainingConfig(),
            label="finetune", augment=config.augment, seed=seed, validate=validate,
        )  # fmt: skip
    if start is None:
        training = replace(training, lr=config.scratch_lr)
    else:
        training = replace(training, layer_decay=config.layer_decay, validate_start=config.keep_start)
    result = fit(training, folder, runtime)
    if runtime.fabric.is_global_zero:
        save_model(folder, model, description, file=STUDENT_FILE)
    gflops_of_answers = {"teacher_gflops": gflops(result.steps * answered)} if answered else {}
    return training_metrics(
        result, student_gflops=gflops(result.steps * config.batch_size * flops), **gflops_of_answers
    )
