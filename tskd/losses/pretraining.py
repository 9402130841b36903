"""Losses that need neither labels nor a teacher: pixels of hidden patches, and views of one image told from others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_VARIANCE = 1e-6


def normalise_patches(patches: Tensor) -> Tensor:
    """Return (B, N, P) patches with mean 0 and variance 1 over the P values of each (He et al. 2022, section 3)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + _LEAST_VARIANCE).sqrt()


def hidden_patch_loss(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean squared error over the hidden patches alone.

    ``predicted`` and ``target`` (B, N, P), ``hidden`` (B, N) bool. Source: He et al. 2022, arXiv 2111.06377.
    """
    errors = (predicted.float() - target).square().mean(dim=-1)
    return (errors * hidden).sum() / hidden.sum()


def info_nce(queries: Tensor, keys: Tensor, *, temperature: float, first: int = 0) -> Tensor:
    """Return the contrastive loss of queries (B, D) among keys (M, D), times 2 x temperature.

    Query i belongs to key ``first + i``, all other keys to other images; both are brought to unit length here.
    Source: Chen et al. 2021, arXiv 2104.02057, algorithm 1; the factor keeps gradients alike over temperatures.
    """
    cosines = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T
    own = torch.arange(first, first + len(queries), device=queries.device)
    return 2 * temperature * F.cross_entropy(cosines / temperature, own)
