"""Which image is seen when: a pure function of the seed and the step, so that a resumed run sees what it would have."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tskd.seeding import derive, numpy_generator


def batch_order(count: int, batch_size: int, step: int, seed: int, *, distinct: bool = False) -> np.ndarray:
    """Return the indices of one batch, (batch_size,) int64 in [0, count).

    Epochs follow each other without a gap: every image is seen once before any is seen twice, also where a batch is
    larger than the data. With ``distinct`` no image comes twice in a batch: what is left of an epoch is dropped, so
    there have to be at least ``batch_size`` images.
    """
    if distinct:
        epoch, place = divmod(step, count // batch_size)
        return _permutation(count, epoch, seed)[place * batch_size : (place + 1) * batch_size]
    return in_order(count, np.arange(step * batch_size, (step + 1) * batch_size), seed)


def in_order(count: int, positions: np.ndarray, seed: int) -> np.ndarray:
    """Return the indices at these places of a sequence in which every index comes once before any comes twice."""
    epochs, offsets = np.divmod(positions, count)
    return np.array(
        [_permutation(count, int(epoch), seed)[offset] for epoch, offset in zip(epochs, offsets)], dtype=np.int64
    )


def order_with_foreground(
    count: int, holding: Sequence[np.ndarray], share: float, batch_size: int, step: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of one batch and which class each was drawn for, both (batch_size,) int64; class 0: none.

    ``holding`` names for each foreground class the images that show it. ``share`` of all images drawn, spread evenly
    over batches and their parts, are drawn for the classes that some image shows, by turns, and each class's images
    come once before any comes twice; the others are in the usual order.
    """
    classes = [number for number, images in enumerate(holding, start=1) if len(images)]
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    before = np.floor(places * share + 1e-9).astype(np.int64)
    drawn = (np.floor((places + 1) * share + 1e-9) > before) & bool(classes)
    indices = in_order(count, places - before if classes else places, seed)
    wanted = np.zeros(batch_size, dtype=np.int64)
    for place in np.flatnonzero(drawn):
        turn, which = divmod(int(before[place]), len(classes))
        wanted[place] = classes[which]
        images = holding[wanted[place] - 1]
        indices[place] = images[in_order(len(images), np.array([turn]), derive(seed, "class", wanted[place]))[0]]
    return indices, wanted


@lru_cache(maxsize=32)
def _permutation(count: int, epoch: int, seed: int) -> np.ndarray:
    return numpy_generator(seed, "order", epoch).permutation(count)


def part_of(indices: np.ndarray, part: int, parts: int) -> slice:
    """Return the rows of a batch that one process (or one accumulation part) computes; all parts are equally large."""
    size = len(indices) // parts
    return slice(part * size, (part + 1) * size)
