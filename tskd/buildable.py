"""Whether the networks that a recipe asks for can be built; it is tried before any work, since it takes no second."""

from __future__ import annotations

import json
from functools import cache

import torch

from tskd.artifacts import canonical_json
from tskd.config import Recipe
from tskd.methods import asks_for_weights
from tskd.models.lora import AdaptationName, set_adaptation
from tskd.models.mae import require_transformer
from tskd.models.registry import build_model
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.run import describe_student
from tskd.stages.diffusion import require_image_size


def check_networks(recipe: Recipe) -> None:
    """Raise UserError where the student's network or its weight file does not fit, ``mae`` cannot train it, a timm
    teacher cannot take its image size or be adapted, or the diffusion model that is asked for cannot draw images of
    its size."""
    weights = recipe.student.weights if asks_for_weights(recipe) else None
    description = describe_student(recipe.student, weights=weights, classes=["any"], image_size=recipe.data.image_size)
    _try_to_build(canonical_json(description), masked="mae" in (recipe.method, *recipe.rivals))
    kind, _, backbone = recipe.teacher.name.partition("/")
    if kind == "timm" and backbone:
        teacher = recipe.teacher
        _try_to_adapt(backbone, teacher.image_size or recipe.data.image_size, teacher.adaptation, teacher.rank)
    if recipe.transfer.synthetic:
        require_image_size(recipe.diffusion, recipe.data.image_size)


@cache
def _try_to_build(description: str, *, masked: bool) -> None:
    """Build and forget; a plan of many runs asks for the same few students."""
    student = build_model(json.loads(description))
    if masked:
        require_transformer(student)


@cache
def _try_to_adapt(backbone: str, image_size: int, adaptation: AdaptationName, rank: int) -> None:
    """Build a teacher without numbers, whatever its size, and give it its adapters."""
    with torch.device("meta"):
        teacher = TimmSegmenter(backbone, "plain", classes=1, image_size=image_size)
        set_adaptation(teacher, adaptation, rank=rank)
