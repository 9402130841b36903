"""The demonstration: the whole method on built-in phantoms, offline, in seven minutes on two cores."""

from __future__ import annotations

from typing import Any

from tskd.recipe.schema import Recipe, build_recipe

SETTINGS: dict[str, Any] = {
    "baselines": ["scratch"],
    "data": {
        "image_size": 64,
        "labels": 20,
        "phantom": {"family": "oral_ulcer", "train": 400, "test": 80, "size": 64},
    },
    "teacher": {"name": "offline", "steps": 120},
    "diffusion": {"image_size": 32, "steps": 600, "lr": 2e-3, "ema": 0.98},
    "transfer": {"synthetic": 100},
    "distill": {"steps": 400, "views": 3},
    "finetune": {"steps": 40},
    "student": {"patch": 8},  # 64 tokens: enough for a 64 px phantom, and a quarter of the default's time
}


def demo_recipe(changes: dict[str, Any] | None = None) -> Recipe:
    """Return the recipe of the demonstration, with sections changed (for tests that want it shorter)."""
    return build_recipe({**SETTINGS, **(changes or {})}, "the demonstration")
