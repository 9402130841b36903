"""ImageNet: the student's backbone starts from a weight file, its decoder from random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tskd.artifacts import Artifact
from tskd.models.registry import STUDENT_FILE, build_model, description_digest, save_model
from tskd.seeding import derive
from tskd.stages.workbench import Workbench

VERSION = 3


def build(bench: Workbench, description: Mapping[str, Any]) -> Artifact:
    """Return a student whose backbone comes from the description's weight file; its decoder is random."""

    def make(folder: Path) -> dict[str, Any]:
        torch.manual_seed(derive(bench.seed, "student"))
        save_model(folder, build_model(description), {**description, "weights": None}, file=STUDENT_FILE)
        return {"weights": Path(description["weights"]).name}

    return bench.build(
        "imagenet", make, config={}, inputs={"student": description_digest(description)}, version=VERSION
    )
