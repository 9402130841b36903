"""Settings as people write them, before they are checked: YAML files and ``section.key=value``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tskd.console import warn
from tskd.errors import UserError, require_file


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-3`` as text; people mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$|^[-+]?\d[\d_]*\.[\d_]*$|^[-+]?\.(inf|Inf|INF)$"),
    list("-+0123456789."),
)


MOST_VALUES, MOST_BYTES, LARGEST = 100_000, 4_000_000, 2**63 - 1
"""Of a YAML text: values with every alias written out, bytes, and the largest whole number."""


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text; ``1e-3`` is a number.

    Raises UserError naming ``source`` and the line of the mistake, or what is too large, too many or too deep.
    """
    try:
        loader = _Loader(text)  # refuses control characters itself
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST_VALUES:
            raise UserError(
                f"{source}: holds more than {MOST_VALUES} values, those of its aliases counted. Write what is meant."
            )
        value = loader.construct_document(node)
        _refuse_huge(value, source)
    except RecursionError as error:
        raise UserError(f"{source}: values are nested too deeply, or an alias holds itself.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, IndexError) as error:  # what YAML takes for a number or a date and Python does not
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source}: a value in it is neither a number nor a date, though it looks like one.") from error
    return value


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node holds, those of an alias as often as it is named."""
    if id(node) in known:
        return known[id(node)]
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [one for pair in node.value for one in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    known[id(node)] = count = 1 + sum(_count(one, known) for one in inner)
    return count


def _refuse_huge(value: Any, source: str, where: str = "") -> None:
    if isinstance(value, dict):
        for key, one in value.items():
            _refuse_huge(key, source, where)
            _refuse_huge(one, source, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple | set):
        for one in value:
            _refuse_huge(one, source, where)
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{source}: {f'{where}: ' if where else ''}a whole number is larger than 2**63 - 1.")


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file; raises UserError where it is not a text or no YAML, or too large to be one."""
    require_file(path, "a YAML file")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES // 1_000_000} MB. Give a YAML file.")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file. Give a YAML file.") from error


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set ``section.key`` of nested settings in place; raises UserError where a part of the key is not a section."""
    *sections, last = current_key(key).split(".")
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
    return current_settings(values)


RENAMED = {"rivals": "baselines", "student.start": "student.initialisation"}
"""Keys of version 0.1 -> what they are called now. The old ones are read, with a notice, until 0.3."""


def current_key(key: str) -> str:
    """Return what a key is called now; an old one is answered with a notice."""
    if key not in RENAMED:
        return key
    warn(f"{key} is called {RENAMED[key]} now; version 0.3 will not know the old name.")
    return RENAMED[key]


def current_settings(values: Mapping[str, Any], *, notice: bool = True) -> dict[str, Any]:
    """Return nested settings with every key as it is called now; a new name beside the old one wins."""
    found = dict(values)
    for old in RENAMED:
        section, _, name = old.rpartition(".")
        inner = found.get(section) if section else found
        if isinstance(inner, Mapping) and name in inner:
            now = current_key(old) if notice else RENAMED[old]
            renamed = {now.rpartition(".")[2]: inner[name]} | {key: one for key, one in inner.items() if key != name}
            found = {**found, section: renamed} if section else renamed
    return found


class Change(NamedTuple):
    """One setting of a recipe, and what it shall be."""

    key: str
    """``section.key``."""
    value: Any


def as_change(written: str | Change) -> Change:
    """Return a change, also of ``section.key=value``, whose value is YAML; raises UserError for what is none."""
    if isinstance(written, Change):
        return written
    key, separator, text = written.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {written}: write section.key=value, for example --set teacher.rank=16")
    value = parse_yaml(text, f"--set {written}")
    if isinstance(value, str) and " #" in text and text.strip()[:1] not in "'\"":  # YAML drops the rest of the name
        value = text.strip()
    return Change(current_key(key.strip()), value)


def as_site(written: str) -> Change:
    """Return the change that ``NAME=FOLDER`` of a site stands for; raises UserError for what is none."""
    name, separator, folder = written.partition("=")
    if not separator or not name.strip() or not folder.strip():
        raise UserError(f"--site {written}: write NAME=FOLDER, for example --site north=/data/north")
    return Change(f"federated.sites.{name.strip()}.root", folder.strip())
