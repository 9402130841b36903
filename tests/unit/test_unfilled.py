"""Networks built without numbers have the names, shapes and kinds of all tensors; other devices are filled."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet"])
def test_no_initialiser_is_worked_out(backbone: str) -> None:
    """Red where timm or torch fill in a way that is not skipped: a weight file is then told in seconds, not in one."""
    asked = []

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
            asked.append(function.overloadpacket.__name__)
            return function(*arguments, **(named or {}))

    with Listening(), torch.device("meta"), Unfilled():
        timm.create_model(backbone)
    assert "empty" in asked
    assert not {"uniform_", "normal_", "erfinv_", "mul_"} & set(asked)


def test_what_is_not_on_the_meta_device_is_filled() -> None:
    """A network that reads numbers as it runs is fitted on the CPU, and tables of positions are worked out there."""
    with Unfilled():
        tensor = nn.init.constant_(torch.empty(3), 2.0)
        named = nn.init.uniform_(tensor=torch.zeros(3), a=1.0, b=2.0)
        tensor.mul_(3).add_(1)
    assert tensor.tolist() == [7, 7, 7]
    assert named.min() >= 1
