"""Large images in overlapping tiles, whose probabilities are blended: the memory of the network is that of one tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tskd.deploy.network_file import Answer, ask, confidence

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OVERLAP = 0.5
"""Share of a tile's side that the next one covers again."""
_SIGMA = 0.125
"""Of the Gaussian that weighs a tile's pixels, as a share of its side."""
_LEAST_WEIGHT = 1e-3


def ask_in_tiles(session: InferenceSession, image: np.ndarray, side: int, *, overlap: float = OVERLAP) -> Answer:
    """Return the answer for one image (H, W, 3) uint8 by square tiles of ``side`` px; UserError as ``ask``.

    An image that fits into one tile is answered as it is. Tiles lie, are weighed and, where one side of the image is
    shorter, are filled up with zeros as in MONAI's ``sliding_window_inference`` (mode ``gaussian``). Unfamiliarity is
    the mean over tiles.
    """
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return ask(session, image)
    before = [max(side - length, 0) // 2 for length in (height, width)]
    after = [max(side - length, 0) - first for length, first in zip((height, width), before)]
    padded = np.pad(image, (*zip(before, after), (0, 0))) if any(before + after) else image
    weight = _weights(side)
    total, weights, strange = np.zeros((), np.float32), np.zeros(padded.shape[:2], np.float32), []
    for place in _places(padded.shape[:2], side, overlap):
        answer = ask(session, np.ascontiguousarray(padded[place]))
        if not total.ndim:
            total = np.zeros((len(answer.probabilities), *padded.shape[:2]), np.float32)
        total[:, *place] += answer.probabilities * weight
        weights[place] += weight
        strange.append(answer.unfamiliarity)
    total /= weights
    probabilities = total[:, before[0] : before[0] + height, before[1] : before[1] + width]
    classes = _likeliest(probabilities)
    known = [one for one in strange if one is not None]
    return Answer(classes, probabilities, confidence(classes, probabilities), float(np.mean(known)) if known else None)


def _likeliest(probabilities: np.ndarray) -> np.ndarray:
    """Return the class of each pixel, (H, W) uint8, row by row: numpy's indices take eight bytes a pixel."""
    classes = np.empty(probabilities.shape[1:], np.uint8)
    for row, found in enumerate(classes):
        found[:] = probabilities[:, row].argmax(axis=0)
    return classes


def _places(size: tuple[int, ...], side: int, overlap: float) -> Iterator[tuple[slice, slice]]:
    """Yield tiles that cover an image of (rows, columns), at least ``side`` each; the last ones end at its edges."""
    step = max(int(side * (1 - overlap)), 1)
    starts = [[min(number * step, length - side) for number in range(_count(length, side, step))] for length in size]
    for row in starts[0]:
        for column in starts[1]:
            yield slice(row, row + side), slice(column, column + side)


def _count(length: int, side: int, step: int) -> int:
    return math.ceil((length - side) / step) + 1


def _weights(side: int) -> np.ndarray:
    """Return what each pixel of a tile counts for, (side, side): less towards its edges, where it sees least around."""
    place = np.arange(side, dtype=np.float32) - (side - 1) / 2
    along = np.exp(place**2 / (-2 * (_SIGMA * side) ** 2))
    both = np.outer(along, along)
    return np.maximum(both, max(both.min(), _LEAST_WEIGHT)).astype(np.float32)
