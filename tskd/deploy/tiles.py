"""Large images in overlapping tiles, whose answers are blended: the memory of the network is that of one tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tskd.data.tiles import OVERLAP, cut_tile, fill_up, fits, tile_corners
from tskd.deploy.network_file import Answer, ask, confidence

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

_SIGMA = 0.125
"""Of the Gaussian that weighs a tile's pixels, as a share of its side."""
_LEAST_WEIGHT = 1e-3
_LEAST_PROBABILITY = 1e-30
"""Below it a logarithm is not taken further."""


def ask_by_size(
    session: InferenceSession, image: np.ndarray, tile: int | None, options: RunOptions | None = None
) -> Answer:
    """Return the answer for one image (H, W, 3) uint8: of a larger one by tiles, where a side of tiles is given."""
    if tile is None:
        return ask(session, image, options)
    return ask_in_tiles(lambda part: ask(session, part, options), image, tile)


def ask_in_tiles(
    network: Callable[[np.ndarray], Answer], image: np.ndarray, side: int, *, overlap: float = OVERLAP
) -> Answer:
    """Return a network's answer for one image (H, W, 3) uint8 by square tiles of ``side`` px.

    An image that fits into one tile is answered as it is. Logarithms of probabilities are averaged, which is to average
    logits, as nnU-Net does: whether logits were divided by a temperature then changes no mask. Unfamiliarity is the
    mean over tiles.
    """
    if fits(image.shape, side):
        return network(image)
    strange: list[float | None] = []

    def planes(part: np.ndarray) -> np.ndarray:
        answer = network(part)
        strange.append(answer.unfamiliarity)
        return np.log(np.maximum(answer.probabilities, _LEAST_PROBABILITY))

    probabilities = blend_tiles(planes, image, side, overlap=overlap)
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum(axis=0)
    classes = likeliest(probabilities)
    known = [one for one in strange if one is not None]
    return Answer(classes, probabilities, confidence(classes, probabilities), float(np.mean(known)) if known else None)


def blend_tiles(
    planes: Callable[[np.ndarray], np.ndarray], image: np.ndarray, side: int, *, overlap: float = OVERLAP
) -> np.ndarray:
    """Return (K, H, W) float32 of an image (H, W, 3) from what ``planes`` gives for its tiles (side, side, 3).

    An image that fits into one tile is asked about as it is. Tiles lie, are weighed and, where one side of the image
    is shorter, are filled up with zeros as in MONAI's ``sliding_window_inference`` (mode ``gaussian``).
    """
    if fits(image.shape, side):
        return planes(image)
    filled, (top, left) = fill_up(image, side)
    weight = _weights(side)
    total, weights = np.zeros((), np.float32), np.zeros(filled.shape[:2], np.float32)
    for corner in tile_corners(filled.shape, side, overlap):
        found = planes(cut_tile(filled, corner, side))
        if not total.ndim:
            total = np.zeros((len(found), *filled.shape[:2]), np.float32)
        place = tuple(slice(start, start + side) for start in corner)
        total[:, *place] += found * weight
        weights[place] += weight
    total /= weights
    height, width = image.shape[:2]
    return total[:, top : top + height, left : left + width]


def likeliest(probabilities: np.ndarray) -> np.ndarray:
    """Return the class of each pixel, (H, W) uint8, row by row: numpy's indices take eight bytes a pixel."""
    classes = np.empty(probabilities.shape[1:], np.uint8)
    for row, found in enumerate(classes):
        found[:] = probabilities[:, row].argmax(axis=0)
    return classes


def _weights(side: int) -> np.ndarray:
    """Return what each pixel of a tile counts for, (side, side): less towards its edges, where it sees least around."""
    place = np.arange(side, dtype=np.float32) - (side - 1) / 2
    along = np.exp(place**2 / (-2 * (_SIGMA * side) ** 2))
    both = np.outer(along, along)
    return np.maximum(both, max(both.min(), _LEAST_WEIGHT)).astype(np.float32)
