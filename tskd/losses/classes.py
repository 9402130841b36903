"""From logits of K foreground classes to probabilities and predictions; the background is a zero logit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def with_background(logits: Tensor) -> Tensor:
    """Return (B, K + 1, H, W): the implicit background, a zero logit, in front."""
    return F.pad(logits, (0, 0, 0, 0, 1, 0))


def class_probabilities(logits: Tensor) -> Tensor:
    """Return (B, K + 1, H, W) probabilities of background and classes."""
    return with_background(logits).softmax(dim=1)


def hard_prediction(logits: Tensor) -> Tensor:
    """Return (B, H, W) uint8 class index: the largest logit, background where all are below 0."""
    return with_background(logits).argmax(dim=1).to(torch.uint8)
