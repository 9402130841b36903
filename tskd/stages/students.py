"""Students: which network a recipe's settings describe; every method but the controls ends with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tskd.errors import UserError
from tskd.models.backbones import patch_for
from tskd.models.description import NetworkDescription
from tskd.models.weight_files import identify
from tskd.recipe.schema import OFFLINE, StudentConfig


def describe_student(
    student: StudentConfig, *, weights: str | None, classes: Sequence[str], image_size: int
) -> NetworkDescription:
    """Return what the registry builds a recipe's student from.

    A weight file that is named says what pixels every student of the recipe sees, so that all start alike.
    """
    arguments: dict[str, Any] = {"backbone": student.backbone, "decoder": student.decoder, **_expected_by(student)}
    patch = student.patch or patch_for(student.backbone, image_size)
    arguments |= {} if patch is None else {"patch": patch}
    return NetworkDescription("timm", arguments, tuple(classes), image_size, weights)


def _expected_by(student: StudentConfig) -> dict[str, Any]:
    stated = {} if student.pixels == "auto" else {"pixels": student.pixels}
    if student.weights in (None, OFFLINE):
        return stated
    try:
        return {**identify(Path(student.weights), student.backbone).arguments, **stated}
    except UserError:  # nothing that starts from the file gets this far: preflight.check_networks
        return stated
