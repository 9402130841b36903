"""The orientation that a photograph's metadata states: its pixels are stored one way and shown another.

Source: Exif 2.32, tag 0x0112; TIFF 6.0, tag 274, the same eight values.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from tskd.data.reading import reading
from tskd.errors import UserError

ORIENTATION = 0x0112
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_KEYWORDS = (b"Raw profile type", b"XML:com.adobe.xmp", b"exif")
_KEYWORD = max(map(len, _KEYWORDS))
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Return stored pixels, (H, W) or (H, W, C), as they are shown; what is no orientation leaves them as they are."""
    return np.ascontiguousarray(_TURNS.get(orientation, lambda same: same)(stored))


def exchanges_sides(orientation: int) -> bool:
    """Tell whether rows become columns."""
    return orientation in (5, 6, 7, 8)


def orientation_of(path: Path) -> int:
    """Return the orientation that a file states, 1 (as stored) where it states none or is no image of Pillow's."""
    try:
        with reading(path), Image.open(path) as image:
            stated = stated_orientation(image)
            return stated if stated in _TURNS else 1
    except UserError:  # its own reading says what is wrong with it
        return 1


def stated_orientation(image: Image.Image) -> int:
    """Return what a file that Pillow has opened states as its orientation, 1 where it states none.

    Pillow decodes a PNG for it, since metadata may follow the pixels; most have none at all, which their heads tell.
    """
    if isinstance(image, PngImageFile) and image.fp is not None and not _may_be_turned(image.fp):
        return 1
    stated: int = image.getexif().get(ORIENTATION, 1)
    return stated


def _may_be_turned(file: IO[bytes]) -> bool:
    """Tell whether a PNG has a chunk in which Pillow looks for an orientation; the file stays where it is read."""
    place = file.tell()
    try:
        file.seek(len(b"\x89PNG\r\n\x1a\n"))
        while len(head := file.read(8 + _KEYWORD)) >= 8:
            kind, keyword = head[4:8], head[8:]
            if kind == b"eXIf" or (kind in _TEXTS and keyword.startswith(_KEYWORDS)):
                return True
            file.seek(int.from_bytes(head[:4]) + 4 + 8 - len(head), os.SEEK_CUR)
        return False
    finally:
        file.seek(place)
