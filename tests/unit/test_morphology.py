"""Areas shrink and grow as scipy's do, in images and volumes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tskd.morphology import dilated, eroded


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_scipy(seed: int) -> None:
    draw = np.random.default_rng(seed)
    region = draw.random(draw.integers(1, 16, 2 + seed % 2)) < (0.4, 0.8, 0.97)[seed % 3]
    times = 1 + seed % 3
    assert np.array_equal(eroded(region, times), ndimage.binary_erosion(region, iterations=times))
    assert np.array_equal(dilated(region), ndimage.binary_dilation(region))
