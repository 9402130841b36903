"""U-Nets that a user would believe, trained on the labels alone: one of nnU-Net's size, one over ImageNet weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from tskd.artifacts import Artifact
from tskd.data.prepared import Prepared
from tskd.models.control import nnunet_channels
from tskd.models.description import NetworkDescription
from tskd.models.registry import build_model, description_digest
from tskd.recipe.schema import StudentConfig, UnetConfig, UnetImagenetConfig
from tskd.seeding import derive
from tskd.stages.label_training import deep_label_step, label_step, selection, train_on_labels, training_labels
from tskd.stages.students import describe_student
from tskd.stages.workbench import Workbench

VERSION = 1
Stage = Literal["unet", "unet_imagenet"]
RESOLVED = frozenset({"compute", "channels", "deep_supervision", "backbone", "decoder", "weights", "pixels"})
"""Settings that lead to a number of steps, a network and its weights: those are in the fingerprint."""


def build(
    bench: Workbench,
    stage: Stage,
    config: UnetConfig | UnetImagenetConfig,
    description: NetworkDescription,
    data: Artifact,
) -> Artifact:
    """Return the U-Net of that description trained on the labels, all layers of it, selected on the validation part."""

    def make(folder: Path) -> dict[str, Any]:
        prepared = Prepared(data.path)
        torch.manual_seed(derive(bench.seed, stage))
        model = build_model(description)
        return train_on_labels(
            config, description.bare(), model, training_labels(prepared), prepared, folder,
            seed=bench.seed, runtime=bench.runtime, label=stage,
            encoder_lr=config.encoder_lr if isinstance(config, UnetImagenetConfig) else 1.0,
            step=deep_label_step if description.arguments.get("supervised") else label_step,
        )  # fmt: skip

    inputs = {"data": data.digest, **selection(data), "network": description_digest(description)}
    return bench.train(stage, make, config, inputs=inputs, version=VERSION, without=RESOLVED)


def describe_unet(config: UnetConfig, *, classes: Sequence[str], image_size: int) -> NetworkDescription:
    """Return what the registry builds the U-Net of nnU-Net's size from.

    As in nnU-Net all levels but the two lowest are supervised.
    """
    channels = config.channels or nnunet_channels(image_size)
    supervised = max(len(channels) - 3, 0) if config.deep_supervision else 0
    arguments = {"channels": list(channels), "supervised": supervised}
    return NetworkDescription("dynunet", arguments, tuple(classes), image_size)


def describe_unet_imagenet(
    config: UnetImagenetConfig, *, classes: Sequence[str], image_size: int
) -> NetworkDescription:
    """Return what the registry builds the U-Net over ImageNet weights from."""
    network = StudentConfig(
        backbone=config.backbone, decoder=config.decoder, weights=config.weights, pixels=config.pixels
    )
    return describe_student(network, weights=config.weights, classes=classes, image_size=image_size)
