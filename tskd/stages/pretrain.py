"""Pretrain: rival starts of the student, without a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tskd.models.registry import build_model, save_model
from tskd.seeding import derive

VERSION = 1
FILE = "student.safetensors"


def take_weights(description: Mapping[str, Any], folder: Path, *, seed: int) -> dict[str, Any]:
    """Save a student whose backbone comes from the description's weight file; its decoder is random."""
    torch.manual_seed(derive(seed, "student"))
    student = build_model(description)
    save_model(folder, student, {**description, "weights": None}, file=FILE)
    return {"weights": Path(description["weights"]).name}
