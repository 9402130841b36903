"""Trained denoisers: how they are built, loaded and sampled from, and which cases they have seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model

from tskd.models.diffusion import (
    SamplingPlan,
)
from tskd.models.pan_unet import PanUNet
from tskd.models.registry import read_description
from tskd.models.swin_unet import Denoiser, SwinUNet, SwinUNetSize
from tskd.recipe.schema import DiffusionConfig

FILE, SEEN_CASES = "denoiser.safetensors", "seen_cases.json"
SAMPLING_SETTINGS = frozenset({"sampler", "sampling_steps", "guidance"})
"""Settings that the samples depend on and the trained weights do not: another solver asks for no new training."""


def own_seed(config: DiffusionConfig, seed: int) -> int:
    """Return the seed of the model and its samples: its own where the settings state one, else the run's."""
    return seed if config.seed is None else config.seed


def build_denoiser(description: Mapping[str, Any], *, checkpointing: bool = False) -> Denoiser:
    """Return the network of a description with random weights, drawn from torch's global generator."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in description["size"].items()
    }
    size = SwinUNetSize(**values)
    model = (PanUNet if size.published else SwinUNet)(
        size,
        image_size=description["image_size"],
        channels=description["channels"],
        num_classes=len(description["classes"]),
        checkpointing=checkpointing,
    )
    # convolutions are faster so, and Swin blocks read channels last anyway
    return model.to(memory_format=torch.channels_last)


def load_denoiser(folder: Path) -> tuple[Denoiser, dict[str, Any]]:
    """Return the trained denoiser of a ``diffusion`` artifact, in evaluation mode, and its description."""
    description = read_description(folder)
    model = build_denoiser(description)
    load_model(model, folder / description["file"])
    return model.eval(), description


def read_seen_cases(denoiser: Path) -> list[str]:
    """Return the cases that the diffusion model of an artifact was trained on."""
    cases: list[str] = json.loads((denoiser / SEEN_CASES).read_text(encoding="utf-8"))
    return cases


def plan_of(description: Mapping[str, Any], **changes: Any) -> SamplingPlan:
    """Return how to sample from a described denoiser; ``changes`` are fields of the plan."""
    trained = {name: description[name] for name in ("prediction", "schedule", "image_size", "channels")}
    return SamplingPlan(**trained, **changes)
