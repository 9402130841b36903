"""Recipes by name, by file or from Python values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tskd.recipe.built_in import find_recipe
from tskd.recipe.files import Change, read_settings, set_key
from tskd.recipe.schema import Recipe, build_recipe


def load_recipe(recipe: Recipe | str | Path | None = None, **changes: Any) -> Recipe:
    """Return a recipe (None: the defaults) with changes: ``teacher={"rank": 8}`` or ``**{"teacher.rank": 8}``.

    Raises UserError naming every key or value that does not fit.
    """
    source, values = _values(recipe)
    for key, value in changes.items():
        _merge(values, key, value)
    return build_recipe(values, source)


def changes_of(data: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the change that a data folder, or settings of the section ``data``, are."""
    if isinstance(data, Mapping):
        return {"data": data}
    return {} if data is None else {"data.root": str(data)}


def as_changes(changes: Mapping[str, Any]) -> list[Change]:
    """Return keyword arguments as changes of single settings."""
    flat: dict[str, Any] = {}
    for key, value in changes.items():
        flat |= {f"{key}.{inner}": one for inner, one in value.items()} if isinstance(value, Mapping) else {key: value}
    return [Change(key, str(value) if isinstance(value, Path) else value) for key, value in flat.items()]


def _values(recipe: Recipe | str | Path | None) -> tuple[str, dict[str, Any]]:
    if recipe is None:
        return "the settings", {}
    if isinstance(recipe, Recipe):
        return "the recipe", recipe.model_dump(exclude_unset=True)
    path = find_recipe(recipe)
    return str(path), read_settings(path)


def _merge(values: dict[str, Any], key: str, value: Any) -> None:
    """Set one key; a mapping changes what it names and leaves the rest of its section."""
    if not isinstance(value, Mapping):
        set_key(values, key, str(value) if isinstance(value, Path) else value)
        return
    for inner, one in value.items():
        _merge(values, f"{key}.{inner}", one)
