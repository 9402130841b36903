"""Any timm backbone with one of our decoders: the student, and every teacher that is not SAM."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models import FeatureInfo
from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tskd.errors import UserError
from tskd.models.decoders import build_decoder
from tskd.types import SegmentationOutput

VIT_TAPS = 4
LEAST_TOKENS = 196
"""A 224 px image in patches of 16. With 16 to 49 tokens, as small images gave, students learned to do without them."""
NO_ENCODER = "none"
"""The backbone of a network that is its decoder's skip alone: what an encoder has to beat."""


class TimmSegmenter(nn.Module):
    """A timm encoder and a decoder; ``encoder`` is what adapters and weight files are for."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, decoder: str, *, classes: int, image_size: int, patch: int | None = None) -> None:
        """Build with random weights; ``patch``: side of a plain vision transformer's patches, None: the backbone's own.

        Raises UserError where timm does not know the backbone, or it cannot take the size or the patch.
        """
        super().__init__()
        self.image_size = image_size
        self.encoder = _build_encoder(backbone, image_size, patch)
        self.feature_dims: tuple[int, ...] = tuple(self.encoder.feature_info.channels())
        stride = self.encoder.feature_info.reduction()[-1]
        self.decoder: Any = build_decoder(decoder, self.feature_dims, stride=stride, classes=classes)
        if backbone == NO_ENCODER and not self.decoder.skips:
            raise UserError(f"backbone {NO_ENCODER} leaves the decoder's skip alone; {decoder} has none, detail has")
        statistics = timm.get_pretrained_cfg(backbone) or timm.get_pretrained_cfg("vit_tiny_patch16_224")
        self.register_buffer("mean", torch.tensor(statistics.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(statistics.std).reshape(3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)  # convolutions are about a fifth faster on a CPU in this layout

    def forward(self, images: Tensor) -> SegmentationOutput:
        """(B, 3, H, W) in [0, 1] to features and (B, K, H, W) logits."""
        planes = self.normalise(images)
        features = tuple(self.encoder(planes))
        return SegmentationOutput(features, resize_logits(self.decoder(planes, features), images.shape[-2:]))

    def decode(self, images: Tensor, features: Sequence[Tensor], *, skip: bool = True) -> Tensor:
        """Return (B, K, H, W) logits of images and any features; without ``skip`` the decoder sees no image."""
        planes = self.normalise(images)
        logits: Tensor = self.decoder(planes if skip else torch.zeros_like(planes), features)
        return resize_logits(logits, images.shape[-2:])

    def small_logits(self, planes: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] at the network's side S to (B, K, h, w) logits at the size they come out in."""
        planes = (planes - self.mean) / self.std
        logits: Tensor = self.decoder(planes, tuple(self.encoder(planes)))
        return logits

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features alone."""
        return tuple(self.encoder(self.normalise(images)))

    def normalise(self, images: Tensor) -> Tensor:
        """Return what the encoder sees: (B, 3, S, S), with the pixel statistics of its pretraining."""
        return (resize_images(images, self.image_size) - self.mean) / self.std


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


def patch_for(backbone: str, image_size: int) -> int | None:
    """Return the side of the patches that cut an image into ``LEAST_TOKENS`` or more, at most the backbone's own.

    None where the backbone is no plain vision transformer: its tokens are its own affair.
    """
    own = None if backbone == NO_ENCODER else _own_patch(backbone)
    if own is None:
        return None
    fine = (side for side in range(min(own, image_size), 0, -1) if image_size % side == 0)
    return next(side for side in fine if (image_size // side) ** 2 >= LEAST_TOKENS)


class NoEncoder(nn.Module):
    """Answers one channel of zeros at stride 16, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = FeatureInfo([{"num_chs": 1, "reduction": 16, "module": ""}], [0])

    def forward(self, planes: Tensor) -> list[Tensor]:
        height, width = planes.shape[-2:]
        return [planes.new_zeros(len(planes), 1, height // 16, width // 16)]


def _build_encoder(backbone: str, image_size: int, patch: int | None) -> Any:
    if backbone == NO_ENCODER:
        return NoEncoder()
    require_known(backbone)
    try:
        if is_transformer(backbone):
            sizes = {"img_size": image_size} | ({} if patch is None else {"patch_size": patch})
            vit = timm.create_model(backbone, num_classes=0, **sizes)
            _place_tokens(vit)
            depth = len(vit.blocks)
            taps = [round((i + 1) * depth / VIT_TAPS) - 1 for i in range(VIT_TAPS)]
            # normed: raw taps grow block by block, and a decoder that is fed them learns to look elsewhere
            return FeatureGetterNet(vit, out_indices=taps, norm=True)
        if patch is not None:
            raise ValueError("patch is for plain vision transformers")
        return timm.create_model(backbone, features_only=True)
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"backbone {backbone!r} cannot be built for {image_size} px images: {error}") from error


def _place_tokens(vit: nn.Module) -> None:
    """Let positions start as sines and cosines of row and column (as in MAE and MoCo v3); they are trained on."""
    table = getattr(vit, "pos_embed", None)
    if not isinstance(vit, VisionTransformer) or table is None:
        return
    grid = build_sincos2d_pos_embed(list(vit.patch_embed.grid_size), dim=table.shape[-1])
    with torch.no_grad():
        table.zero_()[:, table.shape[1] - len(grid) :] = grid


@cache
def _own_patch(backbone: str) -> int | None:
    require_known(backbone)
    if not is_transformer(backbone):
        return None
    with torch.device("meta"):
        embed: Any = getattr(timm.create_model(backbone, num_classes=0), "patch_embed", None)
    return int(embed.patch_size[0]) if type(embed) is PatchEmbed else None  # no stem of convolutions


def require_known(backbone: str) -> None:
    """Raise UserError naming similar backbones where timm has none of this name."""
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=5)
        raise UserError(f"timm has no backbone {backbone!r}. Similar names: {', '.join(near) or 'none'}")


def is_transformer(backbone: str) -> bool:
    """Say whether the backbone is a plain vision transformer (one scale, one list of blocks)."""
    return backbone.startswith(("vit_", "deit", "eva", "beit"))
