"""From stored images to training batches; every batch is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tskd.data.amplitude import draw_styles, mix_amplitudes
from tskd.data.appearance import Appearance, apply_appearance, draw_appearance
from tskd.data.augment import (
    Bends,
    GeometryRange,
    Photometry,
    apply_photometry,
    crop_bends,
    crop_cells,
    crop_maps,
    draw_bends,
    draw_crops,
    draw_geometry,
    draw_photometry,
    hold_foreground,
    move_images,
    move_masks,
)
from tskd.engine.order import batch_order, order_with_foreground, part_of
from tskd.errors import UserError
from tskd.recipe.schema import AugmentConfig, Flip
from tskd.seeding import torch_generator
from tskd.types import UNLABELLED, Batch, SegmentationOutput


class ImageArray(Protocol):
    """Images (N, S, S, 3) uint8 that are read by index: an array, a memory map, or several of them as one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, indices: Any, /) -> np.ndarray: ...


CELL = 16
"""Side in pixels of the cells that crops are made of: image sizes are multiples of it."""

Batches = Callable[[int, int, int], Batch]
"""(step, part, parts) -> that part of the step's batch."""


@dataclass(frozen=True)
class ImageBatches:
    """Batches of stored images, with masks or without, augmented as the settings say."""

    images: ImageArray
    masks: np.ndarray | None
    """(N, S, S) uint8 class index."""
    names: Sequence[str]
    batch_size: int
    augment: AugmentConfig
    seed: int
    flip: tuple[bool, bool] = (False, False)
    """Whether flips (horizontal, vertical) are allowed."""
    teacher_images: ImageArray | None = None
    """The same images at the teacher's size, where it is another."""
    others: ImageArray | None = None
    """Those whose amplitudes ``augment.amplitude`` takes; None: these images."""

    @property
    def styles(self) -> ImageArray:
        """The images whose amplitudes may be taken."""
        return self.images if self.others is None else self.others

    def __call__(self, step: int, part: int, parts: int) -> Batch:
        indices, wanted = self.drawn(step)
        rows = part_of(indices, part, parts)
        chosen = indices[rows]
        maps, photometry = self._draw(step, rows)
        bends = _rows_of(draw_bends(self.batch_size, self._limits, torch_generator(self.seed, "bends", step)), rows)
        images = move_images(to_images(self.images[chosen]), maps, bends=bends)
        masks = None
        if self.masks is not None:
            masks = move_masks(torch.from_numpy(self.masks[chosen]), maps, bends).long()
        views = change_styles(images, self, step, rows)
        views = views if photometry is None else apply_photometry(views, photometry)
        views = change_appearance(views, self, step, rows)
        batch = Batch(images, views, masks, names=tuple(self.names[i] for i in chosen))
        grid = self.images.shape[1] // CELL
        if self.teacher_images is not None:
            batch = batch._replace(teacher_images=self._show_teacher(chosen, maps, bends, step, rows, grid))
        return crop_batch(batch, self, step, rows, grid=grid, wanted=wanted)

    def drawn(self, step: int) -> tuple[np.ndarray, Tensor | None]:
        """Return the indices of a step's batch, and where some are drawn for a class they show, which (0: none)."""
        count, share = len(self.images), self.augment.foreground
        if self.masks is None or share == 0:
            return batch_order(count, self.batch_size, step, self.seed), None
        indices, wanted = order_with_foreground(count, self._holding, share, self.batch_size, step, self.seed)
        return indices, torch.from_numpy(wanted)

    @cached_property
    def _holding(self) -> list[np.ndarray]:
        """The images that show each foreground class."""
        assert self.masks is not None
        shown = np.stack([np.bincount(mask.ravel(), minlength=UNLABELLED + 1) > 0 for mask in self.masks])
        return [np.flatnonzero(column) for column in shown[:, 1:UNLABELLED].T]

    @property
    def _limits(self) -> GeometryRange:
        return geometry_range(self.augment, self.flip)

    def _show_teacher(
        self, chosen: np.ndarray, maps: Tensor, bends: Bends | None, step: int, rows: slice, grid: int
    ) -> Tensor:
        """Return what the batch's images show, from the teacher's: moved and cropped in one go, so that the crop need
        not end on a pixel there."""
        assert self.teacher_images is not None
        side, corners = _draw_crop(self, step, rows, grid)
        images = to_images(self.teacher_images[chosen])
        size = round(images.shape[-1] * side / grid)
        moved = crop_maps(maps, side, corners, grid), size, crop_bends(bends, side, corners, grid)
        return move_images(images, *moved)

    def _draw(self, step: int, rows: slice) -> tuple[Tensor, Photometry | None]:
        """Draw for the whole batch and cut: the same numbers whatever the number of processes."""
        generator = torch_generator(self.seed, "augment", step)
        maps = draw_geometry(self.batch_size, self._limits, generator)[rows]
        if self.augment.photometric == 0:
            return maps, None
        size = self.images.shape[1]
        shape = torch.Size((self.batch_size, 3, size, size))
        photometry = draw_photometry(shape, self.augment.photometric, generator)
        return maps, Photometry(*(value[rows] for value in photometry))


