"""U-Nets (MONAI's DynUNet) that see nothing but the labels: the small control and one of nnU-Net's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from tskd.models.timm_segmenter import resize_images, resize_logits
from tskd.types import SegmentationOutput

NNUNET_CHANNELS = (32, 512)
"""nnU-Net's channels at full size, doubled with each halving, and the most it has in 2D."""
NNUNET_LEAST_SIDE = 4
"""nnU-Net halves as long as so many pixels a side are left."""


def nnunet_channels(image_size: int) -> tuple[int, ...]:
    """Return the channels of each level that nnU-Net plans for square images of that side in px, a multiple of 16.

    Levels go on until the lowest has 4 to 7 px a side, or an odd number. Source: Isensee et al. 2021, and nnU-Net 2.
    """
    least, most = NNUNET_CHANNELS
    channels = [least]
    while image_size % 2 == 0 and image_size // 2 >= NNUNET_LEAST_SIDE:
        image_size //= 2
        channels.append(min(2 * channels[-1], most))
    return tuple(channels)


class DynUNetSegmenter(nn.Module):
    """nnU-Net's 2D architecture: 3x3 kernels, stride 2 between levels, instance norm, leaky ReLU."""

    def __init__(self, channels: Sequence[int], *, classes: int, image_size: int, supervised: int = 0) -> None:
        """``supervised``: how many levels below the finest give logits too while it trains (deep supervision)."""
        super().__init__()
        self.supervised = supervised
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
            deep_supervision=supervised > 0,
            deep_supr_num=max(supervised, 1),
        )

    def forward(self, images: Tensor) -> SegmentationOutput:
        """(B, 3, H, W) in [0, 1] to (B, K, H, W) logits; the features are the logits at the network's size.

        While it trains those of the supervised levels, enlarged, come after them, finest first.
        """
        answer = self._small_logits(resize_images(images, self.image_size))
        features = answer.unbind(dim=1) if self.training and self.supervised else (answer,)
        return SegmentationOutput(features, resize_logits(features[0], images.shape[-2:]))

    def small_output(self, planes: Tensor) -> SegmentationOutput:
        """(B, 3, S, S) in [0, 1] at the network's side S to (B, K, S, S) logits, no features; not while it trains."""
        return SegmentationOutput((), self._small_logits(planes))

    def _small_logits(self, planes: Tensor) -> Tensor:
        """Return (B, K, S, S), each image standardised by itself; in training (B, 1 + levels, K, S, S) where wanted."""
        spread, centre = torch.std_mean(planes, dim=(2, 3), keepdim=True)
        logits: Tensor = self.network((planes - centre) / (spread + 1e-3))
        return logits
