"""TIFF files to arrays: stored values, what black and white are among them, and how the picture is turned.

Pixels are decoded by tifffile and imagecodecs, which know every depth, read the checksums of deflated strips to their
end, and refuse strips that are too short. Fax and JPEG, which tifffile knows in part, are left to Pillow.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from tskd.data.exif import ORIENTATION, exchanges_sides, turned
from tskd.data.intensity import IntensityWindow, to_uint8
from tskd.data.labels import names_classes
from tskd.data.reading import MAX_PIXELS, require_size
from tskd.errors import UserError

_PILLOWS = (2, 3, 4, 6, 7)  # fax and JPEG
_DEFLATED = (8, 32946)
_MAX_SAMPLES = 4

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it remarks on a file would reach the terminal


@dataclass(frozen=True)
class Tiff:
    """One page as stored, turned as it is shown."""

    values: np.ndarray
    """(H, W) or (H, W, samples); bool where they are of one bit."""
    bits: int
    """Of a sample, as stated."""
    white_is_zero: bool
    palette: np.ndarray | None
    """(N, 3) uint8; None: values are no indices."""

    def shown(self, window: IntensityWindow | None, path: Path) -> np.ndarray:
        """Return 8-bit levels by ``window``, else by the range that the number of bits states; high is bright."""
        if self.palette is not None:
            return self.palette[self.values.astype(np.intp)]
        odd = self.values.dtype.kind == "u" and self.bits not in (8, 16)
        stated = IntensityWindow(0, 2**self.bits - 1) if odd and self.bits < 16 else None
        grey = to_uint8(self.values, window or stated, path)
        return 255 - grey if self.white_is_zero else grey

    def labels(self) -> np.ndarray:
        """Return what a mask's pixels say: indices of a palette, unless it is black and white, else what is shown."""
        if self.palette is not None:
            used = self.palette[np.unique(self.values)]
            if names_classes(self.palette):
                return self.values
            black_and_white = np.isin(used, (0, 255)).all() and (used == used[:, :1]).all()
            return self.palette[self.values][..., 0] if black_and_white else self.values
        if not self.white_is_zero or self.values.dtype.kind not in "bu":
            return self.values
        if self.values.dtype == bool:
            return ~self.values
        return ((1 << self.bits) - 1 - self.values).astype(self.values.dtype)


def is_tiff(path: Path) -> bool:
    """Tell by the magic bytes whether a file is TIFF, BigTIFF included."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff(path: Path, index: int | None) -> Tiff | None:
    """Read one page, the only one where ``index`` is None; None for a kind that Pillow decodes better.

    Those are colours other than RGB, fax and JPEG. Raises :class:`UserError` for a page that is not there and for what
    is no picture, and whatever tifffile raises on a damaged file.
    """
    with path.open("rb") as stored, tifffile.TiffFile(stored) as file:
        require_page(len(file.pages) if index is not None else _pictures(file), path, index)
        page = file.pages[index or 0]
        if page.compression in _PILLOWS and page.bitspersample <= 8:
            return None
        _require_picture(page, path)
        if page.photometric > tifffile.PHOTOMETRIC.PALETTE:
            if page.compression in _DEFLATED and not page.is_subsampled:
                page.asarray()  # for the checksums, which Pillow does not read
            return None
        values = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1:
            values = np.moveaxis(values, 0, -1)
        return Tiff(
            turned(
                values.reshape(page.imagelength, page.imagewidth, *values.shape[2:]), page.tags.valueof(ORIENTATION, 1)
            ),
            page.bitspersample,
            page.photometric == tifffile.PHOTOMETRIC.MINISWHITE,
            _palette(page),
        )


def tiff_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the first page as it is shown."""
    with path.open("rb") as stored, tifffile.TiffFile(stored) as file:
        page = file.pages[0]
        height, width = page.imagelength, page.imagewidth
        return (width, height) if exchanges_sides(page.tags.valueof(ORIENTATION, 1)) else (height, width)


def _pictures(file: tifffile.TiffFile) -> int:
    """Return how many pictures a file holds: ImageJ writes a large stack as one page, behind which the others lie.

    Its note alone does not tell: programs that take a stack apart leave it in each of the parts.
    """
    stated, page = (file.imagej_metadata or {}).get("images"), file.pages[0]
    if not isinstance(stated, int) or page.compression != tifffile.COMPRESSION.NONE:
        return len(file.pages)
    are_there = min(page.dataoffsets, default=0) + stated * page.nbytes <= file.filehandle.size
    return max(len(file.pages), stated if are_there else 1)


def require_page(pages: int, path: Path, index: int | None) -> None:
    """Raise :class:`UserError` where several pages leave open which is meant, and for one that is not there."""
    if index is None and pages > 1:
        raise UserError(
            f"{path}: holds {pages} pages or frames, and which of them is the image cannot be known. "
            "Save each page as a file of its own."
        )
    if index is not None and not 0 <= index < pages:
        raise UserError(f"{path}: page {index} asked for, the file holds {pages} (0 to {pages - 1}).")


def _require_picture(page: tifffile.TiffPage, path: Path) -> None:
    """Refuse, before anything is allocated, what is no picture and what the file cannot hold."""
    require_size(page.imagelength, page.imagewidth, path)
    numbers = page.dtype is not None and page.dtype.kind in "buif"
    if page.imagedepth > 1 or page.samplesperpixel > _MAX_SAMPLES or not numbers:
        raise UserError(
            f"{path}: holds {page.samplesperpixel} channels of {page.dtype} in {page.imagedepth} layers; an image has "
            "1 (grey) or 3 (colours), with or without alpha, of whole numbers or floats. Save the picture as PNG."
        )
    if page.is_tiled and page.tilelength * page.tilewidth > MAX_PIXELS:
        raise UserError(f"{path}: states a tile of {page.tilewidth}x{page.tilelength} pixels. Save it again.")
    if not _is_whole(page):
        raise UserError(f"{path}: is cut short: part of it is missing. Copy it again from the source.")


def _is_whole(page: tifffile.TiffPage) -> bool:
    """Tell whether all that a page states lies in the file; tifffile passes over tags and strips that do not."""
    file, form = page.parent.filehandle, page.parent.tiff
    file.seek(page.offset)
    (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    strips = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    return (
        len(page.tags) >= tags
        and bool(strips)
        and all(count > 0 and offset + count <= file.size for offset, count in strips)
        and (page.compression != tifffile.COMPRESSION.NONE or page.nbytes <= 8 * file.size)
    )


def _palette(page: tifffile.TiffPage) -> np.ndarray | None:
    """Return the colours of a palette in 8 bits; tables are of 16, or of 8 where no number is above 255 (libtiff)."""
    if page.photometric != tifffile.PHOTOMETRIC.PALETTE:
        return None
    table = np.asarray(page.colormap)
    return np.ascontiguousarray((table >> 8 if table.max() > 255 else table).T.astype(np.uint8))
