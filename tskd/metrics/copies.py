"""Find images that copy a training image: what a generator memorised is not a new transfer image, and leaks patients.

Two steps. Coarse: grey images on a grid of ``GRID`` cells, mean and contrast removed, are correlated with every
reference in every mirror image and shift by up to one cell; that leaves a few suspects. Fine: the distance to a suspect
is 1 - normalised correlation of the slightly blurred images at the best shift of up to ``REACH`` pixels. Brightness
and contrast do not change it, and it is near 0 for a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import fft, ndimage

GRID = 16
SIZE = 96
"""Larger images are compared at this size: copies need no fine detail to be seen."""
REACH = 4
"""Largest shift in pixels (each axis) that is undone before images are compared."""
SUSPECTS = 8
"""Pairs of reference and mirror image that a candidate is compared with at full size."""
CLIPPED = 250
"""From this channel value on a pixel counts as clipped."""
LEAST_VALID = 0.5
"""Share of an image that must be left when clipped pixels are ignored; with less, all pixels count."""
DUPLICATE = 0.02
"""References of two cases nearer than this show one picture under two names (BUSI is full of them): no measure of how
different new images are."""
MARGIN = 0.6
"""A low quantile of a few hundred distances is itself uncertain, and images of a case come together: at the quantile
itself up to 4 % of held-out images of other cases were called copies, at 0.6 of it at most 1.3 %; copies lie far
below."""
BLUR = 1.0
"""Standard deviation in pixels: fine noise on a copy must not hide it."""
CHUNK = 64
MIRRORS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class CopyReport:
    """For every candidate whether it copies a reference, which one is nearest, and how near."""

    is_copy: np.ndarray
    """(N,) bool."""
    nearest: np.ndarray
    """(N,) index of the nearest reference."""
    distance: np.ndarray
    """(N,) 1 - correlation at the best alignment, 0 to 2."""
    threshold: float
    """Distances below this are copies."""
    reference_distance: np.ndarray
    """(M,) distance of each reference to the nearest one of another case; below ``DUPLICATE`` they show one picture."""


def find_copies(
    candidates: np.ndarray, references: np.ndarray, reference_cases: Sequence[str], *, quantile: float = 0.01
) -> CopyReport:
    """Call candidates copies that are nearer to a reference than references of different cases are to one another.

    ``candidates`` (N, S, S, 3) and ``references`` (M, S, S, 3) are uint8, S at least 32; ``reference_cases`` names each
    reference's case. The threshold is ``MARGIN`` times the ``quantile`` of the distances of references to the nearest
    reference of another case. Mirror images, shifts of up to ``REACH`` pixels and changes of brightness and contrast
    are undone. Raises ValueError for sizes that differ or references of which fewer than two cases can be told apart.
    """
    _require_one_size(candidates, references)
    if len(set(reference_cases)) < 2 or len(reference_cases) != len(references):
        raise ValueError("a threshold for copies needs one case name a reference and at least two cases")
    index = _Index(references)
    cases = np.unique(np.asarray(reference_cases), return_inverse=True)[1]
    _, between = index.nearest(references, exclude=cases[:, None] == cases[None])
    different = between[between >= DUPLICATE]
    if different.size == 0:
        raise ValueError("every reference has a duplicate under another case name: there is no threshold for copies")
    threshold = MARGIN * float(np.quantile(different, quantile))
    nearest, distance = index.nearest(candidates)
    return CopyReport(distance < threshold, nearest, distance, threshold, between)


def distance_to_nearest(candidates: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return 1 - correlation of each candidate (N, S, S, 3) with the nearest reference at the best alignment, (N,).

    As in :func:`find_copies`. Raises ValueError for sizes that differ.
    """
    _require_one_size(candidates, references)
    return _Index(references).nearest(candidates)[1]


def _require_one_size(candidates: np.ndarray, references: np.ndarray) -> None:
    if candidates.shape[1:] != references.shape[1:]:
        raise ValueError(
            f"candidates are {candidates.shape[1:]}, references {references.shape[1:]}: sizes must be equal"
        )


