"""Pixels as the bytes of a PNG file, and back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def packed(pixels: np.ndarray, *, quickly: bool = False) -> bytes:
    """Return (H, W) or (H, W, 3) uint8 as a PNG file; ``quickly``: somewhat larger, in a fraction of the time."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1 if quickly else 6)
    return file.getvalue()


def unpacked(content: bytes) -> np.ndarray:
    """Return the pixels of a PNG file that :func:`packed` made."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def without_idle_colours(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) that is grey throughout as (H, W), anything else as it is."""
    grey = pixels.ndim == 3 and bool((pixels == pixels[..., :1]).all())
    return np.ascontiguousarray(pixels[..., 0]) if grey else pixels
