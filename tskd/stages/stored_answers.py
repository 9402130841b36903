"""Stored answers: where the views of a cache lie, and batches that read them. Image, features and logits move alike."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from tskd.data.augment import (
    Bends,
    Photometry,
    apply_photometry,
    draw_photometry,
    move_images,
    transform_dihedral,
)
from tskd.data.transfer_set import TransferSet
from tskd.engine.batches import ImageArray, change_appearance, change_styles, crop_batch, to_images
from tskd.engine.order import batch_order, part_of
from tskd.recipe.schema import AugmentConfig
from tskd.seeding import numpy_generator, torch_generator
from tskd.types import Batch, SegmentationOutput

LAYOUT = "cache.json"
TEACHER_GFLOPS = "teacher_gflops"
"""Metric of a cache and of a distillation: what the answers that a student learned cost."""
STORED = ("maps", "features", "logits")
"""The tensors of a shard, (images, views, ...) each."""
BENDS = "bends"
"""Another one where views are bent: the control points."""
QUARTER_TURN = 90.0


@dataclass(frozen=True)
class CacheLayout:
    """What is in a cache: the shapes of one stored answer and how its views were drawn."""

    images: int
    views: int
    level: int
    """Which of the teacher's features is kept."""
    features: tuple[int, int, int]
    """(C, h, w) on the student's grid."""
    logits: tuple[int, int, int]
    """(K, S, S)"""
    seed: int
    shard_images: int
    """Images in a shard; the last one may hold fewer."""

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.images * image_bytes(self.views, self.features, self.logits)

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard_images)


def image_bytes(views: int, features: Sequence[int], logits: Sequence[int]) -> int:
    """Return what the stored answers of an image take on the disk."""
    return 2 * views * (math.prod(features) + math.prod(logits))


def read_layout(folder: Path) -> CacheLayout:
    """Return what is in a finished cache."""
    values = json.loads((folder / LAYOUT).read_text(encoding="utf-8"))
    return CacheLayout(**{**values, "features": tuple(values["features"]), "logits": tuple(values["logits"])})


def shard_path(folder: Path, shard: int) -> Path:
    """Return where a shard lies."""
    return folder / f"shard-{shard:05d}.safetensors"


@dataclass(frozen=True)
class CachedBatches:
    """Batches whose targets are the teacher's stored answers; a pure function of (seed, step) like all others.

    ``transfer`` is as the student sees it.
    """

    folder: Path
    transfer: TransferSet
    batch_size: int
    augment: AugmentConfig
    seed: int
    flip: tuple[bool, bool] = (False, False)

    def __call__(self, step: int, part: int, parts: int) -> Batch:
        layout = _layout_of(self.folder)
        indices = batch_order(layout.images, self.batch_size, step, self.seed)
        rows = part_of(indices, part, parts)
        chosen = indices[rows]
        views = numpy_generator(self.seed, "views", step).integers(layout.views, size=self.batch_size)[rows]
        elements = self.elements(step)[rows]
        maps, features, logits, bends = _read_answers(self.folder, layout, chosen, views)
        images = _turn(move_images(to_images(self.transfer.images[chosen]), maps, bends=bends), elements)
        features, logits = _turn(features, elements), _turn(logits, elements)
        names = tuple(self.transfer.records[index].id for index in chosen)
        answer = SegmentationOutput((features,), logits)
        shown = self._photometry(change_styles(images, self, step, rows), step, rows)
        shown = change_appearance(shown, self, step, rows)
        batch = Batch(images, shown, None, answer, names)
        return crop_batch(batch, self, step, rows, grid=layout.features[-1])

    @property
    def styles(self) -> ImageArray:
        """The images whose amplitudes ``augment.amplitude`` takes: those of the transfer set."""
        return self.transfer.images

    @property
    def symmetries(self) -> list[int]:
        """Which of the square's 8 symmetries the augmentation allows: quarter turns only where it turns that far."""
        return self._with_turns(4 if self.augment.rotate >= QUARTER_TURN else 1)

    def elements(self, step: int) -> np.ndarray:
        """Draw a symmetry for each image of a step; quarter turns for no more images than the settings turn."""
        generator = numpy_generator(self.seed, "symmetry", step)
        elements = generator.choice(self.symmetries, size=self.batch_size)
        if self.augment.p_rotate == 1:
            return elements
        upright = generator.choice(self._with_turns(1), size=self.batch_size)
        return np.where(generator.random(self.batch_size) < self.augment.p_rotate, elements, upright)

    def _with_turns(self, quarters: int) -> list[int]:
        turns = range(quarters)
        horizontal = [4 + turn for turn in turns] if self.flip[0] else []
        vertical = [4 + (turn + 2) % 4 for turn in turns] if self.flip[1] else []
        both = [(turn + 2) % 4 for turn in turns] if all(self.flip) else []
        return sorted({*turns, *horizontal, *vertical, *both})

    def _photometry(self, images: Tensor, step: int, rows: slice) -> Tensor:
        if self.augment.photometric == 0:
            return images
        shape = torch.Size((self.batch_size, *images.shape[1:]))
        drawn = draw_photometry(shape, self.augment.photometric, torch_generator(self.seed, "photometry", step))
        return apply_photometry(images, Photometry(*(value[rows] for value in drawn)))


def _read_answers(
    folder: Path, layout: CacheLayout, images: np.ndarray, views: np.ndarray
) -> tuple[Tensor, Tensor, Tensor, Bends | None]:
    """Return maps, features, logits and, where there are some, bends of each (image, view).

    A shard stays mapped only while it is read: a mapping that is kept counts as this process's memory, page by page,
    until all of the cache does; opening takes a tenth of a millisecond.
    """
    shards, rows = np.divmod(images, layout.shard_images)
    answers: dict[int, list[Tensor]] = {}
    for shard in np.unique(shards).tolist():
        with safe_open(shard_path(folder, shard), framework="pt") as file:
            bent = BENDS in file.keys()  # noqa: SIM118 - a file of safetensors is no mapping
            stored = [file.get_slice(name) for name in (*STORED, *([BENDS] if bent else []))]
            for place in np.flatnonzero(shards == shard).tolist():
                answers[place] = [one[int(rows[place]), int(views[place])] for one in stored]
    columns = zip(*(answers[place] for place in range(len(images))))
    maps, features, logits, *points = (torch.stack(column) for column in columns)
    bends = Bends(points[0], torch.zeros(len(images), 2)) if points else None
    return maps, features.float(), logits.float(), bends


@lru_cache(maxsize=4)
def _layout_of(folder: Path) -> CacheLayout:
    return read_layout(folder)


def _turn(planes: Tensor, elements: np.ndarray) -> Tensor:
    """Return (B, C, S, S) planes, each turned by its element."""
    turned = torch.empty_like(planes)
    for element in np.unique(elements):
        rows = torch.from_numpy(np.flatnonzero(elements == element))
        turned[rows] = transform_dihedral(planes[rows], int(element))
    return turned
