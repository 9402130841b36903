"""bf16 on a processor, without the operators that torch has no fast code for there.

With bf16 units (AMX, AVX-512) a dense convolution is up to seven times as fast as in float32. Two operators are not:
the backward pass of a depthwise convolution, up to fifty times as slow, which was half of a U-Net's step, and that of
fused attention, three times as slow as the products and the softmax that it fuses, which was a third of a ViT-Tiny's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tskd.engine.runtime import Runtime

MOST_TOKENS = 512
"""Of an image, for attention that is not fused: it keeps a number for each pair of them until the backward pass."""


@contextmanager
def slow_operators_avoided(module: nn.Module, runtime: Runtime) -> Iterator[None]:
    """Within the block depthwise convolutions work in float32, and timm's attention over few tokens is not fused.

    Does nothing on other devices and in other precisions.
    """
    if not (runtime.precision == "bf16-mixed" and runtime.fabric.device.type == "cpu"):
        yield
        return
    depthwise = [part for part in module.modules() if isinstance(part, nn.Conv2d) and _is_depthwise(part)]
    fused = [part for part in _with_few_tokens(module) if getattr(part, "fused_attn", False)]
    for convolution in depthwise:
        convolution.forward = partial(_in_float32, convolution.forward)  # type: ignore[method-assign]
    for attention in fused:
        attention.fused_attn = False
    try:
        yield
    finally:
        for convolution in depthwise:
            del convolution.forward
        for attention in fused:
            attention.fused_attn = True


def _is_depthwise(convolution: nn.Conv2d) -> bool:
    return convolution.groups == convolution.in_channels > 1


def _with_few_tokens(module: nn.Module) -> list[Any]:
    """Return the parts of the transformers in a network that say of themselves that they see few tokens."""
    small = [part for part in module.modules() if 0 < _tokens(part) <= MOST_TOKENS]
    return [part for transformer in small for part in transformer.modules()]


def _tokens(part: nn.Module) -> int:
    return int(getattr(getattr(part, "patch_embed", None), "num_patches", None) or 0)


def _in_float32(forward: Callable[[Tensor], Tensor], planes: Tensor) -> Tensor:
    with torch.autocast(planes.device.type, enabled=False):
        return forward(planes.float())
