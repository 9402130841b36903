"""One image as people have it in Python, as the pixels that readers give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from tskd.data.intensity import IntensityWindow, to_rgb
from tskd.errors import UserError


def as_pixels(item: Any, window: IntensityWindow | None = None) -> np.ndarray:
    """Return one image as (H, W, 3) uint8: a PIL image, an array (H, W[, C]), a tensor (C, H, W), the first of a pair.

    A PIL image is read as its file is, by the ``window`` where there is one; arrays and tensors are shown already:
    uint8, or floats in [0, 1]. Raises UserError for anything else.
    """
    if isinstance(item, Image.Image):
        from tskd.data.images import from_pillow

        return from_pillow(item, intensity=window)
    if isinstance(item, tuple | list):
        return as_pixels(_first(item), window)
    if isinstance(item, dict):
        return as_pixels(item["image"] if "image" in item else _first(item.values()), window)
    values = _channels_last(item)
    if values.dtype.kind not in "buif":
        raise UserError(f"an image is a PIL image, an array or a tensor of numbers, not {type(item).__name__}.")
    if values.size == 0 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 2, 3, 4)):
        raise UserError(f"an image of shape {values.shape}: (H, W), (H, W, C) or a tensor (C, H, W) is needed.")
    if values.dtype == np.uint8:
        return to_rgb(values)
    if values.dtype.kind != "f" or not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise UserError(
            f"an image of {values.dtype} from {values.min():g} to {values.max():g}: give uint8, or floats in [0, 1]."
        )
    return to_rgb(np.rint(values * 255).astype(np.uint8))


def _first(items: Iterable[Any]) -> Any:
    for item in items:
        return item
    raise UserError("an image is needed; nothing was given.")


def _channels_last(item: Any) -> np.ndarray:
    """Return an array (H, W[, C]): tensors have their channels first, arrays last."""
    if hasattr(item, "detach"):
        told = item.detach().cpu()
        values = (told.float() if str(told.dtype) == "torch.bfloat16" else told).numpy()  # NumPy has no such numbers
        return np.moveaxis(values, 0, -1) if values.ndim == 3 else values
    return np.asarray(item)
