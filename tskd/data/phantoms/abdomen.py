"""Axial slice of the abdomen, CT-like or MR-like: liver, both kidneys and spleen among spine, ribs, vessels and bowel.

The patient's right is at the image's left. A case is a stack of slices: its images differ in height, and each organ has
a range of heights in which it is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tskd.data.phantoms.family import ABSENT_SHARE, Drawing, Family
from tskd.data.phantoms.noise import Array, fractal_field, grain, smooth_field, step, to_bytes
from tskd.data.phantoms.shapes import Blob, Grid, random_outline, random_view, warp

ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
HEIGHTS = {"liver": (0.8, 0.75), "right_kidney": (0.25, 0.65), "left_kidney": (0.35, 0.65), "spleen": (0.85, 0.6)}
"""Height at which the organ is largest and how far from it the organ ends; a slice's height is in [0, 1]."""


@dataclass(frozen=True)
class _Anatomy:
    body: Blob
    fat: float
    wall: float
    spine: Blob
    organs: dict[str, Blob]
    heights: dict[str, float]


@dataclass(frozen=True)
class _Look:
    """Grey values in [0, 1] of every tissue, and the scanner's properties."""

    tissue: dict[str, float]
    texture: float
    bias: float
    noise: float
    grain_px: float
    blur: float


def _draw_anatomy(rng: np.random.Generator) -> _Anatomy:
    wide, high = rng.uniform(0.78, 0.95), rng.uniform(0.56, 0.76)
    body = Blob((rng.uniform(-0.05, 0.05), 0.0), (high, wide), rng.uniform(-0.06, 0.06), random_outline(rng, 0.05, 5))
    spine = Blob((high * 0.52, rng.uniform(-0.03, 0.03)), (0.12, 0.14), 0.0, random_outline(rng, 0.12))
    kidney = rng.uniform(0.12, 0.18)
    sites = {
        "liver": ((-0.08 * high, -0.42 * wide), (0.62 * high, 0.45 * wide), rng.uniform(-0.5, 0.2), 0.30),
        "right_kidney": ((0.30 * high, -0.40 * wide), (kidney, kidney * 1.2), rng.uniform(0.3, 1.3), 0.12),
        "left_kidney": ((0.27 * high, 0.38 * wide), (kidney, kidney * 1.2), rng.uniform(-1.3, -0.3), 0.12),
        "spleen": ((0.16 * high, 0.66 * wide), (0.12, 0.36 * high), rng.uniform(1.0, 1.7), 0.22),
    }
    organs = {name: _draw_organ(rng, name, *site) for name, site in sites.items()}
    heights = {name: HEIGHTS[name][0] + rng.normal(0, 0.08) for name in ORGANS}
    return _Anatomy(body, rng.uniform(0.03, 0.16), rng.uniform(0.03, 0.07), spine, organs, heights)


def _draw_organ(
    rng: np.random.Generator,
    name: str,
    centre: tuple[float, float],
    radii: tuple[float, float],
    angle: float,
    rough: float,
) -> Blob:
    moved = (centre[0] + rng.normal(0, 0.04), centre[1] + rng.normal(0, 0.04))
    scale = np.exp(rng.normal(0, 0.13, 2))
    bend = rng.uniform(0.1, 0.7) if name == "spleen" else rng.uniform(-0.15, 0.25)
    return Blob(moved, (radii[0] * scale[0], radii[1] * scale[1]), angle, random_outline(rng, rough, 6), bend)


def _draw_look(rng: np.random.Generator) -> _Look:
    if rng.random() < 0.35:
        return _draw_mr_look(rng)
    base = rng.uniform(0.42, 0.6)
    enhanced = rng.uniform(0.0, 0.25)
    return _Look(
        tissue={
            "air": 0.0,
            "fat": base - rng.uniform(0.16, 0.3),
            "muscle": base - rng.uniform(0.0, 0.06),
            "bone": rng.uniform(0.8, 1.0),
            "vessel": base + enhanced * rng.uniform(0.3, 1.0),
            "bowel": base + rng.uniform(-0.08, 0.1),
            "gas": 0.0,
            "liver": base + rng.normal(0.04, 0.05),
            "kidney": base + rng.normal(0.02, 0.03) + enhanced,
            "spleen": base + rng.normal(0.05, 0.05),
        },
        texture=rng.uniform(0.005, 0.02),
        bias=0.0,
        noise=rng.uniform(0.02, 0.09),
        grain_px=rng.uniform(0.4, 1.0),
        blur=rng.uniform(0.002, 0.006),
    )


