"""Learning rates over steps and over the depth of a network."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from torch import nn


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the base learning rate at a step: linear warm-up, then half a cosine to 0.

    ``warmup`` is a share of ``steps``. Source: Loshchilov and Hutter 2017, without restarts.
    """
    rise = max(round(warmup * steps), 1)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def parameter_groups(
    module: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return AdamW groups of the trainable parameters; ``base_lr`` is each group's learning rate before the schedule.

    Vectors (biases, norms) and position tables are not decayed. With ``layer_decay`` below 1, block i of n of the
    encoder (a transformer's blocks, a convolutional network's stages) learns at ``lr * layer_decay ** (n - i)``, what
    comes before them as block 0, what comes after them and the rest of the network at ``lr`` (Bao et al. 2022, BEiT).
    Blocks are known by timm's names; an encoder with other names learns at ``lr`` throughout.
    """
    levels = _levels([name for name, _ in module.named_parameters()])
    depth = max(levels.values(), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name.endswith(("pos_embed", "cls_token")) else weight_decay
        rate = lr * layer_decay ** (depth - levels[name])
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _levels(names: Sequence[str]) -> dict[str, int]:
    """Return the level of each parameter, in their order: 0 before the encoder's first block, then the blocks' own."""
    blocks = [_block(name) for name in names]
    numbers = {block: level for level, block in enumerate(sorted({one for one in blocks if one is not None}), start=1)}
    first = next((place for place, block in enumerate(blocks) if block is not None), 0)
    levels = {}
    for place, (name, block) in enumerate(zip(names, blocks)):
        stem = place < first and re.search(r"\bencoder\.", name)
        levels[name] = numbers[block] if block is not None else 0 if stem else len(numbers)
    return levels


def _block(name: str) -> int | None:
    """Return the number of the outermost block or stage of the encoder that a parameter is in, by timm's names."""
    found = re.search(r"\bencoder\..*?\b(?:blocks|stages|layers?|denseblock|s)[._]?(\d+)\.", name)
    return int(found.group(1)) if found else None
