"""The eight EXIF orientations against Pillow's own turning of the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from tskd.data.exif import ORIENTATION, orientation_of, turned
from tskd.data.images import image_size, read_image, read_mask_indices

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


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_a_turned_tiff_keeps_its_pixels(orientation: int, compression: str | None, tmp_path: Path) -> None:
    """Pillow 13.0 scrambles those that are turned a quarter and not compressed, and states their size as shown."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STORED, compression=compression, extratags=[(ORIENTATION, "H", 1, orientation, True)])
    expected = turned(STORED, orientation)
    np.testing.assert_array_equal(read_mask_indices(path), expected)
    np.testing.assert_array_equal(read_image(path)[..., 0], expected)
    assert image_size(path) == expected.shape
