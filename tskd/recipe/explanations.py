"""What is wrong with a setting, in words: where it is, what is allowed there, and which key was probably meant."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

Kind = type[BaseModel]
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12


def describe_mistake(kind: Kind, problem: Any) -> str:
    """Return one of the errors that pydantic found in settings of a kind as a line for the person who wrote them."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        allowed = sorted(_section_at(kind, problem["loc"][:-1]).model_fields)
        return f"{where}: unknown key. {_suggest(kind, where, allowed)}Allowed here: {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"{where}: is missing"
    return f"{where}: {problem['msg']} (given: {shown(problem['input'])})" if where else str(problem["msg"])


def shown(value: Any) -> str:
    """Return a value as a message repeats it: cut short where it is long."""
    return _SHORT.repr(value)


def _suggest(kind: Kind, where: str, allowed: Sequence[str]) -> str:
    """Ask for the nearest key of the same section, or else for those of that name in other sections."""
    section, dot, key = where.rpartition(".")
    near = [section + dot + name for name in difflib.get_close_matches(key, allowed, n=1)]
    meant = near or [path for path in _paths(kind) if path.rpartition(".")[2] == key]
    return f"Did you mean {' or '.join(meant)}? " if meant else ""


def _paths(kind: Kind, before: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield before + name
        inner = _section_in(field.annotation)
        if inner and inner is not kind:  # a list of sections of the same kind has the same keys
            yield from _paths(inner, f"{before}{name}.")


def _section_at(kind: Kind, location: Sequence[Any]) -> Kind:
    for part in location:
        if part not in kind.model_fields:  # a place in a list of sections, or the name of one in a mapping
            continue
        inner = _section_in(kind.model_fields[part].annotation)
        assert inner is not None, f"{part} has keys, so it is a section"
        kind = inner
    return kind


def _section_in(annotation: Any) -> Kind | None:
    """Return the section that a field holds, also one that may be None or one of a mapping; None: it holds a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _section_in(one))), None)
