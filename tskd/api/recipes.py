"""Recipes by name, by file or from Python values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tskd.errors import UserError
from tskd.recipe.built_in import find_recipe
from tskd.recipe.files import Change, current_key, read_settings, set_key
from tskd.recipe.schema import Recipe, build_recipe


def load_recipe(recipe: Recipe | str | Path | None = None, **changes: Any) -> Recipe:
    """Return a recipe (None: the defaults) with changes: ``teacher={"rank": 8}`` or ``**{"teacher.rank": 8}``.

    A mapping leaves the rest of its section as it is, except that of ``where``, which takes the place of the other.
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
    """Return keyword arguments as changes of single settings, so that the rest of every section stays as it is.

    Within a section, an empty mapping is a change of its own: a part with its defaults.
    """
    return [one for key, value in changes.items() if value != {} for one in _flat(key, value)]


def _flat(key: str, value: Any) -> list[Change]:
    if _is_one_setting(key, value) or not value:
        return [Change(key, _plain(value))]
    return [one for name, inner in value.items() for one in _flat(f"{key}.{name}", inner)]


def _values(recipe: Recipe | str | Path | None) -> tuple[str, dict[str, Any]]:
    if recipe is None:
        return "the settings", {}
    if not isinstance(recipe, Recipe | str | Path):
        raise UserError(
            f"recipe: a {type(recipe).__name__} is none. Give a Recipe, a name, a YAML file or None; settings are "
            "keywords, such as seed=1 or **settings."
        )
    if isinstance(recipe, Recipe):
        return "the recipe", recipe.model_dump(exclude_unset=True)
    path = find_recipe(recipe)
    return str(path), read_settings(path)


def _merge(values: dict[str, Any], key: str, value: Any) -> None:
    """Set one key; a mapping changes what it names and leaves the rest of its section. An empty one stands for the
    defaults of a section that is not there yet."""
    if _is_one_setting(key, value):
        set_key(values, key, _plain(value))
        return
    if not value and not _is_there(values, key):
        set_key(values, key, {})
    for inner, one in value.items():
        _merge(values, f"{key}.{inner}", one)


def _is_one_setting(key: str, value: Any) -> bool:
    """Tell a value from settings of a section. ``where`` is one: its columns all have to fit, so that one which was
    left there would go on choosing images."""
    return not isinstance(value, Mapping) or key.rpartition(".")[2] == "where"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return str(value) if isinstance(value, Path) else value


def _is_there(values: Mapping[str, Any], key: str) -> bool:
    found: Any = values
    for name in current_key(key).split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found is not None
