"""The eight EXIF orientations against Pillow's own turning of the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tskd.data.exif import ORIENTATION, orientation_of, turned
from tskd.data.images import image_size

STORED = np.random.default_rng(0).integers(0, 256, (5, 8), np.uint8)


@pytest.mark.parametrize("orientation", range(10))
def test_turned_is_what_pillow_shows(orientation: int, tmp_path: Path) -> None:
    """Red where two of the turns are exchanged; 0 and 9 are no orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(STORED).save(path, exif=exif)
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(turned(STORED, orientation), shown)
    np.testing.assert_array_equal(turned(np.repeat(STORED[..., None], 3, 2), orientation)[..., 1], shown)
    assert orientation_of(path) == (orientation if orientation in range(2, 9) else 1)
    assert image_size(path) == shown.shape
