"""Random fields and the arithmetic of colour that all families share."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

Array: TypeAlias = NDArray[np.floating]
"""Fields and images are float32; small tables of coordinates may be float64."""
SPLINE_STD = 0.479
"""Standard deviation of a cubic B-spline surface with white unit-variance coefficients."""


def smooth_field(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Return a smooth random field (size, size) of mean 0 and standard deviation 1 with ``cells`` bumps a side.

    A cubic B-spline over a random lattice: the draw depends on ``cells`` alone, so the field is the same at every size.
    """
    weights = _spline_weights(size, cells)
    lattice = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    return weights @ lattice @ weights.T / np.float32(SPLINE_STD)


def fractal_field(rng: np.random.Generator, size: int, cells: int, octaves: int = 3) -> Array:
    """Return a sum of ``octaves`` smooth fields, each twice as fine and half as strong as the last; deviation 1."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        total += 0.5**octave * smooth_field(rng, size, cells * 2**octave)
    return total / np.float32(np.sqrt(sum(0.25**octave for octave in range(octaves))))


@lru_cache(maxsize=64)
def _spline_weights(size: int, cells: int) -> Array:
    position = (np.arange(size) + 0.5) / size * cells
    distance = np.abs(position[:, None] + 1 - np.arange(cells + 3)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def grain(rng: np.random.Generator, size: int, blur_px: float) -> Array:
    """Return pixel noise (size, size) of deviation 1, correlated over ``blur_px`` pixels (0: white)."""
    white = rng.standard_normal((size, size), dtype=np.float32)
    if blur_px < 0.2:
        return white
    blurred = ndimage.gaussian_filter(white, blur_px, mode="wrap", truncate=2.5)
    return blurred / np.float32(blurred.std() + 1e-6)


def speckle(rng: np.random.Generator, size: int, blur_px: tuple[float, float]) -> Array:
    """Return fully developed speckle (size, size): Rayleigh-distributed, mean 1, correlated over ``blur_px`` pixels.

    The amplitude of a circular complex Gaussian field (Goodman 1976), blurred by the point spread (rows, columns).
    """
    parts = rng.standard_normal((2, size, size), dtype=np.float32)
    parts = ndimage.gaussian_filter(parts, (0, *blur_px), mode="wrap", truncate=2.5)
    amplitude = np.hypot(parts[0], parts[1])
    return amplitude / np.float32(amplitude.mean() + 1e-6)


def rgb(red: float, green: float, blue: float) -> Array:
    """Return a colour (3,), channels in [0, 1]."""
    return np.array([red, green, blue], np.float32)


def step(distance: Array, width: float) -> Array:
    """Return the soft inside of a shape: 1 where ``distance`` < 0, 0 where it is > 0, a ramp of ``width`` between."""
    return np.clip(0.5 - distance / max(width, 1e-6), 0.0, 1.0)


def blend(image: Array, colour: ArrayLike, alpha: Array) -> None:
    """Lay ``colour``, (3,) or (S, S, 3), over ``image`` (S, S, 3) in place with opacity ``alpha`` (S, S)."""
    image += alpha[..., None] * (np.asarray(colour, np.float32) - image)


def to_bytes(image: Array) -> NDArray[np.uint8]:
    """Return (S, S, 3) uint8 of an image in [0, 1], (S, S, 3) or grey (S, S)."""
    grey_or_colour = np.clip(image, 0.0, 1.0) * 255 + 0.5
    if image.ndim == 2:
        grey_or_colour = np.repeat(grey_or_colour[..., None], 3, axis=2)
    return grey_or_colour.astype(np.uint8)
