"""A mask as it belongs to its image: turned as a photograph is, of the same size, and where its label was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from tskd.data.exif import exchanges_sides, orientation_of, turned
from tskd.data.images import image_size, label_is_in_alpha, read_mask_indices
from tskd.data.layouts.base import Fault, is_image, require_mask, require_same_size
from tskd.types import Record

Oddity = Literal["turned", "perhaps turned", "alpha", "overlap"]
"""What a reader of a pair should know: its mask was turned with the photograph by EXIF; whether it had to be cannot be
told from the sizes; its label is in alpha; its classes lie over one another."""


def read_paired_mask(record: Record, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask's raw values, (H, W) or (H, W, 3), as its image is shown; ``size`` is the image's, where it is known.

    A photograph may be stored turned, with its right way up in EXIF. A mask that is not (a PNG) and has the size of the
    stored pixels was drawn on these, and is turned alike. Raises :class:`UserError` for another size.
    """
    raw = read_mask_indices(require_mask(record))
    if _turn(record) == "turned":
        raw = turned(raw, orientation_of(record.image))
    return require_same_size(raw, record, size)


def oddities(record: Record) -> Iterator[Oddity]:
    """Yield what is odd about a pair of image files; raises :class:`UserError` where its mask cannot be read."""
    if record.mask is None or not is_image(record.mask):
        return
    if turn := _turn(record):
        yield turn
    if label_is_in_alpha(record.mask):
        yield "alpha"


def notes_on(found: Iterable[Oddity]) -> tuple[str, ...]:
    """Return in words what was done about the oddities of a data set."""
    found = list(found)
    notes = {
        "turned": "EXIF: {} masks of the stored size are turned with their photographs, as EXIF states",
        "alpha": "alpha: {} masks have one colour throughout; the label is taken from alpha, where it is opaque",
        "overlap": "overlap: in {} masks classes lie over one another; the one named later in `classes` is kept",
    }
    return tuple(text.format(found.count(kind)) for kind, text in notes.items() if kind in found)


def unclear_turn(mask: Path) -> Fault:
    """Return the warning for a mask of which sizes do not tell whether it was drawn on the stored or shown pixels."""
    return Fault(
        mask,
        "its photograph is turned by EXIF, and sizes do not tell whether the mask was drawn on the turned photograph, "
        "as is assumed. Look at both, as the report of a run draws them; if they differ, save the photograph turned, "
        "without EXIF.",
        "warning",
    )


def _turn(record: Record) -> Literal["turned", "perhaps turned"] | None:
    if record.mask is None or not (is_image(record.image) and is_image(record.mask)):
        return None
    orientation = orientation_of(record.image)
    if orientation == 1 or orientation_of(record.mask) != 1:  # a mask with EXIF of its own is turned by that
        return None
    shown, mask = image_size(record.image), image_size(record.mask)
    stored = shown[::-1] if exchanges_sides(orientation) else shown
    if mask == stored:
        return "perhaps turned" if stored == shown else "turned"
    return None
