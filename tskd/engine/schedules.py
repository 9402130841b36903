"""Learning rates over steps and over the depth of a network."""

from __future__ import annotations

import math
import re
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

    Vectors (biases, norms) and position tables are not decayed. With ``layer_decay`` below 1, block i of n of a
    transformer learns at ``lr * layer_decay ** (n - i)``, its embedding as block 0, the rest of the network at ``lr``
    (Bao et al. 2022, BEiT).
    """
    depth = 1 + max((_block(name) for name, _ in module.named_parameters()), default=-1)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name.endswith(("pos_embed", "cls_token")) else weight_decay
        rate = lr * layer_decay ** (depth - _level(name, depth))
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _level(name: str, depth: int) -> int:
    if (block := _block(name)) >= 0:
        return block + 1
    is_embedding = re.search(r"encoder\..*(patch_embed|pos_embed|cls_token)", name) is not None
    return 0 if is_embedding else depth


def _block(name: str) -> int:
    found = re.search(r"encoder\..*\bblocks\.(\d+)\.", name)
    return int(found.group(1)) if found else -1
