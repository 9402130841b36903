"""From encoder features to logits.

Norms are group norms, which mean the same at batch size 1 and in every process; the U-Net's are batch norms, as in the
networks that it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from tskd.errors import UserError
from tskd.recipe.explanations import shown

SKIP_DROP = 0.5
"""Share of the training images whose skip is zeros."""
_WIDTHS = (96, 64, 48, 32)
"""Channels of the detail decoder from the encoder's grid to stride 2."""
_UNET_LEAST, _UNET_MOST = 16, 256
"""Channels of the U-Net decoder at full size, doubled with each halving of the grid, and the most it has."""


def convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """Return 3x3 convolution, group norm, GELU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8 if outputs % 8 == 0 else 1, outputs),
        nn.GELU(),
    )


def enlarge(planes: Tensor, size: Sequence[int], *, nearest: bool = False) -> Tensor:
    """Return (B, C, *size), bilinear or by the nearest neighbour.

    The gradient that a concatenation hands back is a view with gaps, for which torch's backward takes six times as
    long: it is made dense first.
    """
    if nearest:
        larger = F.interpolate(planes, size=tuple(size), mode="nearest")
    else:
        larger = F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)
    if larger.requires_grad:
        larger.register_hook(_dense)
    return larger


def _dense(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


class PlainDecoder(nn.Module):
    """Upsampling from the last features alone, as in the paper: (B, C, h, w) to (B, K, 4h, 4w)."""

    skips = False
    """Whether it sees the image too."""

    def __init__(self, feature_dims: Sequence[int], *, strides: Sequence[int], classes: int, width: int = 96) -> None:
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
    """Several taps of an encoder, enlarged step by step to stride 2, where one narrow skip from the image joins them.

    The skip draws edges and structures of 1-3 px: with the join it sees 7 x 7 pixels. In training it is dropped for
    half of the images, so that the features have to do the task alone. (A stem that reached down to stride 8 did it
    instead, and so did this skip, never dropped, where colour tells a lesion: students ignored their transformer.)
    """

    skips = True

    def __init__(self, feature_dims: Sequence[int], *, strides: Sequence[int], classes: int) -> None:
        super().__init__()
        steps = max(math.ceil(math.log2(strides[-1] / 2)), 0)
        widths = (*_WIDTHS, *[_WIDTHS[-1]] * steps)[: steps + 1]
        self.taps = nn.ModuleList(nn.Conv2d(dim, widths[0], 1) for dim in feature_dims)
        self.fuse = convolution(widths[0], widths[0])
        self.ups = nn.ModuleList(convolution(*pair) for pair in pairwise(widths))
        self.skip = convolution(3, 16, stride=2)
        self.drop: nn.Module = DropPath(SKIP_DROP, scale_by_keep=False)
        self.join = convolution(widths[-1] + 16, 24)
        self.head = nn.Conv2d(24, classes, 1)

    def forward(self, images: Tensor, features: Sequence[Tensor], *, skip: bool = True) -> Tensor:
        """(B, 3, S, S) and features to (B, K, S/2, S/2); without ``skip`` as where it is dropped in training."""
        half = self.drop(self.skip(images))
        if not skip:
            half = torch.zeros_like(half)
        size = features[-1].shape[-2:]
        tapped = [enlarge(tap(plane), size) for tap, plane in zip(self.taps, features)]
        planes = self.fuse(torch.stack(tapped).sum(dim=0))
        for up in self.ups:
            larger = [min(2 * side, most) for side, most in zip(planes.shape[-2:], half.shape[-2:])]
            planes = up(enlarge(planes, larger))
        return self.head(self.join(torch.cat([enlarge(planes, half.shape[-2:]), half], dim=1)))


class PyramidDecoder(nn.Module):
    """Feature pyramid over an encoder of several scales (Lin et al. 2017), logits at the finest scale it has."""

    skips = False

    def __init__(self, feature_dims: Sequence[int], *, strides: Sequence[int], classes: int, width: int = 64) -> None:
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


class UNetDecoder(nn.Module):
    """The expanding half of a U-Net (Ronneberger et al. 2015) over an encoder of several scales, logits at full size.

    From the deepest features up: enlarge to the next finer ones, join them, two convolutions; from the finest, double
    until the image's size. Blocks, widths and answers are those of ``Unet`` in segmentation-models-pytorch 0.6.
    """

    skips = False
    beside = 0
    """Channels that join the last block, at the image's size."""

    def __init__(self, feature_dims: Sequence[int], *, strides: Sequence[int], classes: int) -> None:
        """Raises UserError where all features have one size: there is nothing to join on the way up."""
        super().__init__()
        if len(set(strides)) == 1:
            raise UserError(
                "the decoder of a U-Net joins features of several sizes, and this backbone, as a plain transformer or "
                "none, has no such. Choose the decoder detail, or another backbone."
            )
        halvings = math.ceil(math.log2(strides[0]))
        self.scales = tuple(max(strides[0] / 2**halving, 1) for halving in range(1, halvings + 1))
        joined = [*feature_dims[-2::-1], *[0] * halvings]
        joined[-1] += self.beside
        wanted = [min(_UNET_LEAST * math.ceil(scale), _UNET_MOST) for scale in (*strides[-2::-1], *self.scales)]
        widths = (feature_dims[-1], *wanted)
        self.blocks = nn.ModuleList(
            nn.Sequential(*_conv_norm_relu(below + skip, width), *_conv_norm_relu(width, width))
            for (below, width), skip in zip(pairwise(widths), joined)
        )
        self.head = nn.Conv2d(widths[-1], classes, 3, padding=1)
        for module in self.blocks.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        nn.init.xavier_uniform_(self.head.weight)

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> Tensor:
        """(B, 3, S, S) and features to (B, K, S, S)."""
        return self._expand(features, [], images.shape[-2:])

    def _expand(self, features: Sequence[Tensor], beside: list[Tensor], size: Sequence[int]) -> Tensor:
        """Return the logits at the image's size; ``beside``: what joins the features there."""
        planes, skips = features[-1], features[-2::-1]
        for block, skip in zip(self.blocks, skips):
            planes = block(torch.cat([enlarge(planes, skip.shape[-2:], nearest=True), skip], dim=1))
        for block, scale in zip(self.blocks[len(skips) :], self.scales):
            planes = enlarge(planes, [math.ceil(side / scale) for side in size], nearest=True)
            planes = block(torch.cat([planes, *beside], dim=1) if scale == 1 and beside else planes)
        return self.head(planes)


