"""Masks whose label is in the alpha channel: one colour throughout, opaque where the label is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tskd.errors import UserError


def label_of_alpha(image: Image.Image | np.ndarray, path: Path) -> np.ndarray | None:
    """Return the label of a mask, (H, W) uint8 0 and 255, where alpha alone holds it; None where colour does.

    An array is (H, W) or (H, W, samples), alpha the last of two or four. Raises :class:`UserError` for more than two
    levels of alpha, and where all that is not black is transparent: colour and alpha then say the opposite.
    """
    parts = _with_alpha(image)
    if parts is None:
        return None
    colours, alpha = parts
    if (colours == colours[0, 0]).all():
        return _two_levels(alpha, path)
    coloured = np.asarray(colours.any(axis=-1))
    if coloured.any() and not coloured[alpha > 0].any():
        raise UserError(
            f"{path}: what is not black in it is transparent, so colour and alpha contradict each other. "
            "Save the mask again as a grey PNG without alpha."
        )
    return None


def _with_alpha(image: Image.Image | np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return colours (H, W, C) and alpha (H, W) where alpha has more than one value."""
    if isinstance(image, np.ndarray):
        values = image if image.ndim == 3 and image.shape[-1] in (2, 4) else None
    else:
        values = np.asarray(image.convert("RGBA")) if image.has_transparency_data else None
    if values is None or (values[..., -1] == values[0, 0, -1]).all():
        return None
    return values[..., :-1], values[..., -1]


def _two_levels(alpha: np.ndarray, path: Path) -> np.ndarray:
    levels = np.unique(alpha)
    if len(levels) > 2:
        raise UserError(
            f"{path}: has one colour throughout, and {len(levels)} levels of alpha (smooth edges): which of them are "
            "the label cannot be known. Save the mask as a grey PNG without alpha, 0 and 255."
        )
    return np.where(alpha == levels[1], np.uint8(255), np.uint8(0))
