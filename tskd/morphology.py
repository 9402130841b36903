"""Areas grown and shrunk by their nearest neighbours: 4 in an image, 6 in a volume."""

from __future__ import annotations

import numpy as np


def eroded(region: np.ndarray, times: int = 1) -> np.ndarray:
    """Return a bool array without the cells that touch its outside, or its border, ``times`` over."""
    for _ in range(times):
        region = _shrunk(region)
    return region


def dilated(region: np.ndarray) -> np.ndarray:
    """Return a bool array and the cells that touch it."""
    return ~_shrunk(~region, beyond=True)


def _shrunk(region: np.ndarray, *, beyond: bool = False) -> np.ndarray:
    """Return the cells all of whose neighbours are in the region too; ``beyond`` says what lies outside the array."""
    padded = np.pad(region, 1, constant_values=beyond)
    inner = (slice(1, -1),) * region.ndim
    kept = region.copy()
    for axis in range(region.ndim):
        for moved in (slice(None, -2), slice(2, None)):
            kept &= padded[(*inner[:axis], moved, *inner[axis + 1 :])]
    return kept
