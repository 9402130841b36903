"""From encoder features to logits. Norms are group norms: they mean the same at batch size 1 and in every process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd.errors import UserError


def convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """Return 3x3 convolution, group norm, GELU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8 if outputs % 8 == 0 else 1, outputs),
        nn.GELU(),
    )


def enlarge(planes: Tensor, size: Sequence[int]) -> Tensor:
    """Return (B, C, *size), bilinear.

    The gradient that a concatenation hands back is a view with gaps, for which torch's backward takes six times as
    long: it is made dense first.
    """
    larger = F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)
    if larger.requires_grad:
        larger.register_hook(_dense)
    return larger


def _dense(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


class PlainDecoder(nn.Module):
    """Upsampling from the last features alone, as in the paper: (B, C, h, w) to (B, K, 4h, 4w)."""

    def __init__(self, feature_dims: Sequence[int], *, classes: int, width: int = 96) -> None:
        super().__init__()
        self.coarse = convolution(feature_dims[-1], width)
        self.middle = convolution(width, width // 2)
        self.fine = convolution(width // 2, width // 4)
        self.head = nn.Conv2d(width // 4, classes, 1)

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> Tensor:
        planes = self.coarse(features[-1])
        height, width = planes.shape[-2:]
        planes = self.middle(enlarge(planes, (2 * height, 2 * width)))
        return self.head(self.fine(enlarge(planes, (4 * height, 4 * width))))


class DetailDecoder(nn.Module):
    """Several taps of a one-scale encoder, and a light convolutional stem that keeps structures of 1-3 px.

    The stem sees the image at strides 2, 4 and 8 (16, 32, 48 channels); the fused taps are enlarged step by step and
    joined with it; logits come at stride 2.
    """

    def __init__(self, feature_dims: Sequence[int], *, classes: int, width: int = 96) -> None:
        super().__init__()
        self.taps = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim in feature_dims)
        self.fuse = convolution(width, width)
        self.stem2 = convolution(3, 16, stride=2)
        self.stem4 = convolution(16, 32, stride=2)
        self.stem8 = convolution(32, 48, stride=2)
        self.up8 = convolution(width + 48, 64)
        self.up4 = convolution(64 + 32, 48)
        self.up2 = convolution(48 + 16, 24)
        self.head = nn.Conv2d(24, classes, 1)

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> Tensor:
        half = self.stem2(images)
        quarter = self.stem4(half)
        eighth = self.stem8(quarter)
        size = features[-1].shape[-2:]
        tapped = [enlarge(tap(plane), size) for tap, plane in zip(self.taps, features)]
        planes = self.fuse(torch.stack(tapped).sum(dim=0))
        for skip, join in ((eighth, self.up8), (quarter, self.up4), (half, self.up2)):
            planes = join(torch.cat([enlarge(planes, skip.shape[-2:]), skip], dim=1))
        return self.head(planes)


class PyramidDecoder(nn.Module):
    """Feature pyramid over an encoder of several scales (Lin et al. 2017), logits at the finest scale it has."""

    def __init__(self, feature_dims: Sequence[int], *, classes: int, width: int = 64) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim in feature_dims)
        self.smooth = nn.ModuleList(convolution(width, width) for _ in feature_dims)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> Tensor:
        planes = self.smooth[-1](self.laterals[-1](features[-1]))
        for level in reversed(range(len(features) - 1)):
            lateral = self.laterals[level](features[level])
            planes = self.smooth[level](lateral + enlarge(planes, lateral.shape[-2:]))
        return self.head(planes)


DECODERS: dict[str, Callable[..., nn.Module]] = {
    "plain": PlainDecoder,
    "detail": DetailDecoder,
    "pyramid": PyramidDecoder,
}


def build_decoder(name: str, feature_dims: Sequence[int], *, classes: int) -> nn.Module:
    """Return the decoder of that name; UserError lists the names."""
    if name not in DECODERS:
        raise UserError(f"decoder {name!r} is not known. Choose one of: {', '.join(sorted(DECODERS))}")
    return DECODERS[name](feature_dims, classes=classes)
