"""What was drawn on a DICOM series: the slice it is laid over, what it refers to, and its parts by number and name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tskd.data.dicom_series import Slice, plane_of

_OFF_PLANE = 0.1
"""Of the slice distance (of a millimetre where that is not known): how far off a slice what is drawn on it may lie."""


@dataclass(frozen=True)
class View:
    """One slice as a plane in space."""

    plane: np.ndarray
    """(3, 3), from (column, row, 1) to millimetres in LPS."""
    size: tuple[int, int]
    """Rows and columns."""
    tolerance: float
    """Millimetres off the plane that still count as on it."""

    @classmethod
    def of(cls, item: Slice, spacing: tuple[float, ...] | None = None) -> View | None:
        """Return the plane of a slice, None where it states none; ``spacing`` is that of its volume, where known."""
        if item.orientation is None or item.origin is None or item.spacing is None:
            return None
        spacing = spacing or item.spacing
        return cls(plane_of(item), item.size, _OFF_PLANE * (spacing[2] if len(spacing) == 3 else 1.0))

    def distances(self, points: np.ndarray) -> np.ndarray:
        """Return how far points, (N, 3) in LPS, lie off the plane, in millimetres."""
        normal = np.cross(self.plane[:, 0], self.plane[:, 1])
        return np.abs((points - self.plane[:, 2]) @ (normal / np.linalg.norm(normal)))

    def pixels_of(self, points: np.ndarray) -> np.ndarray:
        """Return the (column, row) of points, (N, 3) in LPS, projected onto the plane."""
        return (points - self.plane[:, 2]) @ np.linalg.pinv(self.plane[:, :2]).T


@dataclass(frozen=True)
class References:
    """What an object says that it was drawn on: for comparisons alone, never to be shown."""

    series: frozenset[str]
    instances: frozenset[str]
    frame: frozenset[str]
    """Frames of reference, in which places are stated."""


class Drawn(Protocol):
    """An object that labels a series."""

    @property
    def path(self) -> Path:
        """Its file."""

    @property
    def kind(self) -> str:
        """What it is, as :func:`tskd.data.dicom_files.kind_of` says it."""

    @property
    def names(self) -> dict[int, str]:
        """Number to name of its parts: segments, regions of interest."""

    @property
    def references(self) -> References:
        """What it was drawn on."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided in reading it."""

    def lying_on(self, view: View) -> np.ndarray:
        """Return which of its planar pieces (frames, contours) lie on a slice, (pieces,) bool."""

    def masks(self, view: View) -> dict[int, np.ndarray]:
        """Return what is drawn on a slice: number to (H, W) bool. Raises :class:`UserError` naming the file."""
