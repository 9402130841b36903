"""Random changes of training images: parameters are drawn first, then applied, so image and mask cannot differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class GeometryRange:
    """How far images are moved."""

    flip_horizontal: bool = True
    flip_vertical: bool = False
    rotate: float = 15.0
    """Degrees to either side."""
    scale: float = 0.15
    """Largest relative change of size."""
    shift: float = 0.08
    """Share of the side."""
    p_rotate: float = 1.0
    """Share of the images that are turned, and below of those that change their size or are bent."""
    p_scale: float = 1.0
    p_elastic: float = 0.0
    elastic: float = 0.0
    """Largest displacement of a control point as a share of the side."""


CELLS = 4
"""Along a side, between the control points of a bend."""


class Bends(NamedTuple):
    """Smooth displacements: cubic B-splines over a coarse grid of control points, the same on a plane of any size."""

    points: Tensor
    """(B, 2, CELLS + 3, CELLS + 3) displacements along x and y, in coordinates of [-1, 1]."""
    centres: Tensor
    """(B, 2) of the part of the image that is seen, (x, y)."""
    span: float = 1.0
    """Its side, as a share of the image's."""


class Photometry(NamedTuple):
    """Drawn photometric parameters, one row an image."""

    gain: Tensor
    """(B, 3, 1, 1) factor of each colour."""
    offset: Tensor
    """(B, 1, 1, 1)"""
    gamma: Tensor
    """(B, 1, 1, 1) exponent."""
    blur: Tensor
    """(B, 1, 1, 1) share of the blurred image."""
    noise: Tensor
    """(B, 1, H, W) added values."""


def draw_geometry(count: int, limits: GeometryRange, generator: torch.Generator) -> Tensor:
    """Return (count, 2, 3) affine maps from the new image to the old one, in coordinates of [-1, 1]."""
    uniform = torch.rand(count, 6, generator=generator)
    signed = 2 * uniform - 1
    angle = signed[:, 0] * math.radians(limits.rotate)
    size = torch.exp(signed[:, 1] * math.log1p(limits.scale))
    if min(limits.p_rotate, limits.p_scale) < 1:  # else no number is drawn more than there used to be
        happens = torch.rand(count, 2, generator=generator) < torch.tensor([limits.p_rotate, limits.p_scale])
        angle, size = angle * happens[:, 0], torch.where(happens[:, 1], size, 1.0)
    mirror_x = torch.where((uniform[:, 2] < 0.5) & limits.flip_horizontal, -1.0, 1.0)
    mirror_y = torch.where((uniform[:, 3] < 0.5) & limits.flip_vertical, -1.0, 1.0)
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    shift = 2 * limits.shift * signed[:, 4:]
    rows = (
        torch.stack([cos * mirror_x, -sin * mirror_y, shift[:, 0]], dim=1),
        torch.stack([sin * mirror_x, cos * mirror_y, shift[:, 1]], dim=1),
    )
    return torch.stack(rows, dim=1)


def draw_bends(count: int, limits: GeometryRange, generator: torch.Generator) -> Bends | None:
    """Return the bends of ``count`` images, none for most of them where ``p_elastic`` is small; None: none for all.

    Source: Rueckert et al. 1999 (free-form deformations). A spline's slope is at most the difference of neighbouring
    points over their distance, so nothing folds below a displacement of 1 / (4 x CELLS) of the side.
    """
    if limits.p_elastic == 0 or limits.elastic == 0:
        return None
    happens = torch.rand(count, generator=generator) < limits.p_elastic
    signed = 2 * torch.rand(count, 2, CELLS + 3, CELLS + 3, generator=generator) - 1
    return Bends(2 * limits.elastic * signed * happens[:, None, None, None], torch.zeros(count, 2))


def draw_crops(count: int, grid: int, largest: float, generator: torch.Generator) -> tuple[int, Tensor]:
    """Return the side of square crops in cells of a ``grid`` x ``grid`` image, at least 1, and their top left cells
    (count, 2); ``largest`` is the largest part of the side that is cut off."""
    least = max(grid - int(largest * grid), 1)
    side = int(torch.randint(least, grid + 1, (1,), generator=generator))
    return side, torch.randint(0, grid - side + 1, (count, 2), generator=generator)


