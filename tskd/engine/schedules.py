"""Learning rates over steps and over the depth of a network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

_TABLES = ("pos_embed", "cls_token")
"""How the names of tables end that no list of timm's has (transformers' SAM)."""
_ENCODER = re.compile(r"\bencoder\.")
_BLOCK = re.compile(
    r"\bencoder\..*?(?:\b|serial_)"
    r"(?:blocks?|stages?|layers?|levels?|transformers|network|denseblock|s)[._]?(\d+)\."
)


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the base learning rate at a step: linear warm-up, then half a cosine to 0.

    ``warmup`` is a share of ``steps``. Source: Loshchilov and Hutter 2017, without restarts.
    """
    rise = max(round(warmup * steps), 1)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def parameter_groups(
    module: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0, encoder_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Return AdamW groups of the trainable parameters; ``base_lr`` is each group's learning rate before the schedule.

    Vectors (biases, norms), position tables, relative position biases and tokens are not decayed; timm says which
    tensors are such (``no_weight_decay``). With ``layer_decay`` below 1, block i of n of the encoder (a transformer's
    blocks, a hierarchical network's stages) learns at ``lr * layer_decay ** (n - i)``, what comes before them as block
    0, what comes between or after them as the block before, and the rest of the network at ``lr`` (Bao et al. 2022,
    BEiT). Blocks are known by timm's names; an encoder with other names learns at ``lr`` throughout. All rates of the
    encoder are multiplied by ``encoder_lr``.
    """
    levels = _levels([name for name, _ in module.named_parameters()])
    depth = max(levels.values(), default=0)
    spared = _spared(module)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name in spared else weight_decay
        rate = lr * layer_decay ** (depth - levels[name]) * (encoder_lr if _ENCODER.search(name) else 1.0)
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _spared(module: nn.Module) -> set[str]:
    """Return the names of the tables and tokens, which weight decay would pull to a meaningless zero."""
    names = {name for name, _ in module.named_parameters()}
    spared = {name for name in names if name.endswith(_TABLES)}
    for path, part in module.named_modules():
        listed: Iterable[str] = getattr(part, "no_weight_decay", tuple)()
        spared |= {name for name in names for one in listed if fnmatchcase(name, f"{path}.{one}")}
    return spared


def _levels(names: Sequence[str]) -> dict[str, int]:
    """Return the level of each parameter, in their order: 0 before the encoder's first block, then the blocks' own."""
    blocks = {name: _block(name) for name in names}
    numbers = {
        block: level for level, block in enumerate(sorted({one for one in blocks.values() if one is not None}), start=1)
    }
    levels, reached = {}, 0
    for name, block in blocks.items():
        reached = reached if block is None else numbers[block]
        levels[name] = reached if _ENCODER.search(name) else len(numbers)
    return levels


def _block(name: str) -> int | None:
    """Return the number of the outermost block or stage of the encoder that a parameter is in, by timm's names."""
    if re.search(r"\bencoder\.(?:model\.)?patch_embed\.", name):
        return None  # in a hybrid transformer it is a network with stages of its own
    found = _BLOCK.search(name)
    return int(found.group(1)) if found else None
