"""Trained denoisers: how they are built, loaded and sampled from, and which cases they have seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model

from tskd.models.description import DESCRIPTION
from tskd.models.diffusion import PredictionKind, SamplingPlan, ScheduleKind
from tskd.models.pan_unet import PanUNet
from tskd.models.swin_unet import Denoiser, SwinUNet, SwinUNetSize
from tskd.recipe.schema import DiffusionConfig

FILE, SEEN_CASES = "denoiser.safetensors", "seen_cases.json"
SAMPLING_SETTINGS = frozenset({"sampler", "sampling_steps", "guidance"})
"""Settings that the samples depend on and the trained weights do not: another solver asks for no new training."""


@dataclass(frozen=True)
class DenoiserDescription:
    """All that it takes to build a denoiser again and to sample from it: what ``model.json`` of its artifact holds."""

    preset: str
    size: SwinUNetSize
    image_size: int
    """Side in px of the images that it draws."""
    channels: int
    """1 where all images are grey, else 3."""
    classes: Mapping[str, int]
    """Class folders and the images in them, in the order of the numbers that the network knows them by."""
    prediction: PredictionKind
    schedule: ScheduleKind

    def as_dict(self) -> dict[str, Any]:
        """Return what ``model.json`` holds, in its order."""
        return {"kind": "swin_unet_denoiser", **asdict(self)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> DenoiserDescription:
        """Return the description that ``model.json`` holds."""
        sizes: dict[str, Any] = {
            name: tuple(one) if isinstance(one, list) else one for name, one in values["size"].items()
        }
        return cls(**{name: values[name] for name in cls.__dataclass_fields__} | {"size": SwinUNetSize(**sizes)})


def own_seed(config: DiffusionConfig, seed: int) -> int:
    """Return the seed of the model and its samples: its own where the settings state one, else the run's."""
    return seed if config.seed is None else config.seed


def build_denoiser(description: DenoiserDescription, *, checkpointing: bool = False) -> Denoiser:
    """Return the network of a description with random weights, drawn from torch's global generator."""
    model = (PanUNet if description.size.published else SwinUNet)(
        description.size,
        image_size=description.image_size,
        channels=description.channels,
        num_classes=len(description.classes),
        checkpointing=checkpointing,
    )
    # convolutions are faster so, and Swin blocks read channels last anyway
    return model.to(memory_format=torch.channels_last)


def load_denoiser(folder: Path) -> tuple[Denoiser, DenoiserDescription]:
    """Return the trained denoiser of a ``diffusion`` artifact, in evaluation mode, and its description."""
    values = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    description = DenoiserDescription.of(values)
    model = build_denoiser(description)
    load_model(model, folder / values["file"])
    return model.eval(), description


def read_seen_cases(denoiser: Path) -> list[str]:
    """Return the cases that the diffusion model of an artifact was trained on."""
    cases: list[str] = json.loads((denoiser / SEEN_CASES).read_text(encoding="utf-8"))
    return cases


def plan_of(description: DenoiserDescription, **changes: Any) -> SamplingPlan:
    """Return how to sample from a described denoiser; ``changes`` are fields of the plan."""
    return SamplingPlan(
        prediction=description.prediction,
        schedule=description.schedule,
        image_size=description.image_size,
        channels=description.channels,
        **changes,
    )