class _Index:
    """References prepared for search: coarse descriptors of all shifts, spectra of pixels and their squares."""

    def __init__(self, references: np.ndarray) -> None:
        grey, _ = _prepared(references)
        cells = _resized(grey, GRID)
        shifts = range(3)
        self.coarse = np.stack([_unit(cells[:, y : y + GRID - 2, x : x + GRID - 2]) for y in shifts for x in shifts], 1)
        # centred, so that the local variance below does not drown in float32 rounding
        centred = grey - grey.mean(axis=(1, 2), keepdims=True)
        self.spectra = fft.rfft2(centred)
        self.squared_spectra = fft.rfft2(centred**2)

    def nearest(self, images: np.ndarray, *, exclude: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return index and distance (N,) of each image's nearest reference; ``exclude`` (N, M) bars pairs."""
        found = []
        for start in range(0, len(images), CHUNK):
            part = slice(start, start + CHUNK)
            found.append(self._nearest(images[part], None if exclude is None else exclude[part]))
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        return np.concatenate([index for index, _ in found]), np.concatenate([distance for _, distance in found])

    def _nearest(self, images: np.ndarray, exclude: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        grey, valid = (_mirrored(one) for one in _prepared(images))
        alike = self._coarse_correlations(grey)
        if exclude is not None:
            alike[np.repeat(exclude[:, None], len(MIRRORS), axis=1)] = -np.inf
        alike = alike.reshape(len(images), -1)
        kept = min(SUSPECTS, alike.shape[1])
        suspects = np.argpartition(-alike, kept - 1, axis=1)[:, :kept]
        mirror, reference = np.divmod(suspects, len(self.spectra))
        correlation = self._fine_correlations(grey, valid, mirror=mirror, reference=reference)
        correlation[np.take_along_axis(alike, suspects, axis=1) == -np.inf] = -1
        best = correlation.argmax(axis=1)
        rows = np.arange(len(images))
        return reference[rows, best], 1 - correlation[rows, best]

    def _coarse_correlations(self, grey: np.ndarray) -> np.ndarray:
        """Return (N, mirrors, M): the best correlation of (N, mirrors, S, S) over shifts of a cell."""
        count, mirrors = grey.shape[:2]
        cells = _resized(grey.reshape(-1, *grey.shape[2:]), GRID)[:, 1:-1, 1:-1]
        references, shifts, width = self.coarse.shape
        correlations = _unit(cells) @ self.coarse.reshape(-1, width).T
        return correlations.reshape(count, mirrors, references, shifts).max(axis=3)

    def _fine_correlations(
        self, grey: np.ndarray, valid: np.ndarray, *, mirror: np.ndarray, reference: np.ndarray
    ) -> np.ndarray:
        """Return (N, suspects): the best correlation of each image's valid inner pixels with the reference.

        For weights w, template t = w (c - mean) and shift s, all sums by the correlation theorem (J. P. Lewis, Fast
        normalized cross-correlation, 1995): sum t r_s / (|t| sqrt(sum w r_s^2 - (sum w r_s)^2 / sum w)).
        """
        weights = np.zeros_like(grey)
        inner = (..., slice(REACH, -REACH), slice(REACH, -REACH))
        weights[inner] = valid[inner]
        pixels = weights.sum(axis=(2, 3), keepdims=True)
        template = weights * (grey - (weights * grey).sum(axis=(2, 3), keepdims=True) / pixels)
        template /= np.maximum(np.sqrt((template**2).sum(axis=(2, 3), keepdims=True)), 1e-6)
        pick = np.arange(len(grey))[:, None], mirror
        weight_spectra, template_spectra = (fft.rfft2(one)[pick].conj() for one in (weights, template))
        size = grey.shape[2:]
        sums = _shifts(self.spectra[reference] * weight_spectra, size)
        squares = _shifts(self.squared_spectra[reference] * weight_spectra, size)
        products = _shifts(self.spectra[reference] * template_spectra, size)
        contrast = np.sqrt(np.maximum(squares - sums**2 / pixels[pick], 1e-6))
        return (products / contrast).max(axis=(2, 3))


def _prepared(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return blurred luminance (N, S, S) float32 in [0, 1], at most ``SIZE`` wide, and where it can be compared.

    Brightening clips light pixels, which no change of contrast undoes: they and what the blur mixes with them are left
    out, unless little would remain.
    """
    grey: np.ndarray = np.tensordot(images.astype(np.float32), LUMINANCE / 255, axes=1)
    clipped = np.asarray(images.max(axis=3) >= CLIPPED, dtype=np.float32)
    if grey.shape[1] > SIZE:
        grey, clipped = _resized(grey, SIZE), _resized(clipped, SIZE)
    valid = ndimage.maximum_filter(clipped, (1, 3, 3)) == 0
    valid[valid.mean(axis=(1, 2)) < LEAST_VALID] = True
    return ndimage.gaussian_filter(grey, (0, BLUR, BLUR)), valid


def _mirrored(images: np.ndarray) -> np.ndarray:
    """Return (N, mirrors, S, S)."""
    return np.stack([images[:, ::y, ::x] for y, x in MIRRORS], axis=1)


def _resized(grey: np.ndarray, size: int) -> np.ndarray:
    """Return area means (N, size, size)."""
    box = Image.Resampling.BOX
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), box)) for one in grey])


def _unit(windows: np.ndarray) -> np.ndarray:
    """Return (N, D) descriptors of zero mean and unit length; an image without contrast becomes zeros."""
    flat = windows.reshape(len(windows), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _shifts(spectra: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return the correlation surface (..., 2 REACH + 1, 2 REACH + 1) at the shifts that are searched."""
    span = np.arange(-REACH, REACH + 1)
    return fft.irfft2(spectra, s=size)[..., span[:, None], span[None]]
