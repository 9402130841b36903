"""The orientation that a photograph's metadata states: its pixels are stored one way and shown another.

Source: Exif 2.32, tag 0x0112; TIFF 6.0, tag 274, the same eight values.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tskd.data.reading import reading
from tskd.errors import UserError

ORIENTATION = 0x0112
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
            stated = image.getexif().get(ORIENTATION, 1)
            return stated if stated in _TURNS else 1
    except UserError:  # its own reading says what is wrong with it
        return 1
