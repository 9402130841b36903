"""Stored values to 8-bit grey levels: the scaling is stated, never guessed from what an image happens to hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tskd.errors import UserError


@dataclass(frozen=True)
class IntensityWindow:
    """The stored values that become black and white; linear between, clipped outside.

    The unit is the one stored in the file after its own rescaling (Hounsfield units for CT).
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise UserError(f"intensity window ({self.low}, {self.high}): give two finite numbers, low below high")


PLAIN_RULE = (
    "intensities: 8-bit images as they are, others by the range that their bits state (16 bit: 0 becomes black, 65535 "
    "white), floats by 0 to 1; data.window replaces it"
)
"""What is told of images without a window."""
FULL_UINT16 = IntensityWindow(0, 65535)
UNIT_RANGE = IntensityWindow(0, 1)


def apply_window(values: np.ndarray, window: IntensityWindow) -> np.ndarray:
    """Map ``window`` linearly to 0..255 and clip; any shape in, the same shape out as uint8."""
    with np.errstate(over="ignore"):  # what is too large for single precision is white or black all the same
        scaled = (values.astype(np.float32) - window.low) * (255.0 / (window.high - window.low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def to_uint8(values: np.ndarray, window: IntensityWindow | None, path: Path) -> np.ndarray:
    """Return 8-bit grey levels by ``window``, else by the stated range of the type.

    Without a window: bool becomes 0 and 255, uint8 stays, uint16 is divided by 257, floats must lie in [0, 1].
    Raises :class:`UserError` for other types, for floats outside [0, 1], and for values that are not finite.
    """
    if values.dtype.kind == "f":
        require_finite(values, path)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if window is not None:
        return apply_window(values, window)
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return apply_window(values, FULL_UINT16)
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:
        return apply_window(values, UNIT_RANGE)
    raise UserError(
        f"{path}: {values.dtype} values from {values.min():g} to {values.max():g} have no stated range. "
        "Allowed without a window: 1, 8 and unsigned 16 bit, or floats in [0, 1]. "
        "To train, set the intensity window (data.window: [low, high], the stored values that become black and white); "
        "for a model that was trained without one, save the image with 8 bit."
    )


def require_finite(values: np.ndarray, path: Path) -> None:
    """Raise :class:`UserError` where ``values`` holds NaN or infinity."""
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise UserError(
            f"{path}: {bad} of {values.size} values of an image or slice are NaN or infinite. Give them a number "
            "(numpy.nan_to_num(values, nan=BACKGROUND)) and save the file again."
        )


def to_rgb(values: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 1..4) uint8 to (H, W, 3): grey is repeated, alpha is dropped."""
    if values.ndim == 2:
        values = values[..., None]
    if values.shape[-1] in (1, 2):
        return np.stack([values[..., 0]] * 3, axis=-1)  # twice as fast as np.repeat
    return np.ascontiguousarray(values[..., :3])
