"""Settings as people write them, before they are checked: YAML files and ``section.key=value``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tskd.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-3`` as text; people mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$|^[-+]?\d[\d_]*\.[\d_]*$|^[-+]?\.(inf|Inf|INF)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text; ``1e-3`` is a number.

    Raises UserError naming ``source`` and the line of the mistake.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file; raises UserError where it is no text or no YAML."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file. Give a YAML file.") from error


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set ``section.key`` of nested settings in place; raises UserError where a part of the key is no section."""
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise UserError(f"{key}: '{section}' is a value, not a section.")
    values[last] = value


def read_settings(path: Path) -> dict[str, Any]:
    """Return what a recipe's file holds, unchecked; raises UserError where it holds no mapping."""
    if not path.is_file():
        raise UserError(f"{path}: no such recipe. Give the path of a YAML file, or leave it out for the defaults.")
    values = read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: a recipe is a mapping of sections (data, teacher, ...), not a {type(values).__name__}."
        )
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Change nested settings in place as ``section.key=value`` says."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {override}: write section.key=value, for example --set teacher.rank=16")
    set_key(values, key.strip(), parse_yaml(text, f"--set {override}"))
