"""Coded concepts: what a class is in a terminology such as SNOMED CT, as DICOM states it (PS3.3 8.8)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

SNOMED = "SCT"
"""How DICOM designates SNOMED CT (PS3.16 8)."""

_FORM = "[code, scheme, meaning], e.g. [10200004, SCT, Liver]"
_LONGEST = {"code": 64, "scheme": 16, "meaning": 64}
_SNOMED_FORM = re.compile(r"[1-9][0-9]{5,17}")


class Code(NamedTuple):
    """A concept of a terminology."""

    value: str
    scheme: str
    """Designator of the coding scheme, such as ``SCT`` or ``DCM``."""
    meaning: str


class ClassCode(NamedTuple):
    """What a segment is: PS3.3 C.8.20.2."""

    category: Code
    type: Code


TISSUE = Code("85756007", SNOMED, "Tissue")
"""Category and type of a class without a code, as 3D Slicer has it: what it is, its name says."""
UNCODED = ClassCode(TISSUE, TISSUE)


def parse_class_code(value: Any) -> ClassCode:
    """Return what is stated of a class: a triplet for its type, or a mapping with ``type`` and ``category``.

    Raises ValueError whose text says what is wrong.
    """
    if not isinstance(value, Mapping):
        return ClassCode(TISSUE, parse_code(value))
    if unknown := [str(key) for key in value if key not in ClassCode._fields]:
        raise ValueError(f"holds {', '.join(unknown)}, and may hold {' and '.join(ClassCode._fields)}")
    if "type" not in value:
        raise ValueError(f"lacks a type: {_FORM}")
    return ClassCode(parse_code(value.get("category", TISSUE)), parse_code(value["type"]))


def parse_code(value: Any) -> Code:
    """Return a triplet as a concept; raises ValueError whose text says what is wrong."""
    parts = list(value) if isinstance(value, list | tuple) else []
    if len(parts) != 3 or any(isinstance(part, bool) or not isinstance(part, str | int) for part in parts):
        raise ValueError(f"must be {_FORM}")
    code = Code(*(str(part).strip() for part in parts))
    for what, text in zip(_LONGEST, code, strict=True):
        if not 0 < len(text) <= _LONGEST[what] or "\\" in text or not text.isprintable():
            raise ValueError(f"has a {what} that is empty, longer than {_LONGEST[what]} characters or no plain text")
    if code.scheme == SNOMED and not is_snomed(code.value):
        raise ValueError(
            f"holds {code.value}, which is no SNOMED CT identifier: its check digit is wrong. Look for a digit too "
            "many, missing or exchanged"
        )
    return code


def is_snomed(identifier: str) -> bool:
    """Tell whether a text has the form and the check digit of a SNOMED CT identifier.

    6 to 18 digits, the last one after J. Verhoeff (1969), as the SNOMED CT Release File Specification 5.5 has it.
    """
    if _SNOMED_FORM.fullmatch(identifier) is None:
        return False
    check = 0
    for place, digit in enumerate(reversed(identifier)):
        check = _dihedral(check, _permuted(int(digit), place % 8))
    return check == 0


def _dihedral(one: int, other: int) -> int:
    """Return the product in the group of turns (0 to 4) and reflections (5 to 9) of a pentagon."""
    turn = one % 5 + other % 5 if one < 5 else one % 5 - other % 5
    return turn % 5 + (5 if (one < 5) != (other < 5) else 0)


def _permuted(digit: int, times: int) -> int:
    for _ in range(times):
        digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
    return digit
