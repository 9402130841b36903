"""Whether the student that a recipe asks for can be built; it is tried before any work, since it takes no second."""

from __future__ import annotations

from functools import cache

from tskd.config import Recipe
from tskd.methods import asks_for_weights
from tskd.models.mae import require_transformer
from tskd.models.registry import build_model


def check_student(recipe: Recipe) -> None:
    """Raise UserError where the student's network or its weight file does not fit, or ``mae`` cannot train it."""
    student = recipe.student
    weights = student.weights if asks_for_weights(recipe) else None
    masked = "mae" in (recipe.method, *recipe.rivals)
    _try_to_build(student.backbone, student.decoder, weights, recipe.data.image_size, masked=masked)


@cache
def _try_to_build(backbone: str, decoder: str, weights: str | None, image_size: int, *, masked: bool) -> None:
    """Build and forget; a plan of many runs asks for the same few students."""
    student = build_model(
        {
            "kind": "timm",
            "classes": ["unused"],
            "image_size": image_size,
            "arguments": {"backbone": backbone, "decoder": decoder},
            "weights": weights,
        }
    )
    if masked:
        require_transformer(student)
