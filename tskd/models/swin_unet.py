"""The denoiser: a U-shaped network, convolutions at the fine levels and Swin-transformer blocks at the coarse ones.

The idea is that of Pan et al., whose network as published is the preset ``pan`` (:mod:`tskd.models.pan_unet` has it and
the source): residual convolution blocks in the first levels, shifted-window attention from there on, the time step
entering every block as a scale and a shift. Ours is smaller: one Swin block after each residual block of a coarse level
where theirs has a pair in place of the second convolution, as many blocks in the decoder as in the encoder where theirs
has one more a level, one skip a level instead of one a block, and an optional space-to-depth step (``patch``) that
makes the small sizes affordable on a CPU.

Shapes: B batch, C image channels, S image side, D width of the condition, c channels of a level, h, w its grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tskd.errors import UserError

SMALLEST_WINDOW = 4
"""A window of fewer than 4 x 4 cells sees too little to be worth its cost, unless it is the whole grid."""

NULL_LABEL = -1
"""The label of an image without one: the unconditional half of classifier-free guidance."""

GROUP_CHANNELS = 8
"""Channels of one normalisation group at least; never more than 32 groups."""


@dataclass(frozen=True)
class SwinUNetSize:
    """The size of a denoiser; the sequences have one entry a level, fine to coarse."""

    channels: int
    """Width of a level = ``channels`` x its multiplier."""
    multipliers: tuple[int, ...]
    blocks: tuple[int, ...]
    """Blocks of a level in the encoder; the decoder has as many."""
    heads: tuple[int, ...]
    """Attention heads; 0: the level has convolutions only."""
    windows: tuple[int, ...]
    """Largest attention window, in cells of the level's grid."""
    patch: int = 1
    """Side in pixels of one cell of the finest level."""
    published: bool = False
    """Blocks and skips as Pan et al. published them: :class:`tskd.models.pan_unet.PanUNet`."""

    @property
    def factor(self) -> int:
        """The image side must be a multiple of this many pixels."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


PRESETS = {
    "tiny": SwinUNetSize(32, (1, 2, 3), (1, 1, 2), heads=(0, 2, 4), windows=(8, 8, 8), patch=2),
    "small": SwinUNetSize(64, (1, 2, 3, 4), (1, 2, 2, 2), heads=(0, 0, 6, 8), windows=(8, 8, 8, 8)),
    "base": SwinUNetSize(128, (1, 1, 2, 2, 4, 4), (2, 2, 1, 1, 1, 1), (0, 0, 4, 8, 16, 16), (4, 4, 4, 8, 8, 4)),
}
"""Our own sizes. ``tiny``: 64-96 px on a CPU; ``small``: 128 px; ``base``: 256 px on a GPU, with the widths, heads and
windows of Pan et al.'s code but half of its weights (59 M of 116 M) and 8 Swin blocks where that has 28."""
PRESETS["pan"] = replace(PRESETS["base"], published=True)
"""The network of Pan et al., at 256 px."""


def window_of(grid: int, largest: int) -> int | None:
    """Return the largest attention window that tiles a grid of ``grid`` cells a side, or None where none is worth it.

    timm would pad the grid instead, and attention would then read the zeros as if they were image.
    """
    if grid <= largest:
        return grid
    window = next(window for window in range(largest, 0, -1) if grid % window == 0)
    return window if window >= SMALLEST_WINDOW else None


