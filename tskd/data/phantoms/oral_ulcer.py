"""Photograph of the mouth: wet mucosa with an ulcer, a yellowish bed (the class) in a red halo.

Red spots without a bed and pale patches without a halo lie about: neither colour alone tells an ulcer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tskd.data.phantoms.family import ABSENT_SHARE, Drawing, Family
from tskd.data.phantoms.noise import Array, blend, fractal_field, grain, rgb, smooth_field, step, to_bytes
from tskd.data.phantoms.shapes import Blob, Grid, Point, pixel_grid, random_outline, random_view, warp


@dataclass(frozen=True)
class _Mouth:
    mucosa: Array
    texture_cells: int
    texture: float
    folds: float
    teeth: Blob | None
    gaps: Point
    """Frequency and phase of the gaps between the teeth."""
    gloss: float
    blur: float
    exposure: float
    white_balance: Array


@dataclass(frozen=True)
class _Ulcer:
    blob: Blob
    bed: Array
    halo: Array
    halo_width: float
    halo_strength: float
    opacity: float
    edge: float


def _colour(rng: np.random.Generator, base: tuple[float, float, float], spread: float) -> Array:
    return np.clip(np.array(base) + rng.normal(0, spread, 3), 0.02, 0.98).astype(np.float32)


def _draw_mouth(rng: np.random.Generator) -> _Mouth:
    side = rng.choice([-1.0, 1.0])
    teeth = Blob((side * rng.uniform(1.1, 1.45), rng.uniform(-0.4, 0.4)), (0.7, 1.7), rng.uniform(-0.5, 0.5))
    return _Mouth(
        mucosa=_colour(rng, (0.76, 0.42, 0.40), 0.06) * np.float32(rng.uniform(0.75, 1.1)),
        texture_cells=int(rng.integers(5, 14)),
        texture=rng.uniform(0.02, 0.09),
        folds=rng.uniform(0.0, 0.25),
        teeth=teeth if rng.random() < 0.4 else None,
        gaps=(rng.uniform(4, 7), rng.uniform(0, 3)),
        gloss=rng.uniform(2.2, 3.2),
        blur=rng.uniform(0.004, 0.02),
        exposure=rng.uniform(0.75, 1.35),
        white_balance=_colour(rng, (0.9, 0.9, 0.9), 0.045) / np.float32(0.9),
    )


def _draw_ulcer(rng: np.random.Generator) -> _Ulcer:
    radius = np.exp(rng.uniform(np.log(0.10), np.log(0.42)))
    return _Ulcer(
        blob=Blob(
            centre=(rng.uniform(-0.55, 0.55), rng.uniform(-0.55, 0.55)),
            radii=(radius * rng.uniform(0.55, 1.0), radius),
            angle=rng.uniform(0, np.pi),
            outline=random_outline(rng, rng.uniform(0.15, 0.42), 9),
        ),
        bed=_colour(rng, (0.86, 0.74, 0.55), 0.06),
        halo=_colour(rng, (0.72, 0.20, 0.20), 0.05),
        halo_width=rng.uniform(0.05, 0.16),
        halo_strength=rng.uniform(0.25, 0.9),
        opacity=rng.uniform(0.4, 0.9),
        edge=rng.uniform(0.01, 0.06),
    )


def _lay_mucosa(rng: np.random.Generator, image: Array, mouth: _Mouth) -> None:
    """Add blotches, fine texture and folds of the mucosa in place."""
    size = image.shape[0]
    blotches = smooth_field(rng, size, 3)[..., None] * np.array([0.02, 0.045, 0.04], np.float32)
    texture = mouth.texture * fractal_field(rng, size, mouth.texture_cells, 3)
    image += blotches + texture[..., None] * np.array([0.7, 1.0, 0.9], np.float32)
    ridge = np.abs(smooth_field(rng, size, 4))
    image *= 1 - np.float32(mouth.folds) * np.exp(-((ridge / 0.3) ** 2))[..., None]


def _lay_ulcer(rng: np.random.Generator, image: Array, grid: Grid, ulcer: _Ulcer) -> NDArray[np.bool_]:
    """Paint halo and bed in place; return the bed."""
    size = image.shape[0]
    distance = ulcer.blob.distance(grid)
    halo = np.exp(-((np.clip(distance, 0, None) / ulcer.halo_width) ** 2))
    blend(image, ulcer.halo, ulcer.halo_strength * halo)
    bed = ulcer.bed * (1 + 0.13 * fractal_field(rng, size, 8, 3))[..., None]
    blend(image, bed, ulcer.opacity * step(distance, ulcer.edge))
    return distance < 0


def _lay_distractors(rng: np.random.Generator, image: Array, grid: Grid, ulcer: _Ulcer) -> None:
    """Paint red spots (halo colour, no bed) and pale patches (bed colour, no halo) in place."""
    for _ in range(int(rng.integers(1, 7))):
        radius = np.exp(rng.uniform(np.log(0.05), np.log(0.28)))
        spot = Blob(
            (rng.uniform(-1, 1), rng.uniform(-1, 1)),
            (radius * rng.uniform(0.4, 1.0), radius),
            rng.uniform(0, np.pi),
            random_outline(rng, 0.35),
        )
        alpha = step(spot.distance(grid), rng.uniform(0.03, 0.15)) * rng.uniform(0.3, 0.85)
        colour = ulcer.halo if rng.random() < 0.5 else ulcer.bed
        blend(image, np.clip(colour + rng.normal(0, 0.04, 3), 0, 1), alpha)


def _lay_teeth(image: Array, grid: Grid, teeth: Blob, gaps: Point) -> NDArray[np.bool_]:
    """Paint a row of teeth in place; return where they are."""
    distance = teeth.distance(grid)
    frequency, phase = gaps
    lit = np.abs(np.sin(grid[1] * frequency + phase))
    enamel = rgb(0.88, 0.83, 0.70) * (0.55 + 0.45 * np.clip(lit * 4, 0, 1))[..., None]
    blend(image, enamel, step(distance, 0.03))
    return distance < 0


def _light(rng: np.random.Generator, image: Array, mouth: _Mouth) -> Array:
    """Return the photograph: uneven light, specular highlights on the wet surface, exposure, white balance, noise."""
    size = image.shape[0]
    rows, columns = pixel_grid(size)
    direction = rng.uniform(0, 2 * np.pi)
    shade = 1 + rng.uniform(0.0, 0.3) * (rows * np.sin(direction) + columns * np.cos(direction))
    shade -= rng.uniform(0, 0.3) * (rows**2 + columns**2) / 2
    wet = 0.7 * smooth_field(rng, size, 26) + 0.7 * smooth_field(rng, size, 13) + 0.6 * smooth_field(rng, size, 3)
    blend(image, (1.0, 0.98, 0.96), step(mouth.gloss + rng.uniform(-0.2, 0.2) - wet, 0.8) * 0.95)
    lit = image * (shade * mouth.exposure * rng.uniform(0.85, 1.15))[..., None] * mouth.white_balance
    lit = np.clip(lit, 0, 1) ** np.float32(rng.uniform(0.85, 1.2))
    for channel in range(3):
        lit[..., channel] += rng.uniform(0.005, 0.03) * grain(rng, size, 0.5)
    return lit


def draw(case_rng: np.random.Generator, image_rng: np.random.Generator, size: int) -> Drawing:
    """Draw one photograph; see :class:`~tskd.data.phantoms.family.Family`."""
    mouth = _draw_mouth(case_rng)
    ulcers = [_draw_ulcer(case_rng) for _ in range(1 + (case_rng.random() < 0.2))]
    absent = image_rng.random() < ABSENT_SHARE
    view = random_view(image_rng, shift=0.2, rotation=0.4, zoom=0.2)
    grid = warp(image_rng, view.grid(size), cells=4, strength=0.02)
    image = np.broadcast_to(mouth.mucosa, (size, size, 3)).copy()
    _lay_mucosa(case_rng, image, mouth)
    _lay_distractors(image_rng, image, grid, ulcers[0])
    mask = np.zeros((size, size), np.uint8)
    for ulcer in () if absent else ulcers:
        mask[_lay_ulcer(case_rng, image, grid, ulcer)] = 1
    if mouth.teeth is not None:
        mask[_lay_teeth(image, grid, mouth.teeth, mouth.gaps)] = 0
    return to_bytes(_light(image_rng, image, mouth)), mask


FAMILY = Family("oral_ulcer", ("ulcer",), draw)