def crop_cells(planes: Tensor, side: int, corners: Tensor, grid: int) -> Tensor:
    """Return (B, ..., side * S / grid, side * S / grid) crops of (B, ..., S, S) planes, exact on any grid that ``grid``
    divides, so image, mask, features and logits are cut alike."""
    cell = planes.shape[-1] // grid
    starts = (corners * cell).tolist()
    length = side * cell
    cut = [plane[..., top : top + length, left : left + length] for plane, (top, left) in zip(planes, starts)]
    return torch.stack(cut)


def crop_maps(maps: Tensor, side: int, corners: Tensor, grid: int) -> Tensor:
    """Return (B, 2, 3) maps whose new images are the crops of the old maps' ones: what :func:`crop_cells` cuts out, on
    a plane of any size."""
    centres = (2 * corners.flip(-1) + side) / grid - 1
    linear, shift = maps[..., :2], maps[..., 2:] + maps[..., :2] @ centres[..., None].to(maps)
    return torch.cat([linear * (side / grid), shift], dim=-1)


def crop_bends(bends: Bends | None, side: int, corners: Tensor, grid: int) -> Bends | None:
    """Return the bends of whole images as their crops see them: what :func:`crop_maps` is to maps."""
    if bends is None:
        return None
    return bends._replace(centres=((2 * corners.flip(-1) + side) / grid - 1).to(bends.points), span=side / grid)


def hold_foreground(corners: Tensor, side: int, masks: Tensor, wanted: Tensor, uniform: Tensor, grid: int) -> Tensor:
    """Return the top left cells (B, 2) of crops that hold a pixel of the class ``wanted`` (B,) where that is not 0.

    The pixel is any of those of the mask (B, S, S), and any place of the crop that shows it is as likely: ``uniform``
    (B, 3) in [0, 1) says which. Where the mask does not hold the class (it was moved out of sight) the crop stays.
    """
    cell = masks.shape[-1] // grid
    chosen = corners.clone()
    for row in torch.nonzero(wanted).flatten().tolist():
        places = torch.nonzero(masks[row] == wanted[row])
        if len(places):
            seen = places[int(uniform[row, 0] * len(places))] // cell
            low, high = (seen - side + 1).clamp(min=0), seen.clamp(max=grid - side)
            chosen[row] = low + (uniform[row, 1:] * (high - low + 1)).long()
    return chosen


def draw_resized_crops(count: int, smallest: float, flip: tuple[bool, bool], generator: torch.Generator) -> Tensor:
    """Return (count, 2, 3) maps of crops that fill the image: area ``smallest`` to 1 of it, sides up to 4 to 3.

    ``flip``: whether they may be mirrored (horizontally, vertically). Source: Szegedy et al. 2015, as self-supervised
    methods use it; here a crop wider or higher than the image is cut to it.
    """
    uniform = torch.rand(count, 6, generator=generator)
    area = smallest + (1 - smallest) * uniform[:, 0]
    stretch = torch.exp((uniform[:, 1] - 0.5) * math.log(4 / 3))
    maps = torch.zeros(count, 2, 3)
    for axis, side in enumerate((area.sqrt() * stretch, area.sqrt() / stretch)):
        side = side.clamp(max=1)
        mirror = torch.where((uniform[:, 2 + axis] < 0.5) & flip[axis], -1.0, 1.0)
        maps[:, axis, axis] = side * mirror
        maps[:, axis, 2] = (1 - side) * (2 * uniform[:, 4 + axis] - 1)
    return maps


