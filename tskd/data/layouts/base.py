"""What a layout is: a way to find the records of a data set on disk and to read their images and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from tskd.data.images import IntensityWindow, image_size
from tskd.data.labels import listed
from tskd.errors import UserError
from tskd.types import UNLABELLED, Record

_SHOWN = 5
_MAX_COUNTED_CLASSES = 32  # above this, mask values are grey levels or noise rather than labels


@dataclass(frozen=True)
class LayoutOptions:
    """What a user may say about a data set; a layout ignores what does not concern it."""

    classes: tuple[str, ...] | None = None
    """Names of the foreground classes, in the order of their indices; None: what the layout or the data set says."""
    labels: Mapping[int, int] | None = None
    """Mask value (or ``labels.COLOUR | 0xRRGGBB``) to class index."""
    window: tuple[float, float] | None = None
    """Stored values (Hounsfield units for CT) that become black and white; None: the layout's stated rule."""
    annotator: int = 1
    """``kidneyus``: whose labels, 1 or 2."""
    structure: str = "capsule"
    """``kidneyus``: ``capsule`` (one class) or ``regions`` (central complex, medulla, cortex)."""
    sequence: str = "all"
    """``chaos_mr``: ``t1_in``, ``t1_out``, ``t2`` or ``all``."""
    axis: int = 2
    """``nifti``: the axis sliced along, in canonical orientation (0 left-right, 1 back-front, 2 foot-head)."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Return what a recipe's section says about reading; its ``labels`` are a budget, not a map."""
        return cls(**{one.name: settings[one.name] for one in fields(cls) if one.name != "labels"})

    @property
    def intensity(self) -> IntensityWindow | None:
        """The window as the readers take it."""
        return None if self.window is None else IntensityWindow(*self.window)


@dataclass(frozen=True)
class Description:
    """What a layout learned about one data set beyond its records."""

    name: str
    options: LayoutOptions
    """The given options with ``classes`` (and ``labels``, ``window`` where known) filled in."""
    notes: tuple[str, ...] = ()
    """What the user should know, such as the intensity scaling in use."""


@dataclass(frozen=True)
class Layout:
    """One way of keeping a data set on disk."""

    name: str
    classes: tuple[str, ...]
    """Default names of the foreground classes; empty where only the data set can say."""
    find: Callable[[Path, LayoutOptions], list[Record]]
    """All records below a root, sorted by id; raises UserError naming what is missing and the expected tree."""
    read_image: Callable[[Record, LayoutOptions], np.ndarray]
    """(H, W, 3) uint8 RGB."""
    read_mask: Callable[[Record, LayoutOptions], np.ndarray]
    """(H, W) uint8 class index 0..K at the image's size, ``UNLABELLED`` where nothing is stated."""
    fits: Callable[[Path], bool]
    """Tells by folder and file names whether a root is in this layout."""
    description: str
    """The expected tree, for messages and the documentation."""
    describe: Callable[[Path, LayoutOptions, Sequence[Record]], Description] | None = None
    """What this data set says about itself; None: the defaults above and no notes."""


def require_mask(record: Record) -> Path:
    """Return the mask's path; raises :class:`UserError` for an unlabelled record."""
    if record.mask is None:
        raise UserError(f"{record.id}: has no mask (the image is unlabelled).")
    return record.mask


def require_same_size(mask: np.ndarray, record: Record, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return ``mask`` (H, W) where it has the image's size; raises :class:`UserError` where it does not."""
    height, width = image_size(record.image) if size is None else size
    if mask.shape[:2] != (height, width):
        raise UserError(
            f"{record.mask}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, its image {record.image.name} is "
            f"{width}x{height}. Both must be equal; resize masks with nearest neighbour only, or correct the pair."
        )
    return mask


def refuse_problems(problems: Sequence[tuple[Path, str]], root: Path, description: str) -> None:
    """Raise one :class:`UserError` naming the first problems, if there are any."""
    if not problems:
        return
    shown = "\n".join(f"  {path}: {message}" for path, message in problems[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more: `tskd check` lists them all" if len(problems) > _SHOWN else ""
    raise UserError(f"{root}: {len(problems)} problem(s) in the data folder:\n{shown}{more}\nExpected:\n{description}")


def missing(root: Path, what: str, description: str) -> UserError:
    """Return the error for a root in which ``what`` was not found."""
    return UserError(f"{root}: {what} not found. Expected:\n{description}")


def visible(paths: Sequence[Path]) -> list[Path]:
    """Return the paths that a user put there, sorted: without hidden files and what file managers leave behind."""
    return sorted(
        path for path in paths if not path.name.startswith(".") and path.name not in ("Thumbs.db", "desktop.ini")
    )


BLIND_TEST_NOTE = "the official test part has no labels here: no official split is used, its images count as unlabelled"


def without_blind_test(records: Sequence[Record]) -> list[Record]:
    """Return the records, without any split where the official test part has no labels and so cannot score anything."""
    tested = [record for record in records if record.split == "test"]
    if any(record.mask is not None for record in tested):
        return list(records)
    return [replace(record, split=None) for record in records]


def with_classes(options: LayoutOptions, defaults: tuple[str, ...]) -> LayoutOptions:
    """Fill in a layout's fixed classes; the user may rename them, not change their number (:class:`UserError`)."""
    names = options.classes or defaults
    if len(names) != len(defaults):
        raise UserError(
            f"classes: {len(names)} given ({', '.join(names)}), this data set has {len(defaults)} "
            f"({', '.join(defaults)}). Give one name for each, or leave them out."
        )
    return replace(options, classes=names)


def class_names(count: int) -> tuple[str, ...]:
    """Return stand-in names for ``count`` foreground classes, at least one."""
    return ("foreground",) if count <= 1 else tuple(f"class{index}" for index in range(1, count + 1))


def window_note(window: tuple[float, float]) -> str:
    """Return what is told of a stated window."""
    return f"intensities: {window[0]:g} becomes black, {window[1]:g} white"


def window_notes(options: LayoutOptions) -> tuple[str, ...]:
    """Return what is told where a window is stated; without one 8-bit images stay as they are."""
    return () if options.window is None else (window_note(options.window),)


def classes_by_map(labels: Mapping[int, int]) -> tuple[tuple[str, ...], str]:
    """Return class names and a note from a map of mask values to class indices."""
    count = max((index for index in labels.values() if index != UNLABELLED), default=0)
    return class_names(count), f"classes not named: {count} by the label map of dataset.yaml"


def classes_by_values(found: Sequence[int], source: Path, count: int) -> tuple[tuple[str, ...], str]:
    """Return class names and a note from the values (sorted) that all ``count`` masks together hold.

    0/1 and 0/255 (one mask this, another that) are one class, 0..K without a gap are K classes.
    Raises :class:`UserError` for anything else.
    """
    if set(found) <= {0, 1, 255}:
        return class_names(1), f"classes not named: one, by the values of {count} masks"
    if found[-1] <= _MAX_COUNTED_CLASSES and set(range(1, found[-1] + 1)) <= set(found):
        return class_names(found[-1]), f"classes not named: {found[-1]}, by the values of {count} masks"
    raise UserError(
        f"{source}: the masks hold the values {listed(found)}, which do not say how many classes there are. "
        "Write dataset.yaml with `classes: [name, ...]` and, where the values are not 0 to K (or 0 and 255 for one "
        "class), `labels: {value: class}`. Values smeared around 0 and 255 come from JPEG: save masks as PNG."
    )


def single_subfolder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the first folder of ``root`` that has one of ``names``, whatever its case; None where there is none."""
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if path.is_dir() and path.name.lower() in names:
            return path
    return None
