"""Adapting a frozen encoder: LoRA on query and value alone, a probe, or full training.

``W' = W + (alpha / rank) · B·A`` with A (rank, d_in) Kaiming-uniform and B (d_out, rank) zero, so the adapted network
starts as the pretrained one (Hu et al., arXiv 2106.09685). As in SAMed (Zhang and Liu, arXiv 2304.13785) only query and
value projections get adapters; a fused qkv layer is therefore split first, else its one B matrix would adapt the keys
too. A model to adapt keeps its backbone in ``model.encoder``; all that lies outside is always trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from tskd.errors import UserError
from tskd.models.fitting import compare_tensors

AdaptationName = Literal["lora", "probe", "full"]
_QUERY_OR_VALUE = re.compile(r"(?:.*\.)?(?:q|v|q_proj|v_proj|query|value)")


class Adaptation(NamedTuple):
    """What :func:`set_adaptation` left to train."""

    trainable: tuple[str, ...]
    """Names of the trained tensors, in the model's order."""
    parameters: int
    """Their count of numbers."""


class SplitQKV(nn.Module):
    """Query, key and value projections as three layers that answer like the fused one: (..., D) -> (..., 3·D_head)."""

    def __init__(self, q: nn.Linear, k: nn.Linear, v: nn.Linear) -> None:
        super().__init__()
        self.q, self.k, self.v = q, k, v

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat((self.q(tokens), self.k(tokens), self.v(tokens)), dim=-1)


def set_adaptation(
    model: nn.Module, adaptation: AdaptationName, *, rank: int = 4, alpha: float | None = None
) -> Adaptation:
    """Freeze and adapt ``model.encoder`` in place and return what is left to train.

    ``lora``: adapters of that rank on the layers of :func:`lora_targets`; ``probe``: the encoder stays as it is;
    ``full``: every tensor is trained. With ``lora`` and ``probe`` the encoder's batch norm keeps its statistics too.
    Everything outside the encoder is trained always. ``rank`` and ``alpha`` (default: ``rank``, so that the scale is 1
    as in SAMed) matter for ``lora`` only. A is drawn from torch's global generator: seed it before.
    Raises ValueError where the model is adapted already.
    """
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError("This model carries adapters already: merge them, or build it anew.")
    model.requires_grad_(True)
    if adaptation != "full":
        encoder = cast(nn.Module, freeze_batch_norm_2d(model.encoder)).requires_grad_(False)
        if adaptation == "lora":
            add_lora(encoder, rank=rank, alpha=alpha, targets=lora_targets(encoder))
        model.encoder = encoder
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    return Adaptation(tuple(trained), sum(tensor.numel() for tensor in trained.values()))


def lora_targets(encoder: nn.Module) -> list[str]:
    """Return the names of the layers in ``encoder`` that get adapters, after splitting its fused attention.

    Attention: query and value alone. Networks without attention: the pointwise layers (1x1 convolutions, or the linear
    layers that stand for them, as in ConvNeXt). Raises UserError where there is neither.
    """
    split_qkv(encoder)
    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    attention = [name for name in linear if _QUERY_OR_VALUE.fullmatch(name)]
    pointwise = [name for name, module in encoder.named_modules() if _is_pointwise(module)]
    targets = attention or pointwise or linear
    if not targets:
        raise UserError(
            f"{type(encoder).__name__} has neither attention nor 1x1 convolutions for LoRA adapters: "
            "set teacher.adaptation to probe or full."
        )
    return targets


def split_qkv(model: nn.Module) -> list[str]:
    """Replace every fused ``qkv`` linear layer by a :class:`SplitQKV` and return their names.

    The owner's forward goes on unchanged and the answer is the same. Covers transformers' SAM and timm's attention
    (ViT, Swin, EVA, BEiT: where the bias lives outside the layer it moves into the three).
    """
    owners = [(name, module) for name, module in model.named_modules() if isinstance(_fused(module), nn.Linear)]
    for _, owner in owners:
        owner.qkv = _split_linear(cast(nn.Linear, owner.qkv), _outer_bias(owner))
    return [f"{name}.qkv" if name else "qkv" for name, _ in owners]