def move_images(images: Tensor, maps: Tensor, side: int | None = None, bends: Bends | None = None) -> Tensor:
    """Return (B, C, H, W) images resampled bilinearly along maps and bends; outside of the old image is black.

    ``side`` is that of the new images; None: as they are.
    """
    size = images.shape[-2:] if side is None else torch.Size((side, side))
    grid = _sampling_grid(maps.to(images.device), size, bends)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def move_masks(masks: Tensor, maps: Tensor, bends: Bends | None = None) -> Tensor:
    """Return (B, H, W) class indices moved along maps and bends by nearest neighbour; outside is background."""
    planes = masks[:, None].float()
    grid = _sampling_grid(maps.to(masks.device), masks.shape[-2:], bends)
    moved = F.grid_sample(planes, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved[:, 0].round().to(masks.dtype)


def _sampling_grid(maps: Tensor, size: torch.Size, bends: Bends | None = None) -> Tensor:
    """Return where each new pixel lies in the old image, (B, H, W, 2); ``F.affine_grid`` takes ten times as long."""
    height, width = (torch.linspace(1 / side - 1, 1 - 1 / side, side, device=maps.device) for side in size)
    grid = maps.new_empty(len(maps), *size, 2)
    for axis in range(2):
        along_x, along_y, shift = maps[:, axis, :, None].unbind(1)
        torch.add((along_x * width)[:, None, :], (along_y * height + shift)[:, :, None], out=grid[..., axis])
    if bends is not None:
        bent = torch.nonzero(bends.points.flatten(1).any(dim=1)).flatten()  # mostly few of them
        bends = Bends(bends.points[bent].to(grid), bends.centres[bent].to(grid), bends.span)
        across, down = (_spline_weights(bends, axis, line) for axis, line in enumerate((width, height)))
        grid[bent] += (down[:, None] @ bends.points @ across[:, None].mT).permute(0, 2, 3, 1)
    return grid


def _spline_weights(bends: Bends, axis: int, line: Tensor) -> Tensor:
    """Return (B, len(line), CELLS + 3) weights of the control points at the places of a line through what is seen."""
    places = bends.centres[:, axis, None] + bends.span * line
    distance = ((places + 1) * (CELLS / 2))[..., None] - torch.arange(-1, CELLS + 2, device=line.device)
    far = distance.abs_()
    return torch.where(far < 1, 2 / 3 - far**2 + far**3 / 2, (2 - far).clamp_(min=0) ** 3 / 6)


def draw_photometry(shape: torch.Size, strength: float, generator: torch.Generator) -> Photometry:
    """Return parameters for images of a shape (B, C, H, W); ``strength`` 1 is the usual amount, 0 changes nothing."""
    count, _, height, width = shape
    signed = strength * (2 * torch.rand(count, 6, generator=generator) - 1)
    level = strength * 0.04 * torch.rand(count, 1, 1, 1, generator=generator)
    one = signed.reshape(count, 6, 1, 1)
    return Photometry(
        gain=torch.exp(0.25 * one[:, :1] + 0.06 * one[:, 3:6]),
        offset=0.10 * one[:, 1:2],
        gamma=torch.exp(0.25 * one[:, 2:3]),
        blur=strength * torch.rand(count, 1, 1, 1, generator=generator).sub(0.5).clamp(min=0),
        noise=level * torch.randn(count, 1, height, width, generator=generator),
    )


def apply_photometry(images: Tensor, drawn: Photometry) -> Tensor:
    """Return (B, 3, H, W) images in [0, 1] with changed contrast, brightness, colour, sharpness and noise."""
    drawn = Photometry(*(value.to(images.device) for value in drawn))
    changed = _box_blur(images).lerp_(images, 1 - drawn.blur)
    centre = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed.sub_(centre).mul_(drawn.gain).add_(centre + drawn.offset)
    return changed.clamp_(0, 1).pow_(drawn.gamma).add_(drawn.noise).clamp_(0, 1)


def _box_blur(images: Tensor) -> Tensor:
    """Return (B, C, H, W) means over 3 x 3 pixels, the border repeated; ``F.avg_pool2d`` takes ten times as long."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., :-2] + padded[..., 1:-1]).add_(padded[..., 2:])
    return (across[..., :-2, :] + across[..., 1:-1, :]).add_(across[..., 2:, :]).div_(9)


def transform_dihedral(planes: Tensor, element: int) -> Tensor:
    """Return (..., S, S) planes turned by one of the 8 symmetries of a square: ``element % 4`` quarter turns, then a
    left-right flip where ``element >= 4``; exact on any grid, so image, features and logits move alike."""
    turned = torch.rot90(planes, element % 4, dims=(-2, -1))
    return turned.flip(-1) if element >= 4 else turned