class FineUNetDecoder(UNetDecoder):
    """That U-Net with a skip at the image's own size: two convolutions of the image join the last block.

    Encoders begin with a stride of 2, so that to a plain U-Net a vessel of a pixel comes through features of half its
    size; nnU-Net's first level is at full size.
    """

    skips = True
    beside = _UNET_LEAST

    def __init__(self, feature_dims: Sequence[int], *, strides: Sequence[int], classes: int) -> None:
        """Raises UserError where all features have one size, or the finest have the image's own."""
        super().__init__(feature_dims, strides=strides, classes=classes)
        if not self.scales:
            raise UserError("decoder unet_fine: the encoder's features are as large as the image. Choose unet.")
        self.stem = nn.Sequential(*_conv_norm_relu(3, self.beside), *_conv_norm_relu(self.beside, self.beside))

    def forward(self, images: Tensor, features: Sequence[Tensor], *, skip: bool = True) -> Tensor:
        """(B, 3, S, S) and features to (B, K, S, S); without ``skip`` with zeros in its place."""
        beside = self.stem(images)
        return self._expand(features, [beside if skip else torch.zeros_like(beside)], images.shape[-2:])


def _conv_norm_relu(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


DECODERS: dict[str, Callable[..., nn.Module]] = {
    "plain": PlainDecoder,
    "detail": DetailDecoder,
    "pyramid": PyramidDecoder,
    "unet": UNetDecoder,
    "unet_fine": FineUNetDecoder,
}


def build_decoder(name: str, feature_dims: Sequence[int], *, strides: Sequence[int], classes: int) -> nn.Module:
    """Return the decoder of that name for features of these channels and strides in px of the image, shallow to deep.

    Raises UserError for an unknown name, listing the names, and for an encoder that the decoder cannot work on.
    """
    if name not in DECODERS:
        raise UserError(f"decoder {shown(name)} is not known. Choose one of: {', '.join(sorted(DECODERS))}")
    return DECODERS[name](feature_dims, strides=strides, classes=classes)