def _draw_mr_look(rng: np.random.Generator) -> _Look:
    """T1-like or T2-like: every tissue's grey is its own, fat is bright or suppressed, the coil leaves a bias field."""
    return _Look(
        tissue={
            "air": 0.02,
            "fat": rng.uniform(0.7, 0.95) if rng.random() < 0.5 else rng.uniform(0.08, 0.18),
            "muscle": rng.uniform(0.15, 0.35),
            "bone": rng.uniform(0.1, 0.5),
            "vessel": rng.uniform(0.02, 0.7),
            "bowel": rng.uniform(0.15, 0.6),
            "gas": 0.02,
            "liver": rng.uniform(0.2, 0.55),
            "kidney": rng.uniform(0.2, 0.75),
            "spleen": rng.uniform(0.2, 0.75),
        },
        texture=rng.uniform(0.01, 0.03),
        bias=rng.uniform(0.1, 0.35),
        noise=rng.uniform(0.02, 0.07),
        grain_px=rng.uniform(0.3, 0.8),
        blur=rng.uniform(0.003, 0.008),
    )


def _lay_wall(rng: np.random.Generator, grid: Grid, anatomy: _Anatomy, look: _Look) -> Array:
    """Return the slice without organs: air, skin and fat, the muscle wall with ribs, fat inside."""
    distance = anatomy.body.distance(grid)
    slice_ = np.full(distance.shape, look.tissue["air"], np.float32)
    slice_ += step(distance, 0.01) * (look.tissue["fat"] - slice_)
    wall = step(distance + anatomy.fat, 0.01) * step(-(distance + anatomy.fat + anatomy.wall), 0.01)
    slice_ += wall * (look.tissue["muscle"] - slice_)
    v, u = anatomy.body.local(grid)
    angle = np.arctan2(v, u) + 0.15 * np.sin(rng.integers(2, 5) * np.arctan2(v, u) + rng.uniform(0, 6))
    ribs = np.cos(rng.integers(10, 17) * angle + rng.uniform(0, 6)) > rng.uniform(0.4, 0.75)
    inner = np.abs(distance + anatomy.fat + anatomy.wall * 0.6) < 0.3 * anatomy.wall
    slice_[ribs & inner] = look.tissue["bone"]
    return slice_


def _lay_spine(grid: Grid, slice_: Array, spine: Blob, look: _Look) -> None:
    """Paint the vertebra, the muscles beside it and the great vessels before it in place."""
    row, column = spine.centre
    for side, muscle in zip((-1, 1), _psoas(spine)):
        slice_ += step(muscle.distance(grid), 0.02) * (look.tissue["muscle"] - slice_)
        vessel = Blob((row - 0.2, column + side * 0.075), (0.055, 0.06))
        slice_ += step(vessel.distance(grid), 0.01) * (look.tissue["vessel"] - slice_)
    process = Blob((row + 0.2, column), (0.13, 0.04))
    slice_ += step(process.distance(grid), 0.02) * (look.tissue["bone"] - slice_)
    level = spine.level(grid)
    slice_ += step(level - 1, 0.1) * (look.tissue["bone"] - slice_)
    slice_ -= step(level - 0.75, 0.2) * 0.2 * look.tissue["bone"]
    canal = Blob((row + 0.16, column), (0.05, 0.06))
    slice_ += step(canal.distance(grid), 0.01) * (look.tissue["muscle"] - slice_)


def _psoas(spine: Blob) -> list[Blob]:
    row, column = spine.centre
    return [Blob((row + 0.08, column + side * 0.24), (0.13, 0.16), side * 0.4) for side in (-1, 1)]


def _cavity(grid: Grid, anatomy: _Anatomy) -> NDArray[np.bool_]:
    """Return where organs and bowel can lie: inside the wall, before the spine and its muscles."""
    cavity = anatomy.body.distance(grid) < -(anatomy.fat + anatomy.wall)
    for solid in (anatomy.spine, *_psoas(anatomy.spine)):
        cavity &= solid.level(grid) > 1
    return cavity


