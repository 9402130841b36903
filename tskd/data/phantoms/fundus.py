"""Fundus photograph: retinal vessels (the class) grown from the optic disc, among choroid, exudates and bleedings.

The choroid's own vessels, seen through the retina of many eyes, are not the class. They are as dark as arteries but of
another tint, and do not come from the disc: what a few labels do not tell.

Vessels are 1 to 5 pixels wide at sizes up to 512. Their width falls with the square root of the size and stops
at one pixel: else none would be left in a small image. Retinas without vessels do not occur.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from tskd.data.phantoms.family import Drawing, Family
from tskd.data.phantoms.noise import Array, blend, fractal_field, grain, rgb, smooth_field, step, to_bytes
from tskd.data.phantoms.shapes import (
    Blob,
    Curve,
    Grid,
    Point,
    View,
    pixel_grid,
    random_outline,
    random_view,
    stroke_distance,
)

FIELD_RADIUS = 0.96
POINTS = 24
"""Points on each branch of the vessel tree."""
ALONG = np.linspace(0, 1, POINTS)
MIN_WIDTH, MAX_WIDTH = 1.0, 5.0
"""Vessel widths in pixels of an image of side 512."""
BLOOD, CHOROID = rgb(0.45, 1.0, 0.8), rgb(0.8, 0.8, 1.0)
"""What share of the contrast a vessel has in each colour."""
TIGROID_SHARE, RED_FREE_SHARE = 0.7, 0.25
BRANCHES = ((4, 7), (1, 2))
"""Fewest and most branches off a trunk, and off each of those."""


@dataclass(frozen=True)
class _Branch:
    points: Array
    """(POINTS, 2) in the anatomy's coordinates."""
    widths: Array
    """(POINTS,) pixels at side 512."""
    vein: bool


class _Root(NamedTuple):
    """Where and how a branch starts to grow."""

    start: Array
    heading: float
    """Radians; 0 points along the columns."""
    bow: float
    """Radians turned over the whole length."""
    length: float
    width: float
    """Pixels at side 512."""


@dataclass(frozen=True)
class _Look:
    background: Array
    vessel: float
    """Share of the light that a wide vein takes away."""
    artery: float
    """Contrast of arteries relative to veins."""
    reflex: float
    choroid: float
    choroidal_vessels: float
    """Share of the light that they take away; 0: a pigmented retina hides them."""
    texture: float
    illumination: float
    bright_spots: int
    dark_spots: int
    red_free: bool
    """Photographed in green light: grey."""


def _draw_look(rng: np.random.Generator) -> _Look:
    return _Look(
        background=np.clip(rgb(0.72, 0.36, 0.16) + rng.normal(0, (0.12, 0.09, 0.07)), 0.05, 1),
        vessel=rng.uniform(0.25, 0.55),
        artery=rng.uniform(0.45, 0.9),
        reflex=rng.uniform(0.0, 0.3),
        choroid=rng.uniform(0.0, 0.16),
        choroidal_vessels=rng.uniform(0.2, 0.5) * (rng.random() < TIGROID_SHARE),
        texture=rng.uniform(0.01, 0.05),
        illumination=rng.uniform(0.1, 0.4),
        bright_spots=int(rng.choice([0, 0, 4, 15, 30])),
        dark_spots=int(rng.choice([0, 0, 3, 10, 20])),
        red_free=rng.random() < RED_FREE_SHARE,
    )


def _grow_tree(rng: np.random.Generator, disc: Point, side: int) -> Iterator[_Branch]:
    """Yield all branches: a vein and an artery to each quadrant, and two generations of branches off each.

    ``side`` is 1 where the macula lies towards larger columns, else -1: the temporal arcades bow around it.
    """
    for vertical, horizontal, vein in product((-1, 1), (-side, side), (True, False)):
        temporal = horizontal == side
        rise = rng.uniform(0.9, 1.3) if temporal else rng.uniform(0.3, 1.0)
        root = _Root(
            start=np.array(disc),
            heading=np.arctan2(vertical * np.sin(rise), horizontal * np.cos(rise)),
            bow=-vertical * horizontal * (rng.uniform(0.9, 1.6) if temporal else rng.uniform(-0.5, 0.6)),
            length=rng.uniform(1.3, 1.9) if temporal else rng.uniform(0.7, 1.1),
            width=MAX_WIDTH * rng.uniform(0.75, 1.0) * (1.0 if vein else 0.8),
        )
        yield from _grow(rng, root, vein, BRANCHES)


