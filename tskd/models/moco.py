"""MoCo v3 (Chen et al. 2021, arXiv 2104.02057) around a student's own encoder."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Contrast(NamedTuple):
    """Both views of a batch through both networks; (B, D) each, not of unit length."""

    queries: tuple[Tensor, Tensor]
    keys: tuple[Tensor, Tensor]
    """Of the momentum encoder; they carry no gradient."""


class MomentumContrast(nn.Module):
    """The student's encoder with a projector and a predictor, and their momentum copies, which give the keys.

    An image's embedding is the mean over the last feature map: the student uses its patch tokens and not the class
    token. The patch embedding stays random, which the paper found to keep training stable. The momentum copies are
    buffers: a checkpoint holds them, the optimiser does not know them.
    """

    updates: Tensor

    def __init__(self, student: Any, *, hidden: int, width: int, momentum: float, steps: int) -> None:
        """``momentum`` rises over the ``steps`` of the training to 1."""
        super().__init__()
        self.student, self.first_momentum, self.steps = student, momentum, steps
        student.decoder.requires_grad_(False)
        freeze_patch_embedding(student.encoder)
        self.projector = build_mlp(student.feature_dims[-1], hidden, hidden, width)
        self.predictor = build_mlp(width, hidden, width)
        self.momentum_encoder, self.momentum_projector = momentum_copy(student.encoder), momentum_copy(self.projector)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, first: Tensor, second: Tensor) -> Contrast:
        """Two views (B, 3, H, W) in [0, 1]; in training the momentum copies first follow the last optimiser step."""
        if self.training:
            self._follow()
        views = self.student.normalise(first), self.student.normalise(second)
        one, two = (self.predictor(self.projector(pool(self.student.encoder(view)))) for view in views)
        return Contrast((one, two), self.keys(views))

    @torch.no_grad()
    def keys(self, views: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the momentum encoder's answers to two views that are normalised already."""
        one, two = (self.momentum_projector(pool(self.momentum_encoder(view))) for view in views)
        return one, two

    @torch.no_grad()
    def _follow(self) -> None:
        rate = 1 - momentum_at(self.updates, self.steps, self.first_momentum)
        for copied, own in ((self.momentum_encoder, self.student.encoder), (self.momentum_projector, self.projector)):
            held = dict(copied.named_buffers())
            for name, parameter in own.named_parameters():
                held[name].lerp_(parameter.detach(), rate)
        self.updates += 1


def momentum_at(update: Tensor, updates: int, start: float) -> Tensor:
    """Return the momentum of an update: half a cosine from ``start`` at the first to 1 after the last."""
    return 1 - (1 - start) * (1 + torch.cos(math.pi * update / updates)) / 2


def pool(features: list[Tensor]) -> Tensor:
    """Return (B, C), the mean of the last features over the image."""
    return features[-1].mean(dim=(2, 3))


def build_mlp(*widths: int) -> nn.Sequential:
    """Return linear layers with batch norm, ReLU between them; the last norm has no scale or shift of its own."""
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, affine=number < last)]
        layers += [nn.ReLU(inplace=True)] if number < last else []
    return nn.Sequential(*layers)


def freeze_patch_embedding(encoder: nn.Module) -> None:
    """Stop training the layer that cuts a transformer's image into tokens; other encoders have none."""
    for name, parameter in encoder.named_parameters():
        if "patch_embed." in name:
            parameter.requires_grad_(False)


def momentum_copy(module: nn.Module) -> nn.Module:
    """Return a copy of the module whose parameters are buffers."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return copied
