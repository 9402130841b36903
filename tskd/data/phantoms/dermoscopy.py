"""Dermoscopy: a pigmented lesion (the class) under hairs, bubbles, a ruler and the vignette of the lens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tskd.data.phantoms.family import ABSENT_SHARE, Drawing, Family
from tskd.data.phantoms.noise import Array, blend, fractal_field, grain, rgb, smooth_field, step, to_bytes
from tskd.data.phantoms.shapes import (
    Blob,
    Curve,
    Grid,
    pixel_grid,
    random_outline,
    random_view,
    stroke_distance,
    warp,
)

PIGMENTS = np.array(
    [
        (0.45, 0.27, 0.16),
        (0.24, 0.14, 0.10),
        (0.62, 0.40, 0.28),
        (0.32, 0.33, 0.33),
        (0.62, 0.30, 0.28),
        (0.66, 0.46, 0.34),
    ]
)
"""Light brown, dark brown, tan, blue-grey, red, pale."""


@dataclass(frozen=True)
class _Lesion:
    blob: Blob
    colours: Array
    """(2, 3): two pigments that share the lesion."""
    opacity: float
    edge: float
    network: float
    network_scale: float


@dataclass(frozen=True)
class _Skin:
    colour: Array
    texture: float
    redness: float
    hairs: int
    hair_colour: Array
    hair_width: float
    """Of the image side."""
    vignette: float
    ruler: bool


def _draw_lesion(rng: np.random.Generator) -> _Lesion:
    radius = np.exp(rng.uniform(np.log(0.18), np.log(0.75)))
    first, second = PIGMENTS[rng.choice(len(PIGMENTS), 2, replace=False)] + rng.normal(0, 0.02, (2, 3))
    return _Lesion(
        blob=Blob(
            centre=(rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25)),
            radii=(radius * rng.uniform(0.6, 1.0), radius),
            angle=rng.uniform(0, np.pi),
            outline=random_outline(rng, rng.uniform(0.1, 0.38), 10),
        ),
        colours=np.stack([first, first + rng.uniform(0.2, 0.9) * (second - first)]),
        opacity=rng.uniform(0.45, 0.95),
        edge=rng.uniform(0.02, 0.13),
        network=rng.uniform(0.0, 0.3),
        network_scale=rng.uniform(26, 65),
    )


def _draw_skin(rng: np.random.Generator) -> _Skin:
    light, dark = np.array([0.88, 0.70, 0.62]), np.array([0.60, 0.42, 0.33])
    tone = rng.uniform(0, 1) ** 1.5
    return _Skin(
        colour=(light + tone * (dark - light) + rng.normal(0, 0.03, 3)).astype(np.float32),
        texture=rng.uniform(0.01, 0.04),
        redness=rng.uniform(0.0, 0.05),
        hairs=int(rng.choice([0, 3, 10, 25])),
        hair_colour=rgb(0.13, 0.09, 0.07) + np.float32(rng.uniform(0, 0.4) * (rng.random() < 0.3)),
        hair_width=rng.uniform(0.005, 0.011),
        vignette=rng.uniform(0.0, 1.0),
        ruler=bool(rng.random() < 0.2),
    )


def _lay_skin(rng: np.random.Generator, size: int, skin: _Skin) -> Array:
    """Return bare skin: tone, flushes of red, creases."""
    image = np.broadcast_to(skin.colour, (size, size, 3)).copy()
    flush = smooth_field(rng, size, 3)[..., None] * rgb(0.3, 1.0, 0.9)
    image -= np.float32(skin.redness) * flush
    creases = np.exp(-((smooth_field(rng, size, 14) / 0.25) ** 2))
    image += (skin.texture * (fractal_field(rng, size, 12, 3) - creases))[..., None]
    return image


def _network(rng: np.random.Generator, grid: Grid, scale: float) -> Array:
    """Return a warped honeycomb in [0, 1]: three plane waves at 60 degrees, the lines of a pigment network."""
    rows, columns = warp(rng, grid, cells=6, strength=0.03)
    waves = sum(
        np.cos(scale * (rows * np.float32(np.sin(a)) + columns * np.float32(np.cos(a))))
        for a in (0, np.pi / 3, 2 * np.pi / 3)
    )
    return np.clip(1 - (np.asarray(waves, np.float32) + 1.5) / 2, 0, 1)


def _lay_lesion(rng: np.random.Generator, image: Array, grid: Grid, lesion: _Lesion) -> NDArray[np.bool_]:
    """Paint the lesion in place, two pigments darker than the skin, the border soft in places; return where it is."""
    size = image.shape[0]
    distance = lesion.blob.distance(warp(rng, grid, cells=9, strength=0.012))
    blotches = smooth_field(rng, size, 4)
    share = step(blotches - rng.normal(0, 0.7), 1.2)[..., None]
    colour = lesion.colours[0] * share + lesion.colours[1] * (1 - share)
    colour = np.minimum(colour, 0.75 * image)
    texture = 1 + 0.16 * fractal_field(rng, size, 10, 3) - lesion.network * _network(rng, grid, lesion.network_scale)
    softness = lesion.edge * np.exp(0.5 * smooth_field(rng, size, 2))
    alpha = np.clip(0.5 - distance / softness, 0, 1)
    blend(image, colour * texture[..., None], lesion.opacity * alpha)
    return distance < 0


def _lay_spots(rng: np.random.Generator, image: Array, grid: Grid, lesion: _Lesion) -> None:
    """Paint freckles, flushed patches and ink in place: the lesion's colours, but small, faint or no pigment at all."""
    for _ in range(int(rng.integers(0, 7))):
        radius = rng.uniform(0.02, 0.09)
        spot = Blob((rng.uniform(-1, 1), rng.uniform(-1, 1)), (radius, radius * 1.2), 0.0, random_outline(rng, 0.3))
        blend(image, lesion.colours[0], step(spot.distance(grid), 0.04) * rng.uniform(0.2, 0.7))
    if rng.random() < 0.4:
        patch = Blob(
            (rng.uniform(-1, 1), rng.uniform(-1, 1)), (rng.uniform(0.2, 0.5), 0.4), 0.0, random_outline(rng, 0.4)
        )
        blend(image, PIGMENTS[int(rng.choice([2, 4, 5]))], step(patch.distance(grid), 0.35) * rng.uniform(0.15, 0.45))
    if rng.random() < 0.15:
        side = rng.choice([-1, 1])
        ink = Blob(
            (rng.uniform(-0.8, 0.8), side * rng.uniform(0.8, 1.0)),
            (0.4, 0.09),
            rng.uniform(0, 3),
            random_outline(rng, 0.3),
        )
        blend(image, (0.32, 0.22, 0.55), step(ink.distance(grid), 0.03) * 0.8)