class Source(Protocol):
    """What makes batches and says how they are to be cropped."""

    @property
    def batch_size(self) -> int: ...
    @property
    def augment(self) -> AugmentConfig: ...
    @property
    def seed(self) -> int: ...
    @property
    def styles(self) -> ImageArray: ...


def change_styles(images: Tensor, source: Source, step: int, rows: slice) -> Tensor:
    """Return the ``rows`` of a step's batch with amplitudes of other images' low frequencies, as the settings say."""
    if source.augment.amplitude == 0:
        return images
    generator = torch_generator(source.seed, "amplitude", step)
    drawn = draw_styles(source.batch_size, source.augment.amplitude, len(source.styles), generator)
    happens, others, weights = (values[rows] for values in drawn)
    if not happens.any():
        return images
    others = to_images(source.styles[others[happens].numpy()])
    changed = images.clone()
    changed[happens] = mix_amplitudes(images[happens], others, weights[happens], source.augment.amplitude_band)
    return changed


def change_appearance(images: Tensor, source: Source, step: int, rows: slice) -> Tensor:
    """Return the ``rows`` of a step's batch as the network in training sees them, their grey values changed."""
    if source.augment.appearance is None:
        return images
    generator = torch_generator(source.seed, "appearance", step)
    drawn = draw_appearance(source.batch_size, source.augment.appearance, generator)
    return apply_appearance(images, Appearance(*(values[rows] for values in drawn)))


def _rows_of(bends: Bends | None, rows: slice) -> Bends | None:
    return bends and bends._replace(points=bends.points[rows], centres=bends.centres[rows])


def crop_batch(
    batch: Batch, source: Source, step: int, rows: slice, *, grid: int, wanted: Tensor | None = None
) -> Batch:
    """Return the ``rows`` of a step's batch with images, views, masks and targets cut alike, in cells of a grid; the
    teacher's images are left as they are.

    One size is drawn for the whole batch, so that it stays one tensor, and a place for each image; where a class is
    ``wanted`` of an image of the whole batch (0: none is), the place shows it.
    """
    if source.augment.crop == 0:
        return batch
    size = batch.images.shape[-1]
    if size % grid:
        raise UserError(
            f"augment.crop cuts whole cells, and {size} px are not a multiple of the student's {grid} cells a side. "
            "Choose another data.image_size, or set augment.crop=0."
        )
    side, corners = _draw_crop(source, step, rows, grid)
    if batch.masks is not None and wanted is not None:
        generator = torch_generator(source.seed, "foreground", step)
        uniform = torch.rand(source.batch_size, 3, dtype=torch.float64, generator=generator)
        corners = hold_foreground(corners, side, batch.masks, wanted[rows], uniform[rows], grid)
    cut = partial(crop_cells, side=side, corners=corners, grid=grid)
    return batch._replace(
        images=cut(batch.images),
        views=cut(batch.views),
        masks=None if batch.masks is None else cut(batch.masks),
        targets=batch.targets
        and SegmentationOutput(tuple(map(cut, batch.targets.features)), cut(batch.targets.logits)),
    )


def _draw_crop(source: Source, step: int, rows: slice, grid: int) -> tuple[int, Tensor]:
    """Return side and top left cells of a step's crops; without crops the whole grid."""
    if source.augment.crop == 0:
        return grid, torch.zeros(source.batch_size, 2, dtype=torch.int64)[rows]
    generator = torch_generator(source.seed, "crop", step)
    side, corners = draw_crops(source.batch_size, grid, source.augment.crop, generator)
    return side, corners[rows]


def geometry_range(augment: AugmentConfig, flip: tuple[bool, bool]) -> GeometryRange:
    """Return the limits of the geometric augmentation that the settings and the data set allow."""
    return GeometryRange(
        *flip, augment.rotate, augment.scale, augment.shift,
        p_rotate=augment.p_rotate, p_scale=augment.p_scale, p_elastic=augment.p_elastic, elastic=augment.elastic,
    )  # fmt: skip


def allowed_flips(flip: Flip, classes: Sequence[str]) -> tuple[bool, bool]:
    """Return whether images may be mirrored (horizontally, vertically); ``auto`` keeps left and right apart."""
    if flip == "auto":
        sided = any(side in name.lower() for name in classes for side in ("left", "right"))
        return (not sided, False)
    return (flip in ("horizontal", "both"), flip == "both")


def to_images(pixels: np.ndarray) -> Tensor:
    """Return (B, 3, H, W) float32 in [0, 1] from (B, H, W, 3) uint8."""
    planes = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)  # a copy: arrays on disk are not writable
    return planes.float().div_(255)
