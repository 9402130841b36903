"""Images mixed in boxes, and what a network learns from its own average's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tskd.losses.classes import class_probabilities
from tskd.types import UNLABELLED

CUT_MIX = (0.02, 0.4)
"""Smallest and largest area of the boxes of cut-mix, as shares of the image's (UniMatch)."""


class Answers(NamedTuple):
    """An average's masks and how sure it is of them."""

    masks: Tensor
    """(B, H, W) int64 class index."""
    confidence: Tensor
    """(B, H, W) probability of that class."""


def answers_of(logits: Tensor) -> Answers:
    """Return the likeliest class of (B, K, H, W) logits in every pixel, and its probability."""
    confidence, masks = class_probabilities(logits.float()).max(dim=1)
    return Answers(masks, confidence)


def sure(answers: Answers, threshold: float) -> Tensor:
    """Return (B, H, W) masks whose pixels are UNLABELLED where the probability is below the threshold."""
    return answers.masks.where(answers.confidence >= threshold, UNLABELLED)


def boxes(numbers: Tensor, size: Sequence[int], areas: tuple[float, float]) -> Tensor:
    """Return (B, H, W) of bool, true inside one box an image of ``size``, from (B, 4) numbers in [0, 1).

    The box's area is between the two shares ``areas`` of the image's, its sides are in a ratio of 0.3 to 1 / 0.3,
    and it lies inside the image (UniMatch's cut-mix, Yang et al. 2023, arXiv 2208.09910).
    """
    height, width = size
    area = areas[0] + (areas[1] - areas[0]) * numbers[:, 0]
    ratio = torch.exp((2 * numbers[:, 1] - 1) * -torch.log(torch.tensor(0.3)))
    high = ((area * ratio).sqrt() * height).round().clamp(1, height)
    wide = ((area / ratio).sqrt() * width).round().clamp(1, width)
    top = (numbers[:, 2] * (height - high + 1)).floor()
    left = (numbers[:, 3] * (width - wide + 1)).floor()
    rows = torch.arange(height, device=numbers.device)[None]
    columns = torch.arange(width, device=numbers.device)[None]
    inside_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    return inside_rows[:, :, None] & inside_columns[:, None, :]
