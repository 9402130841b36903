"""Cells of CSV files: names come from other people, and spreadsheets run a text that begins like a formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
ENCODING_ERRORS = "backslashreplace"
"""How a name that is not a text (bytes of a file name that are not UTF-8) is written into a UTF-8 file."""


def harmless(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with an apostrophe before every text that a spreadsheet would take for a formula (OWASP)."""
    return {key: f"'{value}" if _is_formula(value) else value for key, value in row.items()}


def original(value: str) -> str:
    """Return a text as it was before :func:`harmless`."""
    return value[1:] if value[:1] == "'" and _is_formula(value[1:]) else value


def _is_formula(value: Any) -> bool:
    if not isinstance(value, str) or not value.lstrip("'").startswith(_FORMULA):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False
