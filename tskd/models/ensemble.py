"""Several networks as one: their probabilities are averaged, over mirrored images too where anatomy allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd.types import SegmentationOutput

KIND = "ensemble"
LEAST = 1e-6
"""Probabilities below are not told apart: half precision, in which answers are stored, could not."""


class Ensemble(nn.Module):
    """Answers with the mean of its members' probabilities, and with the features of the first."""

    def __init__(self, members: Sequence[nn.Module], *, flip: tuple[bool, bool] = (False, False)) -> None:
        """``flip``: whether images are looked at mirrored (horizontally, vertically) as well."""
        super().__init__()
        self.members = nn.ModuleList(members)
        first: Any = members[0]
        self.feature_dims: tuple[int, ...] = first.feature_dims
        self.mirrors = mirrors(flip)

    def forward(self, images: Tensor) -> SegmentationOutput:
        """(B, 3, H, W) in [0, 1] to the first member's features and (B, K, H, W) logits of the mean probability."""
        answers = [member(images) for member in self.members]
        total = torch.stack([probabilities_of(answer.logits) for answer in answers]).sum(dim=0)
        for axes in self.mirrors:
            mirrored = images.flip(axes)
            for member in self.members:
                total = total + probabilities_of(member(mirrored).logits).flip(axes)
        mean = total / (len(self.members) * (1 + len(self.mirrors)))
        return SegmentationOutput(answers[0].features, logits_of(mean))

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to the first member's features."""
        first: Any = self.members[0]
        features: tuple[Tensor, ...] = first.encode(images)
        return features


def mirrors(flip: tuple[bool, bool]) -> tuple[tuple[int, ...], ...]:
    """Return the axes of each mirrored look at (B, C, H, W) images; ``flip``: (horizontal, vertical)."""
    horizontal, vertical = flip
    found = [(3,)] * horizontal + [(2,)] * vertical + [(2, 3)] * (horizontal and vertical)
    return tuple(found)


def probabilities_of(logits: Tensor) -> Tensor:
    """Return the (B, K + 1, H, W) float32 probabilities of (B, K, H, W) logits, the background's first."""
    return F.pad(logits.float(), (0, 0, 0, 0, 1, 0)).softmax(dim=1)


def logits_of(probabilities: Tensor) -> Tensor:
    """Return the (B, K, H, W) logits, background a zero logit, that (B, K + 1, H, W) probabilities come from."""
    logs = probabilities.clamp(min=LEAST).log()
    return logs[:, 1:] - logs[:, :1]
