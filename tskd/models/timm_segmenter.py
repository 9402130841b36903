"""Any timm backbone with one of our decoders: the student, and every teacher that is not SAM."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd.errors import UserError
from tskd.models.decoders import build_decoder
from tskd.models.pixels import Normalise, Statistics
from tskd.types import SegmentationOutput

VIT_TAPS = 4


class TimmSegmenter(nn.Module):
    """A timm encoder and a decoder; ``encoder`` is what adapters and weight files are for."""

    def __init__(
        self,
        backbone: str,
        decoder: str,
        *,
        classes: int,
        image_size: int,
        pixels: str | None = None,
        even_last: bool = False,
    ) -> None:
        """Build with random weights; UserError where timm does not know the backbone or it cannot take the size.

        ``pixels``: a name of :data:`tskd.models.pixels.PIXELS`; None: as timm says of the backbone. ``even_last``: the
        last stage keeps the grid of the one before it, as in MobileSAM.
        """
        super().__init__()
        self.image_size = image_size
        self.encoder = _build_encoder(backbone, image_size)
        if even_last:
            _keep_last_grid(self.encoder)
        self.feature_dims: tuple[int, ...] = tuple(self.encoder.feature_info.channels())
        self.decoder = build_decoder(decoder, self.feature_dims, classes=classes)
        self.pixels = Normalise.of(pixels) if pixels else Normalise(_statistics(backbone))
        self.to(memory_format=torch.channels_last)  # convolutions are about a fifth faster on a CPU in this layout

    def forward(self, images: Tensor) -> SegmentationOutput:
        """(B, 3, H, W) in [0, 1] to features and (B, K, H, W) logits."""
        planes = self.normalise(images)
        features = tuple(self.encoder(planes))
        logits = self.decoder(planes, features)
        return SegmentationOutput(features, resize_logits(logits, images.shape[-2:]))

    def small_logits(self, planes: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] at the network's side S to (B, K, h, w) logits at the size they come out in."""
        planes = self.pixels(planes)
        logits: Tensor = self.decoder(planes, tuple(self.encoder(planes)))
        return logits

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features alone."""
        return tuple(self.encoder(self.normalise(images)))

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


def _build_encoder(backbone: str, image_size: int) -> Any:
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=5)
        raise UserError(f"timm has no backbone {backbone!r}. Similar names: {', '.join(near) or 'none'}")
    try:
        if is_transformer(backbone):
            with torch.device("meta"):
                depth = len(timm.create_model(backbone, num_classes=0).blocks)
            taps = [round((i + 1) * depth / VIT_TAPS) - 1 for i in range(VIT_TAPS)]
            return timm.create_model(backbone, img_size=image_size, features_only=True, out_indices=taps)
        return timm.create_model(backbone, features_only=True)
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"backbone {backbone!r} cannot be built for {image_size} px images: {error}") from error


def patch_side(backbone: str) -> int:
    """Return the side of a backbone's patches that no size may cut: 14 pixels in DINOv2, else 1 (sizes are checked)."""
    return 14 if is_transformer(backbone) and "patch14" in backbone else 1


def is_transformer(backbone: str) -> bool:
    """Say whether the backbone is a plain vision transformer (one scale, one list of blocks)."""
    return backbone.startswith(("vit_", "deit", "eva", "beit"))
