"""bf16 on a processor, without the operators that torch (2.15) has no fast code for there.

Where the processor has units for it (AMX) a dense convolution in bf16 is up to seven times as fast as in float32. Two
operators are slower instead: the backward pass of depthwise convolutions, and that of fused attention over few tokens
(LOG.md, 2026-11-27).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tskd.engine.runtime import Runtime
from tskd.models.attention import plain_attention

MOST_TOKENS = 512
"""For attention that is not fused: it keeps a number for each pair of tokens until the backward pass."""


@contextmanager
def slow_operators_avoided(module: nn.Module, runtime: Runtime) -> Iterator[None]:
    """Within the block depthwise convolutions work in float32, and timm's attention over few tokens is not fused.

    Does nothing on other devices and in other precisions.
    """
    if not (runtime.precision == "bf16-mixed" and runtime.fabric.device.type == "cpu"):
        yield
        return
    with ExitStack() as after:
        after.enter_context(plain_attention(module, most_tokens=MOST_TOKENS))
        for part in module.modules():
            if isinstance(part, nn.Conv2d) and _is_depthwise(part):
                after.enter_context(_without_autocast(part))
        yield


def _is_depthwise(convolution: nn.Conv2d) -> bool:
    return convolution.groups == convolution.in_channels > 1


@contextmanager
def _without_autocast(convolution: nn.Conv2d) -> Iterator[None]:
    before = vars(convolution).get("forward")
    convolution.forward = partial(_in_own_type, convolution, convolution.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del convolution.forward
        if before is not None:
            convolution.forward = before  # type: ignore[method-assign]


def _in_own_type(
    convolution: nn.Conv2d, forward: Callable[..., Tensor], planes: Tensor, *more: Any, **named: Any
) -> Tensor:
    """Compute in the type of the weights, answer in that of ``planes``."""
    with torch.autocast(planes.device.type, enabled=False):
        return forward(planes.to(convolution.weight.dtype), *more, **named).to(planes.dtype)
