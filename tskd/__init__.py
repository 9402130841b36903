"""Task-specific knowledge distillation: from a foundation model and a few labelled medical images to a small model.

In Python: ``tskd.check``, ``run``, ``compare``, ``load``, ``score`` and ``distill`` (docs/how-to/python.md). A name is
imported when it is first used, so that ``import tskd`` costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tskd.api.distillation import Distilled, distill
    from tskd.api.experiments import ComparisonResult, RunResult, check, compare, run
    from tskd.api.model import Model, Prediction, load
    from tskd.api.recipes import load_recipe
    from tskd.api.scores import score
    from tskd.data.phantoms import draw_phantom
    from tskd.errors import Paused, RunFailed, UserError
    from tskd.recipe.schema import Recipe
    from tskd.types import SegmentationOutput

__version__ = "0.1.0"

SILENCED = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime 1.32: a device id and queued events in the user's cache, sent home
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, for transformers and diffusers too
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "DO_NOT_TRACK": "1",
}
"""What libraries read, most of them once when they are imported, before they report on their user."""
# here, because this module runs before any other of the package, and so before all that imports one of those libraries
os.environ.update(SILENCED)

_HOMES = {
    "ComparisonResult": "api.experiments",
    "Distilled": "api.distillation",
    "Model": "api.model",
    "Paused": "errors",
    "Prediction": "api.model",
    "Recipe": "recipe.schema",
    "RunFailed": "errors",
    "RunResult": "api.experiments",
    "SegmentationOutput": "types",
    "UserError": "errors",
    "check": "api.experiments",
    "compare": "api.experiments",
    "distill": "api.distillation",
    "draw_phantom": "data.phantoms",
    "load": "api.model",
    "load_recipe": "api.recipes",
    "run": "api.experiments",
    "score": "api.scores",
}
"""Public name -> the module of this package that it is taken from."""

__all__ = [
    "ComparisonResult",
    "Distilled",
    "Model",
    "Paused",
    "Prediction",
    "Recipe",
    "RunFailed",
    "RunResult",
    "SegmentationOutput",
    "UserError",
    "check",
    "compare",
    "distill",
    "draw_phantom",
    "load",
    "load_recipe",
    "run",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tskd.extras import telling_what_is_missing

    with telling_what_is_missing(f"tskd.{name}"):
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
