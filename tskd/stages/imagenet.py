"""ImageNet: the student's backbone starts from a weight file, its decoder from random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tskd.artifacts import Artifact
from tskd.models.description import NetworkDescription
from tskd.models.registry import STUDENT_FILE, build_model, description_digest, save_model
from tskd.seeding import derive
from tskd.stages.workbench import Workbench

VERSION = 3


def build(bench: Workbench, description: NetworkDescription) -> Artifact:
    """Return a student whose backbone comes from the description's weight file; its decoder is random."""

    weights = description.weights
    assert weights is not None, "methods.check_names refuses a start from no file"

    def make(folder: Path) -> dict[str, Any]:
        torch.manual_seed(derive(bench.seed, "student"))
        save_model(folder, build_model(description), description.bare(), file=STUDENT_FILE)
        return {"weights": Path(weights).name}

    return bench.build(
        "imagenet", make, config={}, inputs={"student": description_digest(description)}, version=VERSION
    )
