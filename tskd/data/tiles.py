"""Where square tiles lie in a large image, and how one is cut out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

OVERLAP = 0.5
"""Share of a tile's side that the next one covers again."""
MOST_TILES = 16
"""Of one image without labels, and of one with labels where it is learned from without them."""
Corner = tuple[int, int]
"""(top, left) of a tile in an image whose shorter sides were filled up to the tile's."""


def fits(size: tuple[int, ...], side: int) -> bool:
    """Return whether an image of (rows, columns) is no larger than one tile, and so is seen as a whole."""
    return max(size[:2]) <= side


def tile_corners(size: tuple[int, ...], side: int, overlap: float = OVERLAP) -> Iterator[Corner]:
    """Yield tiles that cover an image of (rows, columns), row by row; the last ones end at its edges.

    They lie as in MONAI's ``sliding_window_inference``.
    """
    step = max(int(side * (1 - overlap)), 1)
    rows, columns = (
        [min(number * step, length - side) for number in range(math.ceil((length - side) / step) + 1)]
        for length in (max(length, side) for length in size[:2])
    )
    for row in rows:
        for column in columns:
            yield row, column


def count_looks(size: tuple[int, ...], side: int | None) -> int:
    """Return how often a network looks at an image of (rows, columns) that is answered in tiles; None: as a whole."""
    return 1 if side is None or fits(size, side) else sum(1 for _ in tile_corners(size, side))


def middle_corner(size: tuple[int, ...], side: int) -> Corner:
    """Return the tile in the middle of an image of (rows, columns)."""
    top, left = (max(length - side, 0) // 2 for length in size[:2])
    return top, left


def fill_up(image: np.ndarray, side: int, value: int = 0) -> tuple[np.ndarray, Corner]:
    """Return an image (H, W, ...) whose sides are at least ``side``, and where in it the image begins."""
    missing = [max(side - length, 0) for length in image.shape[:2]]
    before = (missing[0] // 2, missing[1] // 2)
    if not any(missing):
        return image, before
    edges = [(first, all_ - first) for first, all_ in zip(before, missing)]
    return np.pad(image, (*edges, *[(0, 0)] * (image.ndim - 2)), constant_values=value), before


def cut_tile(image: np.ndarray, corner: Corner, side: int, value: int = 0) -> np.ndarray:
    """Return the tile (side, side, ...) of an image (H, W, ...); beyond its shorter sides it holds ``value``."""
    (top, left), (filled, _) = corner, fill_up(image, side, value)
    return np.ascontiguousarray(filled[top : top + side, left : left + side])
