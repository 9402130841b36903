"""Coordinates, closed outlines and strokes: geometry in units of half the image side, so that it scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tskd.data.phantoms.noise import Array, smooth_field

Grid = tuple[Array, Array]
"""Row and column coordinate of every pixel, each (S, S)."""
Point = tuple[float, float]
"""Row, column."""
OUTLINE_STEPS = 1024
"""A power of two: indices wrap by masking."""


@lru_cache(maxsize=8)
def pixel_grid(size: int) -> Grid:
    """Return the centres of all pixels, rows and columns in [-1, 1]."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    rows.setflags(write=False)
    columns.setflags(write=False)
    return rows, columns


@dataclass(frozen=True)
class View:
    """Where one image looks at the anatomy of its case: shift, rotation (radians) and zoom."""

    shift: Point
    rotation: float
    zoom: float

    def grid(self, size: int) -> Grid:
        """Return the anatomy's coordinates of every pixel."""
        rows, columns = pixel_grid(size)
        cos, sin = np.cos(self.rotation) / self.zoom, np.sin(self.rotation) / self.zoom
        row, column = rows - np.float32(self.shift[0]), columns - np.float32(self.shift[1])
        return (
            (row * np.float32(cos) - column * np.float32(sin)),
            (column * np.float32(cos) + row * np.float32(sin)),
        )

    def project(self, points: Array) -> Array:
        """Return image coordinates (..., 2) of points of the anatomy (..., 2): the inverse of :meth:`grid`."""
        cos, sin = np.cos(self.rotation) * self.zoom, np.sin(self.rotation) * self.zoom
        return points @ np.array([[cos, -sin], [sin, cos]]) + self.shift


def random_view(rng: np.random.Generator, *, shift: float, rotation: float, zoom: float) -> View:
    """Draw a view: every parameter uniform within plus or minus the value given (zoom: in the logarithm)."""
    row, column, turn, scale = rng.uniform(-1, 1, 4)
    return View((row * shift, column * shift), turn * rotation, float(np.exp(scale * zoom)))


def warp(rng: np.random.Generator, grid: Grid, *, cells: int, strength: float) -> Grid:
    """Return the grid displaced by a smooth random field of ``strength`` (half image sides)."""
    rows, columns = grid
    size = rows.shape[0]
    return (
        rows + np.float32(strength) * smooth_field(rng, size, cells),
        columns + np.float32(strength) * smooth_field(rng, size, cells),
    )


@dataclass(frozen=True)
class Blob:
    """A closed star-shaped region: an ellipse whose radius is modulated over the angle."""

    centre: Point
    radii: Point
    """Half axes along the blob's own rows and columns."""
    angle: float = 0.0
    outline: Array | None = None
    """Relative radius at ``OUTLINE_STEPS`` angles; None: an ellipse."""
    bend: float = 0.0
    """Bends the columns' axis towards negative rows: a bean, a crescent."""

    def local(self, grid: Grid) -> Grid:
        """Return coordinates in which the ellipse is the unit circle."""
        row, column = grid[0] - np.float32(self.centre[0]), grid[1] - np.float32(self.centre[1])
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        u = (column * cos + row * sin) / np.float32(self.radii[1])
        v = (row * cos - column * sin) / np.float32(self.radii[0])
        return v + np.float32(self.bend) * (u * u - np.float32(0.4)), u

    def level(self, grid: Grid) -> Array:
        """Return the relative radius of every pixel: 0 at the centre, 1 on the outline, more outside."""
        v, u = self.local(grid)
        radius = np.hypot(v, u)
        if self.outline is None:
            return radius
        return radius / at_angle(self.outline, np.arctan2(v, u))

    def distance(self, grid: Grid) -> Array:
        """Return roughly the distance to the outline in half image sides, negative inside."""
        return (self.level(grid) - 1) * np.float32(min(self.radii))


def at_angle(outline: Array, angle: Array) -> Array:
    """Look up a periodic table of ``OUTLINE_STEPS`` values at angles in radians."""
    index = (angle * np.float32(OUTLINE_STEPS / (2 * np.pi))).astype(np.int32)
    return outline[index & (OUTLINE_STEPS - 1)]


def random_outline(rng: np.random.Generator, roughness: float, harmonics: int = 9) -> Array:
    """Draw an outline's relative radius: harmonics 2 to ``harmonics`` with amplitude falling as 1/k."""
    order = np.arange(2, harmonics + 1)
    amplitude = roughness * rng.standard_normal(order.size) / order
    phase = rng.uniform(0, 2 * np.pi, order.size)
    angles = np.linspace(0, 2 * np.pi, OUTLINE_STEPS, endpoint=False)
    waves = amplitude[:, None] * np.cos(order[:, None] * angles[None] + phase[:, None])
    return np.exp(waves.sum(axis=0)).astype(np.float32)


class Curve(NamedTuple):
    """An open curve with a width."""

    points: Array
    """(N, 2) rows and columns in [-1, 1]."""
    widths_px: Array
    """(N,) full widths in pixels."""


def stroke_distance(curves: Sequence[Curve], size: int, reach_px: float = 2.0) -> Array:
    """Return the distance in pixels (size, size) to the edge of the nearest stroke: negative inside, at most the reach.

    Each curve is sampled twice a pixel and every sample stamps a disc.
    """
    canvas = np.full(size * size, reach_px, np.float32)
    if not curves:
        return canvas.reshape(size, size)
    samples = _sample(curves, size)
    halves = np.ceil(samples[:, 2] + reach_px).astype(int)
    for half in np.unique(halves):
        _stamp(canvas, samples[halves == half], size, int(half))
    return canvas.reshape(size, size)


def _sample(curves: Sequence[Curve], size: int) -> Array:
    """Return (M, 3): row and column in pixels and radius of samples on all curves, at most half a pixel apart."""
    knots = [np.column_stack([(c.points + 1) * (size / 2) - 0.5, c.widths_px / 2]) for c in curves]
    starts = np.concatenate([knot[:-1] for knot in knots])
    steps = np.concatenate([np.diff(knot, axis=0) for knot in knots])
    counts = np.ceil(2 * np.hypot(steps[:, 0], steps[:, 1])).astype(int)
    segment = np.repeat(np.arange(counts.size), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    share = (np.arange(segment.size) - first) / counts[segment]
    return starts[segment] + share[:, None] * steps[segment]


def _stamp(canvas: Array, samples: Array, size: int, half: int) -> None:
    offset = np.arange(-half, half + 1)
    rows = np.rint(samples[:, 0]).astype(int)[:, None, None] + offset[None, :, None]
    columns = np.rint(samples[:, 1]).astype(int)[:, None, None] + offset[None, None, :]
    row, column, radius = (samples[:, i, None, None] for i in range(3))
    distance = np.hypot(rows - row, columns - column) - radius
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    np.minimum.at(canvas, (rows * size + columns)[inside], distance[inside].astype(np.float32))
