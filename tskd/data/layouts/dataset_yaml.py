"""dataset.yaml: what a data folder says about itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tskd.data.codes import ClassCode, parse_class_code
from tskd.data.files import is_beside
from tskd.data.labels import COLOUR, colour_key
from tskd.data.layouts.base import LayoutOptions
from tskd.errors import UserError
from tskd.recipe.explanations import shown
from tskd.recipe.files import read_yaml
from tskd.types import UNLABELLED

DATASET_YAML = "dataset.yaml"


@dataclass(frozen=True)
class DatasetFile:
    """The content of dataset.yaml; None where it says nothing."""

    name: str | None = None
    classes: tuple[str, ...] | None = None
    """Names of the foreground classes 1..K."""
    spacing: tuple[float, ...] | None = None
    """Millimetres per pixel (row, column), and where a third is given from slice to slice."""
    labels: Mapping[int, int] | None = None
    """Mask value or ``COLOUR | 0xRRGGBB`` to class index."""
    window: tuple[float, float] | None = None
    """Stored values that become black and white."""
    case_pattern: str | None = None
    """Regular expression whose first group, searched in the id (of volumes: in their name), is the case."""
    codes: Mapping[str, ClassCode] | None = None
    """Class name to what it is in a terminology, for DICOM Segmentations."""


def read_dataset_yaml(root: Path) -> DatasetFile:
    """Read root/dataset.yaml, all None where it is absent; raises :class:`UserError` for unknown keys or values."""
    path = root / DATASET_YAML
    if not is_beside(path):
        return DatasetFile()
    content = read_yaml(path) or {}
    allowed = [field.name for field in fields(DatasetFile)]
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be `key: value` lines. Allowed keys: {', '.join(allowed)}.")
    unknown = [str(key) for key in content if key not in allowed]
    if unknown:
        raise UserError(f"{path}: unknown key {', '.join(unknown)}. Allowed: {', '.join(allowed)}.")
    values: dict[str, Any] = {
        key: _PARSERS[key](value, f"{path}: {key}") for key, value in content.items() if value is not None
    }
    return DatasetFile(**values)


def with_stated(options: LayoutOptions, stated: DatasetFile) -> LayoutOptions:
    """Return the options, filled in from dataset.yaml where the user said nothing."""
    labels = options.labels if options.labels is not None else stated.labels
    return replace(
        options, classes=options.classes or stated.classes, labels=labels, window=options.window or stated.window
    )


def codes_of(classes: Sequence[str] | None, stated: DatasetFile, root: Path) -> Mapping[str, ClassCode]:
    """Return the stated codes of classes; raises :class:`UserError` for a code of none of them."""
    codes = stated.codes or {}
    if unknown := [name for name in codes if name not in (classes or ())]:
        raise UserError(
            f"{root / DATASET_YAML}: codes names {shown(unknown[0])}, which is no class here "
            f"({', '.join(classes or ())}). Write it as the class is written, or remove it."
        )
    return codes


def with_file(options: LayoutOptions, root: Path) -> LayoutOptions:
    """Return the options with what the dataset.yaml of volumes says; without it where describing will refuse it."""
    try:
        return with_stated(options, read_volumes_yaml(root))
    except UserError:
        return options


def read_volumes_yaml(root: Path) -> DatasetFile:
    """Read the dataset.yaml of volumes; raises :class:`UserError` too for what volumes say themselves."""
    stated = read_dataset_yaml(root)
    if stated.spacing is not None:
        raise UserError(
            f"{root / DATASET_YAML}: spacing is for single images (--layout folder, data.layout). A volume or series "
            "states its own. Remove it, or choose that layout."
        )
    return stated


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str | int):
        raise UserError(f"{where} must be a text, not {shown(value)}.")
    return str(value)


def _classes(value: Any, where: str) -> tuple[str, ...]:
    names = [str(name) for name in value] if isinstance(value, list) else []
    if not names or len(set(names)) != len(names) or any(isinstance(name, dict | list) for name in value):
        raise UserError(
            f"{where} must be a list of different foreground class names, e.g. [liver, spleen], not {shown(value)}."
        )
    return tuple(names)


def _numbers(value: Any) -> tuple[float, ...]:
    """Return a list of numbers; empty where it is none."""
    numbers = value if isinstance(value, list) else []
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        return ()
    return tuple(float(number) for number in numbers)


def _spacing(value: Any, where: str) -> tuple[float, ...]:
    spacing = _numbers(value)
    if len(spacing) not in (2, 3):
        raise UserError(f"{where} must be two numbers, or three for slices, e.g. [0.7, 0.7, 5], not {shown(value)}.")
    if not all(0 < number < float("inf") for number in spacing):
        raise UserError(
            f"{where} is in millimetres per pixel (row, column) and to the next slice, all above 0, not {shown(value)}."
        )
    return spacing


def _window(value: Any, where: str) -> tuple[float, float]:
    numbers = _numbers(value)
    if len(numbers) != 2:
        raise UserError(f"{where} must be two numbers, e.g. [0, 255], not {shown(value)}.")
    low, high = numbers
    if not low < high:
        raise UserError(f"{where} must be [low, high] with low below high, not {shown(value)}.")
    return low, high


def _labels(value: Any, where: str) -> dict[int, int]:
    if not isinstance(value, dict) or not value:
        raise UserError(
            f'{where} must map mask values to classes, e.g. {{63: 1}} or {{"#ff0000": 1}}, not {shown(value)}.'
        )
    labels = {_label_key(key, where): _class_index(index, where) for key, index in value.items()}
    if len({key >= COLOUR for key in labels}) > 1:
        raise UserError(f"{where} mixes numbers and colours; a data set has one or the other.")
    return labels


def _label_key(key: Any, where: str) -> int:
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    try:
        return colour_key(str(key))
    except ValueError as error:
        raise UserError(
            f'{where}: {shown(key)} is neither a whole number nor a colour like "#ff0000" (in quotes).'
        ) from error


def _class_index(index: Any, where: str) -> int:
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= UNLABELLED:
        raise UserError(
            f"{where}: {shown(index)} is not a class index (0 background, 1 to K, {UNLABELLED} unlabelled)."
        )
    return index


def _case_pattern(value: Any, where: str) -> str:
    try:
        groups = re.compile(str(value)).groups
    except re.error as error:
        raise UserError(f"{where}: {shown(value)} is not a regular expression ({error}).") from error
    if groups < 1:
        raise UserError(f"{where}: {shown(value)} needs a group for the case, e.g. '^(patient\\d+)_'.")
    return str(value)


def _codes(value: Any, where: str) -> dict[str, ClassCode]:
    if not isinstance(value, dict):
        raise UserError(
            f"{where} must map classes to codes, e.g. {{liver: [10200004, SCT, Liver]}}, not {shown(value)}."
        )
    codes = {}
    for name, stated in value.items():
        try:
            codes[str(name)] = parse_class_code(stated)
        except ValueError as error:
            raise UserError(f"{where}: {shown(name)} {error}. Correct it, or remove it: a code is optional.") from None
    return codes


_PARSERS = {
    "name": _name,
    "classes": _classes,
    "spacing": _spacing,
    "labels": _labels,
    "window": _window,
    "case_pattern": _case_pattern,
    "codes": _codes,
}
