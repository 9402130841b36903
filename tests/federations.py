"""A federation that trains in seconds: three sites of phantoms, a vision transformer of a tenth of ViT-Tiny; and sites
that do not train at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.made_up import SMALL_VIT
from tskd.engine import open_runtime
from tskd.federated.run import FederatedRun
from tskd.recipe.schema import FederatedConfig, Recipe, build_recipe

SITES: Mapping[str, Mapping[str, Any]] = {
    "north": {"split_seed": 1, "phantom": {"train": 14}},
    "south": {"split_seed": 2, "phantom": {"train": 24}},
    "west": {"split_seed": 3},
}
SETTINGS: dict[str, Any] = {
    "data": {"image_size": 32, "phantom": {"family": "dermoscopy", "train": 10, "test": 4, "size": 32}},
    "teacher": {
        "name": f"timm/{SMALL_VIT}", "weights": "random", "adaptation": "full", "batch_size": 4, "validate_every": 3,
    },
    "student": {"backbone": SMALL_VIT, "patch": 8},
    "distill": {"steps": 4, "batch_size": 4, "views": 2},
    "evaluate": {"overlays": 0},
    "engine": {"accelerator": "cpu", "checkpoint_seconds": 3600},
}  # fmt: skip


BEGUN = {"a": torch.tensor([1.0, -2.0, 0.5]), "b": torch.tensor(0.25)}
LEARNED = {
    "north": {"a": torch.tensor([1.5, -2.0, 0.0]), "b": torch.tensor(0.5)},
    "south": {"a": torch.tensor([0.0, 1.0, 0.5]), "b": torch.tensor(-1.75)},
    "west": {"a": torch.tensor([1.25, -2.5, 3.5]), "b": torch.tensor(0.25)},
}
IMAGES = {"north": 12, "south": 60, "west": 36}


class MadeUp:
    """A site that has learned what it is told to have."""

    def __init__(self, name: str, config: FederatedConfig, *, dies_at: str = "", learned: Any = None) -> None:
        self.name, self.privacy, self.dies = name, config.privacy, dies_at
        self.weight = IMAGES[name] if config.privacy.clip is None else 1
        self.learned = learned or LEARNED[name]
        self.recipe = type("Recipe", (), {"seed": 0})

    def require_terms(self, asked: str) -> None:
        if self.dies:
            raise OSError(5, "Input/output error")

    def learn(self, task: Any, received: Any) -> Any:
        return self.learned, {"images": IMAGES[self.name], "loss": 0.5}


def federated_recipe(sites: Mapping[str, Mapping[str, Any]] = SITES, **federated: Any) -> Recipe:
    """The recipe of the federation, with settings of its section ``federated``."""
    transfer = {"split_seed": 9, "phantom": {"train": 6, "test": 1}}
    section = {"rounds": 2, "local_steps": 3, **federated, "sites": dict(sites), "transfer": transfer}
    return build_recipe({**SETTINGS, "federated": section}, "test")


def federated_run(out: Path, recipe: Recipe | None = None, **more: Any) -> FederatedRun:
    """The run of the federation in a folder."""
    pytest.importorskip("flwr")
    recipe = recipe or federated_recipe()
    return FederatedRun(recipe, out, open_runtime(recipe.engine), **more)