def add_lora(model: nn.Module, *, rank: int, alpha: float | None = None, targets: Sequence[str]) -> list[str]:
    """Put LoRA adapters on the named layers in place, freeze all else, and return the adapters' parameter names.

    ``targets`` are full module names. ``alpha`` None means ``rank``: scale 1. Raises UserError for a rank below 1.
    """
    if rank < 1:
        raise UserError(f"LoRA rank {rank} is not possible: teacher.rank is a whole number from 1, usually 4 to 16.")
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, rank if alpha is None else alpha),
        target_modules="|".join(re.escape(name) for name in targets),
        lora_dropout=0.0,
        bias="none",
    )
    inject_adapter_in_model(config, model)
    return trainable_names(model)


def merge_lora(model: nn.Module) -> None:
    """Fold every adapter into its layer and fuse split attention again, in place: the same answer, no adapters left."""
    for owner, name, layer in _children(model, LoraLayer):
        adapter = cast(LoraLayer, layer)
        adapter.merge(safe_merge=True)
        setattr(owner, name, adapter.get_base_layer())
    for owner, name, split in _children(model, SplitQKV):
        setattr(owner, name, _fuse_linear(cast(SplitQKV, split)))


def trainable_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that train, in the model's order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors in which the adapted model may differ from its pretrained base.

    These are the trained parameters, the buffers of the layers that hold them (batch norm statistics) and all that
    lies outside ``model.encoder``.
    """
    live = {name.rpartition(".")[0] for name in trainable_names(model)}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("encoder.") or name.rpartition(".")[0] in live
    }


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`adapter_state` returned into a model of the same base, adaptation and rank.

    Raises UserError that lists the missing, unexpected and misshapen tensors; the model is then untouched.
    """
    expected = adapter_state(model)
    misfit = compare_tensors(state, expected)
    if any(misfit):
        raise UserError(
            f"These adapter weights do not belong to this model: {misfit}. "
            "Use the model, adaptation, rank and number of classes with which they were saved."
        )
    model.load_state_dict(dict(state), strict=False)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def _fused(module: nn.Module) -> object:
    return getattr(module, "qkv", None)


def _outer_bias(owner: nn.Module) -> Tensor | None:
    """Take over the bias that EVA, BEiT and Swin V2 keep beside a qkv layer without one."""
    if getattr(owner, "q_bias", None) is None:
        return None
    bias = torch.cat([cast(Tensor, getattr(owner, name)).detach() for name in ("q_bias", "k_bias", "v_bias")])
    for name in ("q_bias", "k_bias", "v_bias"):
        setattr(owner, name, None)
    return bias


def _split_linear(fused: nn.Linear, outer_bias: Tensor | None) -> SplitQKV:
    bias = fused.bias if outer_bias is None else outer_bias
    weights = fused.weight.detach().chunk(3)
    biases: Sequence[Tensor | None] = (None,) * 3 if bias is None else bias.detach().chunk(3)
    parts = [_linear(weight, part_bias) for weight, part_bias in zip(weights, biases, strict=True)]
    return SplitQKV(*parts).requires_grad_(fused.weight.requires_grad)


def _fuse_linear(split: SplitQKV) -> nn.Linear:
    parts = (split.q, split.k, split.v)
    bias = None if split.q.bias is None else torch.cat([part.bias.detach() for part in parts])
    return _linear(torch.cat([part.weight.detach() for part in parts]), bias).requires_grad_(
        split.k.weight.requires_grad
    )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    # The meta device spares drawing random weights that are replaced at once.
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone())
    layer.bias = cast(nn.Parameter, None if bias is None else nn.Parameter(bias.clone()))
    return layer


def _children(model: nn.Module, kind: type) -> list[tuple[nn.Module, str, nn.Module]]:
    return [
        (owner, name, child)
        for owner in list(model.modules())
        for name, child in owner.named_children()
        if isinstance(child, kind)
    ]
