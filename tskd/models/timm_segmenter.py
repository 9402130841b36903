"""Any timm backbone with one of our decoders: the student, and every teacher that is not SAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tskd.errors import UserError
from tskd.models.backbones import NO_ENCODER, build_encoder, fit_backbone
from tskd.models.decoders import build_decoder
from tskd.models.pixels import Normalise, Statistics
from tskd.types import SegmentationOutput


class TimmSegmenter(nn.Module):
    """A timm encoder and a decoder; ``encoder`` is what adapters and weight files are for."""

    def __init__(
        self,
        backbone: str,
        decoder: str,
        *,
        classes: int,
        image_size: int,
        patch: int | None = None,
        pixels: str | None = None,
        even_last: bool = False,
    ) -> None:
        """Build with random weights.

        ``patch``: side of a plain vision transformer's patches, None: the backbone's own. ``pixels``: a name of
        :data:`tskd.models.pixels.PIXELS`; None: as timm says of the backbone. ``even_last``: the last stage keeps the
        grid of the one before it, as in MobileSAM. ``self.image_size`` is the side in px that the network works at,
        which may differ a little from the one asked for: see :func:`tskd.models.backbones.fit_backbone`. Raises
        UserError where timm does not know the backbone, or it cannot take the size or the patch.
        """
        super().__init__()
        fit = fit_backbone(backbone, image_size, patch)
        self.image_size = fit.side
        self.encoder = build_encoder(fit)
        if even_last:
            _keep_last_grid(self.encoder)
        self.feature_dims = fit.dims
        self.decoder: Any = build_decoder(decoder, fit.dims, strides=fit.strides, classes=classes)
        if backbone == NO_ENCODER:
            self._keep_the_skip(decoder)
        self.pixels = Normalise.of(pixels) if pixels else Normalise(_statistics(backbone))
        self.to(memory_format=torch.channels_last)  # convolutions are about a fifth faster on a CPU in this layout

    def _keep_the_skip(self, decoder: str) -> None:
        if not self.decoder.skips:
            raise UserError(f"backbone {NO_ENCODER} leaves the decoder's skip alone; {decoder} has none, detail has")
        self.decoder.drop = nn.Identity()  # there is nothing that could do its work

    def forward(self, images: Tensor) -> SegmentationOutput:
        """(B, 3, H, W) in [0, 1] to features and (B, K, H, W) logits."""
        planes = self.normalise(images)
        features = tuple(self.encoder(planes))
        return SegmentationOutput(features, resize_logits(self.decoder(planes, features), images.shape[-2:]))

    def decode(self, images: Tensor, features: Sequence[Tensor], *, skip: bool = True) -> Tensor:
        """Return (B, K, H, W) logits of images and any features; without ``skip`` (decoders that have one) of these."""
        planes = self.normalise(images)
        logits: Tensor = self.decoder(planes, features) if skip else self.decoder(planes, features, skip=False)
        return resize_logits(logits, images.shape[-2:])

    def small_output(self, planes: Tensor) -> SegmentationOutput:
        """(B, 3, S, S) in [0, 1] at the network's side S to features and (B, K, h, w) logits as they come out."""
        planes = self.pixels(planes)
        features = tuple(self.encoder(planes))
        return SegmentationOutput(features, self.decoder(planes, features))

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features alone."""
        return tuple(self.encoder(self.normalise(images)))

    def checkpoint_gradients(self) -> None:
        """Keep only what enters a block for the backward pass, and compute the rest again there.

        Raises UserError where timm does not offer it, and for batch norm, whose statistics would move twice a step.
        """
        network = getattr(self.encoder, "model", self.encoder)
        if not hasattr(network, "set_grad_checkpointing") or any(isinstance(m, _BatchNorm) for m in network.modules()):
            raise UserError(
                "teacher.gradient_checkpointing is for SAM and timm networks without batch norm. Leave it off; "
                "--set teacher.accumulate=4 cuts the batch into parts instead."
            )
        network.set_grad_checkpointing()

    def normalise(self, images: Tensor) -> Tensor:
        """Return what the encoder sees: (B, 3, S, S), with the pixel statistics of its pretraining."""
        planes: Tensor = self.pixels(resize_images(images, self.image_size))
        return planes


def resize_images(images: Tensor, size: int) -> Tensor:
    """Return (B, 3, size, size), antialiased as Pillow does it; unchanged where the size fits."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return (B, K, *size), bilinear."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _statistics(backbone: str) -> Statistics:
    known = timm.get_pretrained_cfg(backbone) or timm.get_pretrained_cfg("vit_tiny_patch16_224")
    return Statistics(known.mean, known.std)


def _keep_last_grid(encoder: nn.Module) -> None:
    """Take the stride out of the last convolution that halves the grid."""
    halving = [module for module in encoder.modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)]
    halving[-1].stride = (1, 1)
