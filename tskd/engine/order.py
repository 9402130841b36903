"""Which image is seen when: a pure function of the seed and the step, so that a resumed run sees what it would have."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tskd.seeding import numpy_generator


def batch_order(count: int, batch_size: int, step: int, seed: int, *, distinct: bool = False) -> np.ndarray:
    """Return the indices of one batch, (batch_size,) int64 in [0, count).

    Epochs follow each other without a gap: every image is seen once before any is seen twice, also where a batch is
    larger than the data. With ``distinct`` no image comes twice in a batch: what is left of an epoch is dropped, so
    there have to be at least ``batch_size`` images.
    """
    if distinct:
        epoch, place = divmod(step, count // batch_size)
        return _permutation(count, epoch, seed)[place * batch_size : (place + 1) * batch_size]
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, count)
    return np.array([_permutation(count, int(epoch), seed)[offset] for epoch, offset in zip(epochs, offsets)])


@lru_cache(maxsize=8)
def _permutation(count: int, epoch: int, seed: int) -> np.ndarray:
    return numpy_generator(seed, "order", epoch).permutation(count)


def part_of(indices: np.ndarray, part: int, parts: int) -> slice:
    """Return the rows of a batch that one process (or one accumulation part) computes; all parts are equally large."""
    size = len(indices) // parts
    return slice(part * size, (part + 1) * size)
