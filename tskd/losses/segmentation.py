"""The loss on labels: teacher, student and control are all trained with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from tskd.losses.classes import with_background
from tskd.types import UNLABELLED

CROSS_ENTROPY_WEIGHT = 0.2
DICE_WEIGHT = 0.8

_dice = DiceLoss(include_background=False, softmax=False, squared_pred=True, smooth_nr=1.0, smooth_dr=1.0)


def label_loss(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return ``loss`` = 0.2 cross-entropy + 0.8 Dice loss, and its parts (arXiv 2503.06976; weights of SAMed).

    ``logits`` (B, K, H, W), ``masks`` (B, H, W) int64. Cross-entropy is averaged per image and Dice per image and
    class, so that a batch cut over processes gives the same loss; squared denominators and a smoothing of one pixel
    keep Dice defined where a class is absent. Pixels marked UNLABELLED count in neither part; an image of nothing else
    has loss 0.
    """
    scores = with_background(logits)
    known = (masks != UNLABELLED)[:, None]
    surprise = F.cross_entropy(scores, masks, ignore_index=UNLABELLED, reduction="none")
    cross_entropy = (surprise.sum(dim=(1, 2)) / known.sum(dim=(1, 2, 3)).clamp(min=1)).mean()
    target = F.one_hot(masks.where(known[:, 0], 0), scores.shape[1]).permute(0, 3, 1, 2).to(scores.dtype)
    dice = _dice(scores.softmax(dim=1) * known, target * known)
    loss = CROSS_ENTROPY_WEIGHT * cross_entropy + DICE_WEIGHT * dice
    return {"loss": loss, "cross_entropy": cross_entropy, "dice_loss": dice}


def deep_label_loss(scales: Sequence[Tensor], masks: Tensor) -> dict[str, Tensor]:
    """Return :func:`label_loss` and its parts averaged over logits (B, K, H, W) of several levels, finest first.

    Weights 1, 1/2, 1/4 and so on, divided by their sum (deep supervision as in nnU-Net, Isensee et al. 2021).
    """
    losses = [label_loss(logits, masks) for logits in scales]
    weights = torch.tensor([0.5**level for level in range(len(losses))], device=masks.device)
    shares = weights / weights.sum()
    return {name: (torch.stack([loss[name] for loss in losses]) * shares).sum() for name in losses[0]}
