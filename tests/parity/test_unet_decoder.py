"""The decoder unet against ``Unet`` of segmentation-models-pytorch: the same tensors give the same logits."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from tskd.models.timm_segmenter import TimmSegmenter

SIZE = 64


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "repvit_m0_9"])
def test_the_same_weights_give_the_logits_of_smp(backbone: str) -> None:
    """Encoders that start at stride 2 and at stride 4."""
    torch.manual_seed(0)
    ours = TimmSegmenter(backbone, "unet", classes=2, image_size=SIZE, pixels="unit")
    move_statistics(ours)
    theirs = smp.Unet(f"tu-{backbone}", encoder_weights=None, classes=2)
    upper = nn.ModuleList([theirs.decoder, theirs.segmentation_head])
    copy_in_order(ours.encoder, theirs.encoder.model)
    copy_in_order(ours.decoder, upper)
    images = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)  # the order of sums differs: the memory layouts do
    ours, theirs = ours.double().eval(), theirs.double().eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours(images).logits, theirs(images), rtol=1e-9, atol=1e-9)
    assert count(ours.decoder) == count(upper)


def move_statistics(model: nn.Module) -> None:
    """Let no norm be what it is at the start: a norm in the wrong place has to show."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Fill a network whose tensors have other names and the same order."""
    target.load_state_dict(dict(zip(target.state_dict(), source.state_dict().values(), strict=True)))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
