"""Control: a U-Net that learns from the labels, and with pseudo-labels from a teacher's masks as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tskd.artifacts import Artifact
from tskd.data.prepared import Prepared
from tskd.engine import Runtime
from tskd.models.description import NetworkDescription
from tskd.models.registry import build_model
from tskd.recipe.schema import ControlConfig
from tskd.seeding import derive
from tskd.stages.label_training import Labelled, selection, train_on_labels, training_labels
from tskd.stages.workbench import Workbench

VERSION = 5


def build(
    bench: Workbench,
    config: ControlConfig,
    description: NetworkDescription,
    data: Artifact,
    labelled: Callable[[], Labelled] | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
) -> Artifact:
    """Return the U-Net trained on images with masks: on the labels alone, or on what ``labelled`` gives.

    ``inputs``: digests of what ``labelled`` reads beside the prepared data.
    """

    def make(folder: Path) -> dict[str, Any]:
        prepared = Prepared(data.path)
        lessons = training_labels(prepared) if labelled is None else labelled()
        return train_control(config, description, lessons, prepared, folder, seed=bench.seed, runtime=bench.runtime)

    return bench.train(
        "control", make, config, inputs={"data": data.digest, **selection(data), **(inputs or {})}, version=VERSION
    )


def describe(config: ControlConfig, *, classes: Sequence[str], image_size: int) -> NetworkDescription:
    """Return what the registry builds the U-Net from."""
    return NetworkDescription("dynunet", {"channels": list(config.channels)}, tuple(classes), image_size)


def train_control(
    config: ControlConfig,
    description: NetworkDescription,
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
    return train_on_labels(
        config, description, model, labelled, prepared, folder,
        seed=seed, runtime=runtime, label="control",
    )  # fmt: skip
