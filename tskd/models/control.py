"""The control: a small U-Net (MONAI's DynUNet) that sees nothing but the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from tskd.models.timm_segmenter import resize_images, resize_logits
from tskd.types import SegmentationOutput


class DynUNetSegmenter(nn.Module):
    """nnU-Net's 2D architecture: 3x3 kernels, stride 2 between levels, instance norm, leaky ReLU."""

    def __init__(self, channels: Sequence[int], *, classes: int, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.feature_dims: tuple[int, ...] = (classes,)
        levels = len(channels)
        self.network = DynUNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=classes,
            kernel_size=[3] * levels,
            strides=[1] + [2] * (levels - 1),
            upsample_kernel_size=[2] * (levels - 1),
            filters=list(channels),
        )

    def forward(self, images: Tensor) -> SegmentationOutput:
        """(B, 3, H, W) in [0, 1] to (B, K, H, W) logits; the features are the logits at the network's size."""
        logits = self.small_logits(resize_images(images, self.image_size))
        return SegmentationOutput((logits,), resize_logits(logits, images.shape[-2:]))

    def small_logits(self, planes: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] at the network's side S to (B, K, S, S) logits; each image standardised by itself."""
        spread, centre = torch.std_mean(planes, dim=(2, 3), keepdim=True)
        logits: Tensor = self.network((planes - centre) / (spread + 1e-3))
        return logits
