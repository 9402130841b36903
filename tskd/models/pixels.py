"""What weights expect of pixels: the statistics, or the range, of the images they were trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import Tensor, nn

Triple = tuple[float, float, float]


class Statistics(NamedTuple):
    """Mean and deviation of the channels of RGB in [0, 1]."""

    mean: Triple
    std: Triple


UNIT = Statistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
MINMAX = "minmax"
PIXELS: dict[str, Statistics] = {
    "imagenet": Statistics(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "half": Statistics(IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),
    "clip": Statistics(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "unit": UNIT,
    MINMAX: UNIT,
}
"""Name, as the settings have it, -> statistics. ``imagenet``: SAM, DINO, DeiT, most of timm; ``half`` (Inception):
augreg, SigLIP, RadImageNet; ``unit``: [0, 1] as it is; ``minmax``: each image stretched to [0, 1] (MedSAM)."""


class Normalise(nn.Module):
    """Give a network the pixels that its weights were trained on; a module, so that an exported graph has it too."""

    mean: Tensor
    std: Tensor

    def __init__(self, statistics: Statistics, *, stretch: bool = False) -> None:
        """``stretch``: every image is brought to [0, 1] by its own smallest and largest value first, as in MedSAM."""
        super().__init__()
        self.stretch = stretch
        self.register_buffer("mean", torch.tensor(statistics.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(statistics.std).reshape(3, 1, 1), persistent=False)

    @classmethod
    def of(cls, name: str) -> Normalise:
        """Return what the settings' word for pixels stands for, see :func:`statistics_of`."""
        return cls(statistics_of(name), stretch=name == MINMAX)

    def forward(self, planes: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] at the network's size to the same shape."""
        if self.stretch:
            low, high = planes.amin((1, 2, 3), keepdim=True), planes.amax((1, 2, 3), keepdim=True)
            planes = (planes - low) / (high - low).clamp(min=1e-8)
        return (planes - self.mean) / self.std

    def undo(self, planes: Tensor) -> Tensor:
        """(B, 3, H, W) as the network sees it to RGB; what was stretched stays so."""
        return planes * self.std + self.mean


def statistics_of(name: str) -> Statistics:
    """Return what a name of :data:`PIXELS` stands for, or numbers such as ``0.43,0.41,0.3/0.21,0.16,0.14``."""
    if name in PIXELS:
        return PIXELS[name]
    mean, std = ([float(value) for value in part.split(",")] for part in name.split("/"))
    return Statistics((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def name_of(mean: object, std: object) -> str | None:
    """Return the name of such statistics, or their numbers where they have none; None: they are no statistics."""
    if not isinstance(mean, (list, tuple)) or not isinstance(std, (list, tuple)):
        return None
    found = _rounded(*mean, *std)
    known = next((name for name, known in PIXELS.items() if _rounded(*known.mean, *known.std) == found), None)
    if known is not None or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        return known
    return "/".join(",".join(f"{float(value):g}" for value in part) for part in (mean, std))


def _rounded(*values: float) -> list[float]:
    return [round(float(value), 3) for value in values]
