"""Kidney ultrasound: a sector of speckle with a capsule, cortex, medullary pyramids and a central echo complex.

The four classes do not overlap: ``capsule`` is the rim of the kidney; with the three regions inside it makes up the
whole organ, the filled capsule of the KidneyUS data set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tskd.data.phantoms.family import ABSENT_SHARE, Drawing, Family
from tskd.data.phantoms.noise import Array, fractal_field, smooth_field, speckle, step, to_bytes
from tskd.data.phantoms.shapes import Blob, Grid, pixel_grid, random_outline, random_view, warp

CAPSULE, CENTRAL, MEDULLA, CORTEX = 1, 2, 3, 4


@dataclass(frozen=True)
class _Kidney:
    body: Blob
    centre: Blob
    """The central complex, in the body's own coordinates."""
    rim: float
    cortex: float
    """Level of the body's outline at which the pyramids begin."""
    pyramids: int
    pyramid_phase: float
    pyramid_share: float


@dataclass(frozen=True)
class _Probe:
    apex: float
    """Row of the point where the scan lines meet, above the image."""
    half_angle: float
    near: float
    far: float
    linear: bool


@dataclass(frozen=True)
class _Look:
    """Echo levels in decibels, and the machine's settings."""

    tissue: float
    levels: Array
    """Indexed by class; entry 0 is unused."""
    fat_halo: float
    gain: float
    gain_slope: float
    dynamic_range: float
    psf: tuple[float, float]
    """Point spread, range and scan line, in half image sides."""
    tint: Array


def _draw_kidney(rng: np.random.Generator) -> _Kidney:
    short, long = rng.uniform(0.24, 0.42), rng.uniform(0.46, 0.72)
    body = Blob(
        centre=(rng.uniform(-0.2, 0.3), rng.uniform(-0.25, 0.25)),
        radii=(short, long),
        angle=rng.uniform(-0.7, 0.7),
        outline=random_outline(rng, 0.10, 6),
        bend=rng.uniform(-0.25, 0.35),
    )
    centre = Blob(
        centre=(rng.uniform(-0.1, 0.22), rng.uniform(-0.15, 0.15)),
        radii=(rng.uniform(0.22, 0.42), rng.uniform(0.35, 0.62)),
        outline=random_outline(rng, 0.35, 9),
    )
    return _Kidney(
        body,
        centre,
        rim=rng.uniform(0.12, 0.18),
        cortex=rng.uniform(0.60, 0.72),
        pyramids=int(rng.integers(5, 10)),
        pyramid_phase=rng.uniform(0, 2 * np.pi),
        pyramid_share=rng.uniform(-0.5, 0.1),
    )


def _draw_probe(rng: np.random.Generator) -> _Probe:
    apex = -rng.uniform(1.15, 1.9)
    return _Probe(
        apex=apex,
        half_angle=rng.uniform(0.42, 0.72),
        near=-apex - rng.uniform(0.8, 1.0),
        far=-apex + rng.uniform(0.75, 1.0),
        linear=rng.random() < 0.2,
    )


def _draw_look(rng: np.random.Generator) -> _Look:
    tissue = rng.uniform(-24, -10)
    cortex = tissue + rng.normal(-2, 4)
    levels = cortex + np.array([0, rng.uniform(0, 8), rng.uniform(4, 14), -rng.uniform(3, 10), 0])
    return _Look(
        tissue=tissue,
        levels=levels,
        fat_halo=rng.uniform(0, 9),
        gain=rng.uniform(-8, 3),
        gain_slope=rng.uniform(-10, 4),
        dynamic_range=rng.uniform(38, 62),
        psf=(rng.uniform(0.008, 0.018), rng.uniform(0.014, 0.034)),
        tint=1 - rng.uniform(0, 0.15, 3) * (rng.random() < 0.25),
    )


def _label(kidney: _Kidney, grid: Grid) -> tuple[NDArray[np.uint8], Array]:
    """Return the classes of every pixel and the level of the kidney's outline."""
    level = kidney.body.level(grid)
    local = kidney.body.local(grid)
    angle = np.arctan2(local[0] * 1.3, local[1])
    pyramids = np.cos(kidney.pyramids * angle + kidney.pyramid_phase) > kidney.pyramid_share
    mask = np.zeros(level.shape, np.uint8)
    mask[level < 1] = CAPSULE
    mask[level < 1 - kidney.rim] = CORTEX
    mask[(level < kidney.cortex) & pyramids] = MEDULLA
    mask[(kidney.centre.level(local) < 1) & (level < 0.85 * kidney.cortex)] = CENTRAL
    return mask, level


def _surroundings(rng: np.random.Generator, grid: Grid, look: _Look) -> Array:
    """Return the echo level around the kidney: layers, neighbouring organs, cysts and loops of bowel that mimic it."""
    rows, columns = grid
    size = rows.shape[0]
    tilt = rng.uniform(-0.4, 0.4)
    layers = np.cos((rows + tilt * columns) * rng.uniform(8, 22) + 2.0 * smooth_field(rng, size, 3))
    skin = step(rows - rng.uniform(-0.75, -0.45) + 0.06 * smooth_field(rng, size, 3), 0.1)
    echo: Array = look.tissue + 3.5 * fractal_field(rng, size, 4) + layers * (1 + 5 * skin)
    for _ in range(int(rng.integers(1, 4))):
        echo = _lay_neighbour(rng, grid, echo, look)
    for _ in range(int(rng.integers(0, 4))):
        _lay_mimic(rng, grid, echo, look)
    return echo


