"""The denoiser of Pan et al. as published: Swin-transformer pairs at the coarse levels, a skip a block.

S. Pan et al., "2D medical image synthesis using transformer-based denoising diffusion probabilistic model", Phys. Med.
Biol. 68 105004, 2023, after their code (github shaoyanpan/2D-Medical-Denoising-Diffusion-Probabilistic-Model-,
``network/Diffusion_model_transformer.py``; sizes from its notebook, which prints 116 042 570 parameters). The frame is
guided-diffusion's (Dhariwal and Nichol, 2021): n blocks a level in the encoder, two in the middle, n + 1 in the
decoder, and every feature map that the encoder makes is joined to the decoder's once. In a coarse level a plain and a
shifted Swin block stand in place of a block's second convolution.

Where it differs: one output channel an image channel, since our loss learns no variance (theirs has two: 1153 weights
of the last convolution); attention goes by level and not by grid, which is the same at 256 px; a grid that windows do
not tile is refused where theirs is padded. Weights start as torch and timm start them.

Shapes as in :mod:`tskd.models.swin_unet`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from tskd.models.swin_unet import Denoiser, SwinUNetSize, run_block, window_of, zeroed

GROUPS = 32
PAIR = 2
"""Swin blocks of one residual block, the second with shifted windows."""


class PanBlock(nn.Module):
    """A residual block whose second half is a pair of Swin blocks (``grid``, ``window`` and ``heads`` given) or a
    convolution (``heads`` 0); the condition scales and shifts between the halves."""

    def __init__(self, inputs: int, outputs: int, *, condition: int, grid: int, heads: int, window: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.modulation = nn.Linear(condition, 2 * outputs)
        self.norm = nn.GroupNorm(GROUPS, outputs)
        shifts = [number * window // PAIR for number in range(PAIR)]
        self.swin = nn.Sequential(
            *(
                SwinTransformerBlock(outputs, (grid, grid), num_heads=heads, window_size=window, shift_size=shift)
                for shift in (shifts if heads else ())
            )
        )
        self.conv = None if heads else zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """(B, inputs, h, w) and (B, D) -> (B, outputs, h, w)."""
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm(self.first(features)) * (1 + scale) + shift
        if self.conv is not None:
            hidden = self.conv(F.silu(hidden))
        else:
            hidden = self.swin(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.skip(features) + hidden


class PanUNet(Denoiser):
    """The network of Pan et al.; ``checkpointing`` recomputes every block in the backward pass."""

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
        self.checkpointing = checkpointing
        widths = [size.channels * multiplier for multiplier in size.multipliers]
        skips = [widths[0]]

        def block(inputs: int, level: int) -> PanBlock:
            grid, heads = image_size // 2**level, size.heads[level]
            window = window_of(grid, size.windows[level]) or grid
            return PanBlock(inputs, widths[level], condition=self.condition, grid=grid, heads=heads, window=window)

        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.encoder, self.down = nn.ModuleList(), nn.ModuleList()
        for level, (before, width) in enumerate(pairwise([widths[0], *widths])):
            if level:
                self.down.append(nn.Conv2d(before, before, 3, padding=1))
                skips.append(before)
            inputs = [before] + [width] * (size.blocks[level] - 1)
            self.encoder.append(nn.ModuleList(block(one, level) for one in inputs))
            skips += [width] * size.blocks[level]
        last = len(widths) - 1
        self.middle = nn.ModuleList(block(widths[last], last) for _ in range(2))
        self.decoder, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (width, before) in reversed(list(enumerate(pairwise([*widths, widths[last]])))):
            inputs = [before] + [width] * size.blocks[level]
            self.decoder.append(nn.ModuleList(block(one + skips.pop(), level) for one in inputs))
            if level:
                self.up.append(nn.Conv2d(width, width, 3, padding=1))
        self.head = nn.Sequential(
            nn.GroupNorm(GROUPS, widths[0]), nn.SiLU(), zeroed(nn.Conv2d(widths[0], channels, 3, padding=1))
        )

    def denoise(self, noisy: Tensor, condition: Tensor) -> Tensor:
        """(B, C, S, S) noisy images and their (B, D) condition -> (B, C, S, S)."""
        frugal = self.checkpointing and self.training
        features = self.stem(noisy)
        skips = [features]
        for level, blocks in enumerate(self.encoder):
            if level:
                features = self.down[level - 1](features[:, :, ::2, ::2])
                skips.append(features)
            for block in cast(nn.ModuleList, blocks):
                features = run_block(block, features, condition, frugal=frugal)
                skips.append(features)
        for block in self.middle:
            features = run_block(block, features, condition, frugal=frugal)
        for step, blocks in enumerate(self.decoder):  # coarse to fine
            for block in cast(nn.ModuleList, blocks):
                features = run_block(block, torch.cat([features, skips.pop()], dim=1), condition, frugal=frugal)
            if step < len(self.up):
                features = self.up[step](F.interpolate(features, scale_factor=2.0, mode="nearest"))
        return self.head(features)
