"""Networks built without numbers are the networks: names, shapes and kinds of every tensor; and only the meta device."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from tskd.models.unfilled import Unfilled


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet", "swin_tiny_patch4_window7_224"])
def test_a_network_that_was_not_filled_has_the_tensors_of_the_filled_one(backbone: str) -> None:
    with torch.device("meta"):
        filled = timm.create_model(backbone).state_dict()
        with Unfilled():
            found = timm.create_model(backbone).state_dict()
    assert [(name, one.shape, one.dtype) for name, one in found.items()] == [
        (name, one.shape, one.dtype) for name, one in filled.items()
    ]


def test_what_is_not_on_the_meta_device_is_filled() -> None:
    """A network that reads numbers as it runs is fitted on the CPU, and tables of positions are worked out there."""
    with Unfilled():
        tensor = nn.init.constant_(torch.empty(3), 2.0)
        named = nn.init.uniform_(tensor=torch.zeros(3), a=1.0, b=2.0)
        tensor.mul_(3).add_(1)
    assert tensor.tolist() == [7, 7, 7]
    assert named.min() >= 1