def _random_site(rng: np.random.Generator, smallest: float, largest: float, roughness: float) -> Blob:
    radius = rng.uniform(smallest, largest)
    return Blob(
        centre=(rng.uniform(-0.7, 0.9), rng.uniform(-0.9, 0.9)),
        radii=(radius * rng.uniform(0.5, 0.9), radius),
        angle=rng.uniform(0, np.pi),
        outline=random_outline(rng, roughness),
    )


def _lay_neighbour(rng: np.random.Generator, grid: Grid, echo: Array, look: _Look) -> Array:
    distance = _random_site(rng, 0.35, 0.9, 0.15).distance(grid)
    inside = step(distance, 0.03)
    border = np.exp(-((distance / 0.02) ** 2)) * rng.uniform(0, 9)
    return echo + inside * (look.tissue + rng.normal(-1, 4) - echo) * 0.8 + border


def _lay_mimic(rng: np.random.Generator, grid: Grid, echo: Array, look: _Look) -> None:
    """Add a cyst (dark), a gas bubble (bright) or a bowel loop (dark wall, bright content) in place."""
    distance = _random_site(rng, 0.08, 0.28, 0.2).distance(grid)
    kind = rng.choice(3, p=(0.3, 0.25, 0.45))
    inside = step(distance, 0.02)
    if kind == 0:
        echo -= inside * rng.uniform(8, 25)
    elif kind == 1:
        echo += inside * rng.uniform(6, 14)
    else:
        core = step(distance + rng.uniform(0.04, 0.1), 0.03)
        echo += inside * (look.levels[CORTEX] - echo) + core * (look.levels[CENTRAL] - look.levels[CORTEX])


def _shadows(rng: np.random.Generator, angle: Array, depth: Array) -> Array:
    """Return the loss in decibels behind ribs and gas: soft-edged fans from a starting depth downwards."""
    loss = np.zeros_like(angle)
    for _ in range(int(rng.integers(0, 4))):
        where, width = rng.uniform(-1, 1), rng.uniform(0.04, 0.16)
        fan = step(np.abs(angle - where) - width, 0.1) * step(rng.uniform(0, 1.2) - depth, 0.15)
        loss += rng.uniform(4, 22) * fan
    return loss


def _scan_speckle(rng: np.random.Generator, line: Array, depth: Array, psf: tuple[float, float]) -> Array:
    """Return speckle made along scan lines and brought to the image, so that it widens with depth in a sector.

    ``line`` in [-1, 1] over the fan, ``depth`` in half image sides from the probe.
    """
    size = line.shape[0]
    scan = speckle(rng, size, (max(psf[0] * size / 2, 0.45), max(psf[1] * size / 2, 0.55)))
    where = np.stack([depth * (size / 2), (line + 1) * (size / 2)])
    return ndimage.map_coordinates(scan, where, order=1, mode="grid-wrap")


def _scan_lines(probe: _Probe, size: int) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return scan line in [-1, 1], depth in half image sides, and the field of view."""
    rows, columns = pixel_grid(size)
    if probe.linear:
        return columns / 0.95, rows + 1, (np.abs(columns) < 0.95) & (rows < 0.95)
    radius = np.hypot(rows - np.float32(probe.apex), columns)
    line = np.arctan2(columns, rows - np.float32(probe.apex)) / np.float32(probe.half_angle)
    field = (np.abs(line) < 1) & (radius > probe.near) & (radius < probe.far + 1)
    return line, radius - np.float32(probe.near), field


def draw(case_rng: np.random.Generator, image_rng: np.random.Generator, size: int) -> Drawing:
    """Draw one view of one kidney; see :class:`~tskd.data.phantoms.family.Family`."""
    kidney, probe, look = _draw_kidney(case_rng), _draw_probe(case_rng), _draw_look(case_rng)
    absent = image_rng.random() < ABSENT_SHARE
    view = random_view(image_rng, shift=0.15, rotation=0.2, zoom=0.12)
    grid = warp(image_rng, view.grid(size), cells=3, strength=0.025)
    line, depth, field = _scan_lines(probe, size)
    echo = _surroundings(case_rng, grid, look)
    mask, level = _label(kidney, grid)
    mask[~field | absent] = 0
    if not absent:
        halo = np.exp(-(((level - 1.08) / 0.1) ** 2))
        echo += look.fat_halo * halo
        levels = look.levels[mask].astype(np.float32)
        echo = np.where(mask > 0, levels + 1.5 * smooth_field(image_rng, size, 6), echo)
    echo = ndimage.gaussian_filter(echo, 0.004 * size)
    echo += look.gain + image_rng.uniform(-3, 3) + look.gain_slope * (depth - 0.8)
    echo -= _shadows(image_rng, line, depth)
    echo += 20 * np.log10(_scan_speckle(image_rng, line, depth, look.psf) + 0.05)
    grey = np.clip(1 + echo / look.dynamic_range, 0, 1) * field
    return to_bytes(grey[..., None] * look.tint.astype(np.float32)), mask


FAMILY = Family("kidney_us", ("capsule", "central_complex", "medulla", "cortex"), draw)
