"""The methods that are compared: each says, in artifacts of a run, how its final model comes about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tskd.errors import UserError
from tskd.losses.distance import DECODER_LOSSES, ENCODER_LOSSES
from tskd.models.decoders import DECODERS

if TYPE_CHECKING:
    from tskd.artifacts import Artifact
    from tskd.config import Recipe
    from tskd.run import Run


@dataclass(frozen=True)
class Method:
    """A way to a segmentation model."""

    title: str
    """As tables and reports call it."""
    model: Callable[[Run], Artifact]
    """The trained model, ready to be scored; asking computes what it needs."""


METHODS: dict[str, Method] = {
    "teacher": Method("teacher", lambda run: run.teacher),
    "task_kd": Method("task-specific distillation", lambda run: run.finetuned(run.distilled)),
    "scratch": Method("student from scratch", lambda run: run.finetuned(None)),
    "control": Method("control (U-Net)", lambda run: run.control),
}
"""The names that ``method`` and ``rivals`` of a recipe may have."""


def check_names(recipe: Recipe) -> None:
    """Raise UserError for a name in the recipe that nothing answers to, before any work is done."""
    choices: tuple[tuple[str, str, Mapping[str, object]], ...] = (
        ("method", recipe.method, METHODS),
        *(("rivals", rival, METHODS) for rival in recipe.rivals),
        ("student.decoder", recipe.student.decoder, DECODERS),
        ("distill.encoder_loss", recipe.distill.encoder_loss, ENCODER_LOSSES),
        ("distill.decoder_loss", recipe.distill.decoder_loss, DECODER_LOSSES),
    )
    for key, name, known in choices:
        if name not in known:
            raise UserError(f"{key}: {name!r} is not known. Choose one of: {', '.join(sorted(known))}")