def _lay_bowel(rng: np.random.Generator, grid: Grid, slice_: Array, anatomy: _Anatomy, look: _Look) -> None:
    """Paint stomach and loops of bowel in place; greys come near those of the organs, some hold gas."""
    high, wide = anatomy.body.radii
    greys = [look.tissue[name] for name in ("bowel", "bowel", "kidney", "spleen", "liver")]
    for _ in range(int(rng.integers(5, 14))):
        radius = rng.uniform(0.07, 0.2)
        loop = Blob(
            (rng.uniform(-0.7, 0.35) * high, rng.uniform(-0.55, 0.75) * wide),
            (radius * rng.uniform(0.6, 1.0), radius),
            rng.uniform(0, np.pi),
            random_outline(rng, 0.2),
            rng.uniform(-0.4, 0.4),
        )
        distance = loop.distance(grid)
        grey = greys[int(rng.integers(len(greys)))] + rng.normal(0, 0.02)
        slice_ += step(distance, 0.012) * (grey - slice_)
        if rng.random() < 0.3:
            gas = step(distance + 0.03, 0.015) * step(
                grid[0] - (loop.centre[0] + rng.uniform(-0.5, 0.3) * radius), 0.01
            )
            slice_ += gas * (look.tissue["gas"] - slice_)


def _slice_blob(blob: Blob, offset: float) -> Blob | None:
    """Return the organ's outline at ``offset`` (0 where it is largest, 1 at its end); None beyond the end."""
    share = np.sqrt(max(0.0, 1 - offset**2))
    if share < 0.3:
        return None
    return replace(blob, radii=(blob.radii[0] * share, blob.radii[1] * share))


def _lay_organs(
    rng: np.random.Generator, grid: Grid, slice_: Array, outlines: dict[str, Blob], look: _Look
) -> NDArray[np.uint8]:
    """Paint the organs present in place and return the mask."""
    size = slice_.shape[0]
    mask = np.zeros(slice_.shape, np.uint8)
    texture = look.texture * fractal_field(rng, size, 10, 2)
    for name, blob in outlines.items():
        distance = blob.distance(grid)
        grey = look.tissue["kidney" if name.endswith("kidney") else name] + texture
        if name.endswith("kidney"):
            slice_ += step(distance - 0.025, 0.012) * (look.tissue["fat"] - slice_)
            level = distance / min(blob.radii) + 1
            grey = grey - step(level - 0.45, 0.25) * 0.35 * (look.tissue["kidney"] - look.tissue["fat"])
        slice_ += step(distance, 0.012) * (grey - slice_)
        mask[distance < 0] = ORGANS.index(name) + 1
    return mask


def _lay_liver_vessels(rng: np.random.Generator, slice_: Array, liver: NDArray[np.bool_], look: _Look) -> None:
    branches = np.exp(-((smooth_field(rng, slice_.shape[0], 9) / 0.15) ** 2))
    slice_ += liver * branches * 0.5 * (look.tissue["vessel"] - slice_)


def _scan(rng: np.random.Generator, slice_: Array, look: _Look) -> Array:
    """Return the grey image: partial volume, coil bias, window, noise."""
    size = slice_.shape[0]
    blurred = ndimage.gaussian_filter(slice_, max(look.blur * size, 0.3))
    blurred *= np.exp(look.bias * smooth_field(rng, size, 2))
    blurred = (blurred - 0.5) * rng.uniform(0.85, 1.2) + 0.5 + rng.uniform(-0.06, 0.06)
    return blurred + look.noise * grain(rng, size, look.grain_px)


def draw(case_rng: np.random.Generator, image_rng: np.random.Generator, size: int) -> Drawing:
    """Draw one slice of one patient; see :class:`~tskd.data.phantoms.family.Family`."""
    anatomy, look = _draw_anatomy(case_rng), _draw_look(case_rng)
    height = image_rng.uniform(0.05, 1.0)
    removed = ORGANS[int(image_rng.integers(len(ORGANS)))] if image_rng.random() < ABSENT_SHARE else None
    view = random_view(image_rng, shift=0.05, rotation=0.1, zoom=0.08)
    grid = warp(image_rng, view.grid(size), cells=4, strength=0.015)
    frame = _lay_wall(image_rng, grid, anatomy, look)
    _lay_spine(grid, frame, anatomy.spine, look)
    slice_ = frame.copy()
    _lay_bowel(image_rng, grid, slice_, anatomy, look)
    offsets = {name: abs(height - anatomy.heights[name]) / HEIGHTS[name][1] for name in ORGANS}
    outlines = {name: _slice_blob(anatomy.organs[name], offsets[name]) for name in ORGANS if name != removed}
    present = {name: blob for name, blob in outlines.items() if blob is not None}
    mask = _lay_organs(case_rng, grid, slice_, present, look)
    _lay_liver_vessels(image_rng, slice_, mask == 1, look)
    cavity = _cavity(grid, anatomy)
    mask[~cavity] = 0
    slice_ = np.where(cavity, slice_, frame)
    return to_bytes(_scan(image_rng, slice_, look)), mask


FAMILY = Family("abdomen", ORGANS, draw)
