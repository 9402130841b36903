"""The denoiser of Pan et al. against what is published of it: its size, its blocks (MONAI's), its block by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import SwinTransformerBlock as MonaiBlock
from monai.networks.nets.swin_unetr import compute_mask
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor

from tskd.models.pan_unet import PanBlock, PanUNet
from tskd.models.swin_unet import PRESETS

PUBLISHED_PARAMETERS = 116_042_570
"""Printed by the notebook in the authors' repository, for one image channel and two outputs (noise and variance)."""


@pytest.fixture(scope="module")
def published() -> PanUNet:
    with torch.device("meta"):
        return PanUNet(PRESETS["pan"], image_size=256, channels=1)


def test_the_number_of_parameters_is_the_published_one(published: PanUNet) -> None:
    """Ours predicts no variance: one 3 x 3 filter of 128 channels and its bias fewer, and not one weight else."""
    own = sum(parameter.numel() for parameter in published.parameters())
    assert own + 9 * 128 + 1 == PUBLISHED_PARAMETERS


def test_blocks_windows_and_heads_are_the_published_ones(published: PanUNet) -> None:
    """Levels of 64, 32, 16 and 8 cells: heads 4, 8, 16, 16 and windows 4, 8, 8, 4; two blocks in the middle."""
    assert [len(level) for level in published.encoder] == [2, 2, 1, 1, 1, 1]
    assert [len(level) for level in published.decoder] == [2, 2, 2, 2, 3, 3], "n + 1 a level, coarse to fine"

    def pairs(blocks: torch.nn.Module) -> list[list[tuple[int, int, int]]]:
        found = [part for part in blocks.modules() if isinstance(part, PanBlock)]
        return [[(one.attn.num_heads, one.window_size[0], one.shift_size[0]) for one in part.swin] for part in found]

    coarse = [[(4, 4, 0), (4, 4, 2)], [(8, 8, 0), (8, 8, 4)], [(16, 8, 0), (16, 8, 4)], [(16, 4, 0), (16, 4, 2)]]
    assert pairs(published.encoder) == [[]] * 4 + coarse
    assert pairs(published.middle) == [coarse[-1]] * 2
    assert pairs(published.decoder) == [pair for pair in reversed(coarse) for _ in range(2)] + [[]] * 6


def monai_block(block: SwinTransformerBlock, width: int) -> MonaiBlock:
    """Return MONAI's block, which the authors' code copied, with the weights of timm's."""
    other = MonaiBlock(width, block.attn.num_heads, block.window_size, block.shift_size).eval()
    state = {name.replace("mlp.fc", "mlp.linear"): value for name, value in block.state_dict().items()}
    missing = other.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["attn.relative_position_index"]
    assert missing.unexpected_keys in ([], ["attn_mask"])
    return other


def by_hand(block: PanBlock, features: Tensor, condition: Tensor) -> Tensor:
    """The published block in plain functions and MONAI's Swin blocks: group norms of 32 groups, the condition between
    norm and attention, one mask of the shifted windows for both blocks (the plain one does not look at it)."""
    _, _, conv = block.first
    hidden = F.conv2d(F.silu(F.group_norm(features, 32, block.first[0].weight, block.first[0].bias)),
                      conv.weight, conv.bias, padding=1)  # fmt: skip
    scale, shift = F.linear(condition, block.modulation.weight, block.modulation.bias).split(hidden.shape[1], dim=1)
    hidden = F.group_norm(hidden, 32, block.norm.weight, block.norm.bias)
    hidden = (hidden * (1 + scale[..., None, None]) + shift[..., None, None]).movedim(1, -1)
    shifted = block.swin[-1]
    mask = compute_mask(hidden.shape[1:3], shifted.window_size, shifted.shift_size, hidden.device)
    for one in block.swin:
        hidden = monai_block(one, hidden.shape[-1])(hidden, mask)
    return F.conv2d(features, block.skip.weight, block.skip.bias) + hidden.movedim(-1, 1)


def test_a_coarse_block_answers_as_the_published_one_does() -> None:
    torch.manual_seed(0)
    block = PanBlock(32, 64, condition=16, grid=8, heads=2, window=4).eval()
    for parameter in block.parameters():  # biases start at zero, where a lost one would not show
        torch.nn.init.normal_(parameter, std=0.2)
    features, condition = torch.randn(2, 32, 8, 8), torch.randn(2, 16)
    with torch.inference_mode():
        answer, expected = block(features, condition), by_hand(block, features, condition)
    assert answer.std() > 0.5
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