def fits(size: SwinUNetSize, image_size: int) -> bool:
    """Return whether images of ``image_size`` pixels a side suit the network."""
    if image_size < size.factor or image_size % size.factor:
        return False
    grids = (image_size // size.patch // 2**level for level in range(len(size.heads)))
    return all(window_of(grid, largest) for grid, largest, heads in zip(grids, size.windows, size.heads) if heads)


def check_image_size(size: SwinUNetSize, image_size: int) -> None:
    """Raise UserError, naming the nearest sizes that would do, unless ``image_size`` suits the network."""
    if fits(size, image_size):
        return
    multiples = range(size.factor, max(image_size, 512) + 8 * size.factor, size.factor)
    allowed = [side for side in multiples if fits(size, side)]
    nearest = sorted(sorted(allowed, key=lambda side: abs(side - image_size))[:6])
    raise UserError(
        f"An image size of {image_size} px does not suit this denoiser: its levels need a multiple of {size.factor} px "
        f"that attention windows tile. Set one of the nearest that do: {', '.join(map(str, nearest))}."
    )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, the condition as scale and shift between them (guided-diffusion's block)."""

    def __init__(self, inputs: int, outputs: int, *, condition: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = zeroed(nn.Linear(condition, 2 * outputs))
        self.norm2 = group_norm(outputs)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """(B, inputs, h, w) and (B, D) -> (B, outputs, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(features)))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm2(hidden) * (1 + scale) + shift
        return self.skip(features) + self.conv2(F.silu(hidden))


class ConditionedSwinBlock(nn.Module):
    """timm's Swin block on channels-first features, the condition as scale and shift of its input."""

    def __init__(self, width: int, grid: int, *, heads: int, window: int, shifted: bool, condition: int) -> None:
        super().__init__()
        self.modulation = zeroed(nn.Linear(condition, 2 * width))
        shift = window // 2 if shifted else 0
        self.block = SwinTransformerBlock(width, (grid, grid), num_heads=heads, window_size=window, shift_size=shift)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """(B, c, h, w) and (B, D) -> (B, c, h, w)."""
        scale, shift = self.modulation(condition)[:, None, None, :].chunk(2, dim=-1)
        cells = features.permute(0, 2, 3, 1)
        return self.block(cells * (1 + scale) + shift).permute(0, 3, 1, 2)


class Level(nn.Module):
    """The blocks of one level in one half of the U: convolutions, each followed by attention at the coarse levels."""

    def __init__(self, inputs: int, width: int, *, swin: Sequence[nn.Module], blocks: int, condition: int) -> None:
        super().__init__()
        widths = [inputs] + [width] * (blocks - 1)
        self.residual = nn.ModuleList(ResidualBlock(before, width, condition=condition) for before in widths)
        self.swin = nn.ModuleList(swin)
        self.checkpointing = False

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """(B, inputs, h, w) and (B, D) -> (B, width, h, w)."""
        for index, residual in enumerate(self.residual):
            features = run_block(residual, features, condition, frugal=self.checkpointing and self.training)
            if self.swin:
                features = run_block(self.swin[index], features, condition, frugal=self.checkpointing and self.training)
        return features


class Denoiser(nn.Module, ABC):
    """Predicts the noise (or the velocity) in a noisy image from the image and its time step.

    ``num_classes`` > 0 adds a class condition with one more, null class for classifier-free guidance (Ho and Salimans,
    2022). Raises UserError for an image size that the levels or their windows cannot divide.
    """

    def __init__(self, size: SwinUNetSize, *, image_size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        check_image_size(size, image_size)
        self.image_size, self.channels, self.num_classes = image_size, channels, num_classes
        self.condition = 4 * size.channels
        self.frequencies = Timesteps(size.channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(size.channels, self.condition)
        self.classes = nn.Embedding(num_classes + 1, self.condition) if num_classes else None

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, S, S) noisy images, (B,) time steps and (B,) class indices -> (B, C, S, S).

        Without ``labels`` every image counts as unlabelled, as do those whose label is ``NULL_LABEL``. Raises
        ValueError for images of another size than the network's and for labels that it has no classes for.
        """
        expected = (self.channels, self.image_size, self.image_size)
        if noisy.shape[1:] != expected:
            raise ValueError(f"Images of shape {tuple(noisy.shape[1:])} given to a denoiser for {expected}.")
        if labels is not None and self.classes is None:
            raise ValueError("Labels given to a denoiser without classes: build it with num_classes.")
        return self.denoise(noisy, self._condition(timesteps, labels))

    @abstractmethod
    def denoise(self, noisy: Tensor, condition: Tensor) -> Tensor:
        """(B, C, S, S) noisy images and their (B, D) condition -> (B, C, S, S)."""

    def _condition(self, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """(B,) time steps -> (B, D), activated: what every block's modulation reads."""
        condition = self.time(self.frequencies(timesteps))
        if self.classes is not None:
            if labels is None:
                labels = torch.full_like(timesteps, NULL_LABEL, dtype=torch.long)
            condition = condition + self.classes(labels.masked_fill(labels == NULL_LABEL, self.num_classes))
        return F.silu(condition)


class SwinUNet(Denoiser):
    """Our denoiser; ``checkpointing`` recomputes every block in the backward pass: less memory for about a third more
    time."""

    def __init__(
        self,
        size: SwinUNetSize,
        *,
        image_size: int,
        channels: int = 3,
        num_classes: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(size, image_size=image_size, channels=channels, num_classes=num_classes)
        widths = [size.channels * multiplier for multiplier in size.multipliers]
        coarser = list(pairwise(widths))
        joined = [2 * width for width in widths[:-1]] + widths[-1:]  # the coarsest level has no skip to join
        self.patch = nn.PixelUnshuffle(size.patch)
        self.stem = nn.Conv2d(channels * size.patch**2, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(self._level(size, index, inputs=width) for index, width in enumerate(widths))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in coarser)
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in coarser)
        self.decoder = nn.ModuleList(
            self._level(size, index, inputs=inputs, decoder=True) for index, inputs in enumerate(joined)
        )
        self.head = nn.Sequential(
            group_norm(widths[0]),
            nn.SiLU(),
            zeroed(nn.Conv2d(widths[0], channels * size.patch**2, 3, padding=1)),
            nn.PixelShuffle(size.patch),
        )
        for level in (*self.encoder, *self.decoder):
            level.checkpointing = checkpointing

    def _level(self, size: SwinUNetSize, index: int, *, inputs: int, decoder: bool = False) -> Level:
        width, blocks, heads = size.channels * size.multipliers[index], size.blocks[index], size.heads[index]
        grid = self.image_size // size.patch // 2**index
        window = window_of(grid, size.windows[index]) or grid
        # Windows shift in every second block; the decoder starts with the other kind, so that even a level of one
        # block sees across window borders.
        swin = [
            ConditionedSwinBlock(
                width, grid, heads=heads, window=window, shifted=bool((block + decoder) % 2), condition=self.condition
            )
            for block in range(blocks if heads else 0)
        ]
        return Level(inputs, width, swin=swin, blocks=blocks, condition=self.condition)

    def denoise(self, noisy: Tensor, condition: Tensor) -> Tensor:
        """(B, C, S, S) noisy images and their (B, D) condition -> (B, C, S, S)."""
        features = self.stem(self.patch(noisy))
        skips = []
        for index, level in enumerate(self.encoder):
            features = level(features if index == 0 else self.down[index - 1](features), condition)
            skips.append(features)
        features = self.decoder[-1](skips.pop(), condition)
        for index in reversed(range(len(skips))):
            features = F.interpolate(self.up[index](features), scale_factor=2.0, mode="nearest")
            features = self.decoder[index](torch.cat([features, skips[index]], dim=1), condition)
        return self.head(features)


def run_block(block: nn.Module, features: Tensor, condition: Tensor, *, frugal: bool) -> Tensor:
    """Return the block's answer; ``frugal``: its inside is computed again in the backward pass instead of kept."""
    if frugal:
        return checkpoint(block, features, condition, use_reentrant=False)
    return block(features, condition)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group normalisation with as many groups, up to 32, as ``channels`` splits into."""
    groups = next(groups for groups in range(min(32, channels // GROUP_CHANNELS), 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


def zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Set a layer's weight and bias to zero, so that its branch starts as if absent."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