def _hair(rng: np.random.Generator, width_px: float) -> Curve:
    start, heading = rng.uniform(-1.1, 1.1, 2), rng.uniform(0, 2 * np.pi)
    along = np.linspace(0, 1, 24)
    turn = heading + rng.normal(0, 0.9) * along
    step_length = rng.uniform(0.5, 2.0) / along.size
    points = start + np.cumsum(np.stack([np.sin(turn), np.cos(turn)], axis=1) * step_length, axis=0)
    return Curve(points, np.full(along.size, width_px) * (1.1 - 0.5 * along))


def _lay_hairs(rng: np.random.Generator, image: Array, skin: _Skin) -> None:
    size = image.shape[0]
    width_px = max(skin.hair_width * size, 0.8)
    count = skin.hairs if skin.hairs == 0 else int(rng.poisson(skin.hairs))
    distance = stroke_distance([_hair(rng, width_px) for _ in range(count)], size)
    blend(image, skin.hair_colour, 0.85 * np.clip(0.5 - distance, 0, 1))


def _lay_bubbles(rng: np.random.Generator, image: Array) -> None:
    """Paint air bubbles of the immersion gel in place: bright rings with a glint."""
    grid = pixel_grid(image.shape[0])
    for _ in range(int(rng.poisson(2))):
        radius = rng.uniform(0.03, 0.12)
        bubble = Blob((rng.uniform(-1, 1), rng.uniform(-1, 1)), (radius, radius))
        ring = np.exp(-((bubble.distance(grid) / (0.12 * radius + 0.008)) ** 2))
        blend(image, (0.95, 0.93, 0.92), ring * rng.uniform(0.2, 0.6))
        glint = Blob((bubble.centre[0] - 0.4 * radius, bubble.centre[1] - 0.4 * radius), (0.2 * radius, 0.2 * radius))
        blend(image, (1.0, 1.0, 1.0), step(glint.distance(grid), 0.02) * 0.7)


def _lay_ruler(rng: np.random.Generator, image: Array) -> None:
    size = image.shape[0]
    row, width_px = rng.uniform(0.75, 0.9), max(0.006 * size, 0.8)
    marks = []
    for index, column in enumerate(np.arange(-1, 1, rng.uniform(0.06, 0.12))):
        end = row + (0.14 if index % 5 == 0 else 0.08)
        marks.append(Curve(np.array([[row, column], [end, column]]), np.full(2, width_px)))
    blend(image, (0.08, 0.08, 0.08), 0.8 * np.clip(0.5 - stroke_distance(marks, size), 0, 1))


def _photograph(rng: np.random.Generator, image: Array, skin: _Skin) -> Array:
    """Return the picture through the lens: blur, uneven light, dark corners, colour cast, noise."""
    size = image.shape[0]
    rows, columns = pixel_grid(size)
    image = ndimage.gaussian_filter(image, (rng.uniform(0, 0.006) * size,) * 2 + (0,))
    radius = np.hypot(rows, columns)
    light = 1 - 0.35 * skin.vignette * np.clip(radius - 0.3, 0, None) ** 2
    if skin.vignette > 0.7:
        light = light * step(radius - (1.3 - 0.35 * skin.vignette), 0.06)
    light = light * (1 + rng.uniform(-0.12, 0.12) * rows + rng.uniform(-0.12, 0.12) * columns)
    cast = rng.normal(1, 0.03, 3).astype(np.float32) * np.float32(rng.uniform(0.85, 1.12))
    return image * light[..., None] * cast + rng.uniform(0.005, 0.03) * grain(rng, size, 0.5)[..., None]


def draw(case_rng: np.random.Generator, image_rng: np.random.Generator, size: int) -> Drawing:
    """Draw one dermoscopic picture; see :class:`~tskd.data.phantoms.family.Family`."""
    lesion, skin = _draw_lesion(case_rng), _draw_skin(case_rng)
    absent = image_rng.random() < ABSENT_SHARE
    view = random_view(image_rng, shift=0.2, rotation=1.0, zoom=0.15)
    grid = view.grid(size)
    image = _lay_skin(case_rng, size, skin)
    _lay_spots(case_rng, image, grid, lesion)
    mask = np.zeros((size, size), np.uint8)
    if not absent:
        mask[_lay_lesion(case_rng, image, grid, lesion)] = 1
    _lay_hairs(image_rng, image, skin)
    if skin.ruler:
        _lay_ruler(image_rng, image)
    _lay_bubbles(image_rng, image)
    return to_bytes(_photograph(image_rng, image, skin)), mask


FAMILY = Family("dermoscopy", ("lesion",), draw)
