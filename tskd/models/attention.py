"""How timm's attention is computed: fused, or as the matrix products and the softmax that it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn


@contextmanager
def plain_attention(network: nn.Module, *, most_tokens: int | None = None) -> Iterator[None]:
    """Within the block attention is not fused: nowhere, or only where it is asked about at most so many tokens."""
    fused: list[Any] = [part for part in network.modules() if getattr(part, "fused_attn", False)]
    with ExitStack() as after:
        for part in fused:
            after.callback(setattr, part, "fused_attn", True)
            if most_tokens is None:
                part.fused_attn = False
            else:
                after.callback(part.register_forward_pre_hook(partial(_by_tokens, most_tokens)).remove)
        yield


def _by_tokens(most: int, part: Any, given: tuple[Any, ...]) -> None:
    """``given``: (B, tokens, channels) first; whatever else it is stays fused."""
    few = bool(given) and given[0].ndim == 3 and given[0].shape[1] <= most
    part.fused_attn = not few
