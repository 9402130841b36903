"""With gradient checkpointing a teacher learns the same, from blocks that are computed twice instead of kept."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.test_sam import images, tiny_sam
from tskd.errors import UserError
from tskd.models.lora import set_adaptation
from tskd.models.sam import SamSegmenter
from tskd.models.timm_segmenter import TimmSegmenter


def sam() -> Any:
    return SamSegmenter(tiny_sam(), classes=2, image_size=96)


def vit() -> Any:
    torch.manual_seed(0)
    return TimmSegmenter("vit_tiny_patch16_224", "plain", classes=2, image_size=64)


def gradients(model: nn.Module) -> tuple[dict[str, Tensor], Counter[str]]:
    """Return the gradients of one step, and how often each block was computed for them."""
    set_adaptation(model, "lora", rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start: nothing would reach A
            nn.init.constant_(parameter, 0.01)
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        if name.startswith("encoder.") and name.endswith((".attn.proj", ".mlp.lin2", ".mlp.fc2")):
            module.register_forward_pre_hook(lambda _, __, name=name: calls.update([name]))
    model.train()
    model(images(64)).logits.square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, calls


@pytest.mark.parametrize("build", [sam, vit])
def test_gradients_are_the_same_and_every_block_is_computed_again(build: Any) -> None:
    expected, once = gradients(build())
    checkpointed = build()
    checkpointed.checkpoint_gradients()
    found, twice = gradients(checkpointed)
    assert expected.keys() == found.keys()
    assert any("encoder" in name and "lora_A" in name for name in found)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient)
    assert set(once.values()) == {1}
    assert set(twice.values()) == {2}


def test_batch_norm_is_refused_since_its_statistics_would_move_twice() -> None:
    with pytest.raises(UserError, match="batch norm"):
        TimmSegmenter("resnet10t", "pyramid", classes=1, image_size=32).checkpoint_gradients()
