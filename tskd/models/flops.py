"""Training compute in floating-point operations, counted by torch, so that budgets are equal on every machine."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def training_flops(model: nn.Module, image_size: int) -> int:
    """Return the operations of one forward and backward pass for one image of that size; 2 a multiply-add."""
    training = model.training
    model.train()
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(2, 3, image_size, image_size)).logits.square().mean().backward()
    model.zero_grad(set_to_none=True)
    model.train(training)
    return counter.get_total_flops() // 2


def inference_flops(model: nn.Module, image_size: int) -> int:
    """Return the operations of one forward pass for one image of that size."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, image_size, image_size))
    return counter.get_total_flops()