def _grow(
    rng: np.random.Generator, root: _Root, vein: bool, generations: Sequence[tuple[int, int]]
) -> Iterator[_Branch]:
    """Yield one branch and what branches off it; ``generations`` holds the range of their number, eldest first."""
    points = _wander(rng, root)
    end = root.width * rng.uniform(0.4, 0.65)
    widths = np.maximum(root.width + (end - root.width) * ALONG, MIN_WIDTH)
    yield _Branch(points, widths, vein)
    if not generations:
        return
    for _ in range(int(rng.integers(*generations[0], endpoint=True))):
        at = int(rng.integers(3, POINTS - 2))
        direction = points[at + 1] - points[at]
        child = _Root(
            start=points[at],
            heading=np.arctan2(direction[0], direction[1]) + rng.choice([-1, 1]) * rng.uniform(0.4, 1.2),
            bow=rng.normal(0, 0.5),
            length=root.length * rng.uniform(0.25, 0.55),
            width=widths[at] * rng.uniform(0.5, 0.9),
        )
        yield from _grow(rng, child, vein, generations[1:])


def _wander(rng: np.random.Generator, root: _Root) -> Array:
    """Return the points (POINTS, 2) of a branch: it turns by its bow over its length and strays a little."""
    stray = np.cumsum(rng.normal(0, 0.105, POINTS))
    turn = root.heading + root.bow * ALONG + stray - stray[0]
    steps = np.empty((POINTS, 2))
    steps[0] = root.start
    steps[1:, 0], steps[1:, 1] = np.sin(turn[1:]), np.cos(turn[1:])
    steps[1:] *= root.length / POINTS
    return np.cumsum(steps, axis=0)


def _grow_choroid(rng: np.random.Generator) -> list[_Branch]:
    """Return the choroid's vessels: they cross the whole field beside each other, and lead to no disc."""
    heading = rng.uniform(0, np.pi)
    roots = (
        _Root(
            start=rng.uniform(-1, 1, 2),
            heading=heading + rng.normal(0, 0.4) + np.pi * rng.integers(2),
            bow=rng.normal(0, 0.6),
            length=rng.uniform(0.5, 1.4),
            width=MAX_WIDTH * rng.uniform(0.5, 1.0),
        )
        for _ in range(rng.integers(15, 40))
    )
    return [_Branch(_wander(rng, root), np.full(POINTS, root.width), vein=False) for root in roots]


def _strokes(branches: list[_Branch], view: View, size: int) -> Array:
    scale = np.sqrt(size / 512)
    points = view.project(np.stack([branch.points for branch in branches]))
    widths = np.maximum(np.stack([branch.widths for branch in branches]) * scale, MIN_WIDTH)
    return stroke_distance([Curve(*curve) for curve in zip(points, widths)], size, reach_px=1.5)


def _lay_retina(rng: np.random.Generator, grid: Grid, look: _Look, disc: Point, side: int) -> Array:
    """Return the retina without vessels: pigment, choroidal streaks, optic disc with cup, macula."""
    size = grid[0].shape[0]
    image = np.broadcast_to(look.background, (size, size, 3)).astype(np.float32)
    streaks = np.exp(-((smooth_field(rng, size, 9) / 0.35) ** 2)) - 0.4
    mottling = look.texture * fractal_field(rng, size, 8, 4) - look.choroid * streaks
    image *= (1 + mottling)[..., None]
    radius = rng.uniform(0.13, 0.19)
    nerve = Blob(disc, (radius, radius * rng.uniform(0.8, 1.0)), 0.0, random_outline(rng, 0.05))
    distance = nerve.distance(grid)
    blend(image, (0.55, 0.25, 0.12), 0.3 * np.exp(-((distance / 0.04) ** 2)))
    blend(image, rgb(0.95, 0.78, 0.45) * rng.uniform(0.85, 1.05), step(distance, 0.05) * rng.uniform(0.6, 0.95))
    blend(image, (1.0, 0.93, 0.72), step(distance + radius * rng.uniform(0.4, 0.7), 0.06) * 0.7)
    macula = Blob((disc[0] + rng.uniform(0.0, 0.12), disc[1] + side * rng.uniform(0.75, 0.9)), (0.24, 0.24))
    image *= 1 - rng.uniform(0.15, 0.45) * np.exp(-(macula.level(grid) ** 2))[..., None]
    return image


