"""Settings as they may be shown: without the places of files on a machine, and without names of sites or patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tskd.recipe.schema import PHANTOMS

DATA, FILE, VALUE = "DATA", "FILE", "VALUE"
"""Shown instead of the folder of the images, of any other place, and of what a column of split.csv says."""


def shareable(value: Any, key: str = "") -> Any:
    """Return settings with every path replaced; ``key`` is the name that a value has.

    The folder of images becomes ``DATA``, each value of ``where`` (hospitals, perhaps patients) ``VALUE``. Weights keep
    their last name, which says what they are.
    """
    if value is not None and "where" in key.split("."):
        return _without_values(value)
    if isinstance(value, Mapping):
        return {name: shareable(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [shareable(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    name = key.rpartition(".")[2]
    if name == "root":
        return value if value == PHANTOMS else DATA
    if name == "weights":
        return Path(value).name
    return FILE if value.startswith(("/", "~", ".")) or "\\" in value else value


def _without_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {column: _without_values(inner) for column, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [VALUE for _ in value]
    return VALUE


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
