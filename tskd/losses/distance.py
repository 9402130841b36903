"""Distances between student and teacher: each is both a loss and a metric. Arguments: student first, then teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tskd.errors import UserError
from tskd.losses.classes import with_background
from tskd.recipe.explanations import shown

RELATION_GRID = 12
"""Side to which feature maps are pooled before all pairs of positions are compared."""

EncoderLoss = Callable[[Tensor, Tensor], Tensor]
DecoderLoss = Callable[..., Tensor]


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error to the teacher's features standardised over channels at each position.

    Both (B, C, h, w). Standardising keeps one loss weight right for teachers of any feature scale.
    """
    target = F.layer_norm(teacher.movedim(1, -1), teacher.shape[1:2])
    return F.mse_loss(student.movedim(1, -1), target)


def feature_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - cosine of the angle between the channels at each position, averaged; both (B, C, h, w)."""
    return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of unit-length attention maps (Zagoruyko and Komodakis 2017, equation 2, p = 2).

    (B, C_s, h, w) and (B, C_t, h, w): an attention map is the sum of squares over channels, so C may differ. The sum
    over positions makes the value independent of the grid.
    """
    maps = [F.normalize(features.pow(2).sum(dim=1).flatten(1), dim=1) for features in (student, teacher)]
    return (maps[0] - maps[1]).pow(2).sum(dim=1).mean()


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the cosine similarities of all pairs of positions within an image.

    (B, C_s, h, w) and (B, C_t, h, w); grids above 12 x 12 are pooled first (structured distillation, Liu et al. 2019).
    """
    return F.mse_loss(_similarities(student), _similarities(teacher))


def _similarities(features: Tensor) -> Tensor:
    """Return (B, N, N): the cosines between the channels of all pairs of N positions."""
    height, width = (min(side, RELATION_GRID) for side in features.shape[-2:])
    tokens = F.normalize(F.adaptive_avg_pool2d(features, (height, width)).flatten(2), dim=1)
    return tokens.transpose(1, 2) @ tokens


def logit_mse(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the mean squared error of logits divided by the temperature; both (B, K, H, W)."""
    return F.mse_loss(student / temperature, teacher / temperature)


def logit_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the Kullback-Leibler divergence from the teacher's class probabilities, per pixel (Hinton et al. 2015).

    Both (B, K, H, W), the background implicit; multiplied by temperature squared so that gradients keep their size.
    """
    return temperature**2 * _divergence(_log_shares(student, temperature), _log_shares(teacher, temperature))


def soft_dice(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return 1 - Dice between the probabilities of the foreground classes, per image and class; both (B, K, H, W).

    Squared denominators make the teacher's own probabilities the minimum, 0.
    """
    return _dice_distance(_log_shares(student, temperature), _log_shares(teacher, temperature))


def kl_dice(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return KL + soft Dice: every pixel counts, and small structures count as much as large ones."""
    shares = [_log_shares(logits, temperature) for logits in (student, teacher)]
    return temperature**2 * _divergence(*shares) + _dice_distance(*shares)


def _log_shares(logits: Tensor, temperature: float) -> Tensor:
    """Return (B, K + 1, H, W): log probabilities of the background and the classes."""
    return F.log_softmax(with_background(logits) / temperature, dim=1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1).mean()


def _dice_distance(student: Tensor, teacher: Tensor) -> Tensor:
    first, second = (shares[:, 1:].exp().flatten(2) for shares in (student, teacher))
    overlap = 2 * (first * second).sum(dim=-1) + 1
    return (1 - overlap / (first.pow(2).sum(dim=-1) + second.pow(2).sum(dim=-1) + 1)).mean()


ENCODER_LOSSES: dict[str, EncoderLoss] = {
    "mse": feature_mse,
    "cosine": feature_cosine,
    "attention": attention_transfer,
    "relation": relation,
}
DECODER_LOSSES: dict[str, DecoderLoss] = {"mse": logit_mse, "kl": logit_kl, "dice": soft_dice, "kl_dice": kl_dice}


def choose(losses: dict[str, Callable[..., Tensor]], name: str, key: str) -> Callable[..., Tensor]:
    """Return the loss of that name; UserError names the recipe's key and the names allowed."""
    if name not in losses:
        raise UserError(f"{key}: {shown(name)} is not known. Choose one of: {', '.join(sorted(losses))}")
    return losses[name]


def match_grid(features: Tensor, size: torch.Size) -> Tensor:
    """Return features on a grid of (h, w) ``size``: averaged where it is coarser, bilinear where it is finer."""
    if features.shape[-2:] == size:
        return features
    if features.shape[-1] >= size[-1]:
        return F.adaptive_avg_pool2d(features, (size[0], size[1]))
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def match_size(logits: Tensor, size: torch.Size) -> Tensor:
    """Return logits at (H, W) ``size``, bilinear and antialiased where it is smaller; K may be 0."""
    if logits.shape[-2:] == size:
        return logits
    if logits.shape[1] == 0:  # of a teacher that has features alone
        return logits.new_empty(*logits.shape[:2], *size)
    return F.interpolate(logits.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