def _lay_spots(rng: np.random.Generator, image: Array, grid: Grid, look: _Look) -> None:
    """Paint exudates (bright) and bleedings (dark as a vein, some drawn out like a piece of one) in place."""
    for count, colour in ((look.bright_spots, (0.97, 0.85, 0.45)), (look.dark_spots, (0.36, 0.09, 0.05))):
        size = image.shape[0]
        nearest = np.full((size, size), 1.0, np.float32)
        cluster = rng.uniform(-0.5, 0.5, 2)
        for _ in range(count):
            radius = rng.uniform(0.008, 0.035)
            centre = cluster + rng.normal(0, 0.25, 2)
            spot = Blob((centre[0], centre[1]), (radius, radius * rng.uniform(1, 4)), rng.uniform(0, np.pi))
            nearest = np.minimum(nearest, spot.distance(grid))
        blend(image, colour, step(nearest, 0.02) * rng.uniform(0.4, 0.8))


def _lay_vessels(image: Array, strokes: Array, contrast: float, reflex: float, tint: Array = BLOOD) -> None:
    """Darken the vessels in place by what each colour loses; wide ones carry a bright central line."""
    cover = np.clip(0.6 - strokes, 0, 1)
    cover = cover - np.float32(reflex) * np.clip(-strokes - 0.8, 0, 1)
    image *= 1 - cover[..., None] * tint * np.float32(contrast)


def _photograph(rng: np.random.Generator, image: Array, look: _Look) -> Array:
    """Return the picture through the fundus camera: uneven light, haze, focus, noise, the black surround."""
    size = image.shape[0]
    rows, columns = pixel_grid(size)
    focus = rng.uniform(0.2, 0.7) * np.sqrt(size / 256)
    image = ndimage.gaussian_filter(image, (focus, focus, 0))
    light = np.exp(look.illumination * (smooth_field(rng, size, 2) - (rows**2 + columns**2)))
    haze = np.clip(0.12 * smooth_field(rng, size, 2), 0, None)[..., None]
    image = image * light[..., None] * np.float32(rng.uniform(0.8, 1.2)) + haze * rgb(0.8, 0.7, 0.5)
    if look.red_free:
        image = np.repeat(1.5 * image[..., 1:2], 3, axis=2)
    noise = rng.uniform(0.005, 0.02) * grain(rng, size, 0.5)
    field = step(np.hypot(rows, columns) - FIELD_RADIUS, 0.015)
    return (image + noise[..., None]) * field[..., None]


def draw(case_rng: np.random.Generator, image_rng: np.random.Generator, size: int) -> Drawing:
    """Draw one photograph of one eye; see :class:`~tskd.data.phantoms.family.Family`."""
    look = _draw_look(case_rng)
    side = int(case_rng.choice([-1, 1]))
    disc = (case_rng.uniform(-0.12, 0.12), -side * case_rng.uniform(0.35, 0.6))
    branches = list(_grow_tree(case_rng, disc, side))
    choroid = _grow_choroid(case_rng)
    view = random_view(image_rng, shift=0.15, rotation=0.15, zoom=0.06)
    grid = view.grid(size)
    image = _lay_retina(case_rng, grid, look, disc, side)
    _lay_vessels(image, _strokes(choroid, view, size), look.choroidal_vessels, 0.0, CHOROID)
    _lay_spots(case_rng, image, grid, look)
    veins = _strokes([branch for branch in branches if branch.vein], view, size)
    arteries = _strokes([branch for branch in branches if not branch.vein], view, size)
    _lay_vessels(image, arteries, look.vessel * look.artery, look.reflex)
    _lay_vessels(image, veins, look.vessel, 0.3 * look.reflex)
    rows, columns = pixel_grid(size)
    field = np.hypot(rows, columns) < FIELD_RADIUS
    mask = ((np.minimum(veins, arteries) <= 0) & field).astype(np.uint8)
    return to_bytes(_photograph(image_rng, image, look)), mask


FAMILY = Family("fundus", ("vessel",), draw)
