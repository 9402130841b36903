"""Adapting a frozen encoder: LoRA on query and value alone, a probe, or full training.

``W' = W + (alpha / rank) · B·A`` with A (rank, d_in) Kaiming-uniform and B (d_out, rank) zero, so the adapted network
starts as the pretrained one (Hu et al., arXiv 2106.09685). As in SAMed (Zhang and Liu, arXiv 2304.13785) only query and
value projections get adapters; a fused qkv layer is therefore split first, else its one B matrix would adapt the keys
too. A model to adapt keeps its backbone in ``model.encoder``; all that lies outside is always trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from tskd.errors import UserError
from tskd.models.description import AdaptationName
from tskd.models.fitting import compare_tensors

_QUERY_OR_VALUE = re.compile(r"(?:.*\.)?(?:q|v|wq|wv|q_proj|v_proj|query|value)")
_FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "qk": ("q", "k")}
"""Fused projections by their name in timm and transformers, and the parts they hold."""


class Adaptation(NamedTuple):
    """What :func:`set_adaptation` left to train."""

    trainable: tuple[str, ...]
    """Names of the trained tensors, in the model's order."""
    parameters: int
    """Their count of numbers."""


class SplitProjection(nn.Module):
    """Parts of a fused projection (q, k, v, those it has) as layers of their own that answer like it: (..., D)."""

    places: Tensor | None

    def __init__(self, parts: Mapping[str, nn.Linear], places: Tensor | None) -> None:
        """``places``: where each number of the fused answer stands in the parts' one after the other; None: there."""
        super().__init__()
        self.parts = tuple(parts)
        for name, layer in parts.items():
            self.add_module(name, layer)
        self.register_buffer("places", places, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        joined = torch.cat([getattr(self, name)(tokens) for name in self.parts], dim=-1)
        return joined if self.places is None else joined[..., self.places]


class FrozenBatchNorm1d(nn.Module):
    """Batch norm of (N, C) that keeps its statistics in training too; timm has it for planes only."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, cast(Tensor, getattr(norm, name)).detach().clone())

    def forward(self, rows: Tensor) -> Tensor:
        return F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


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
        raise ValueError("This model carries adapters already: build it anew.")
    model.requires_grad_(True)
    if adaptation != "full":
        encoder = _freeze_batch_norm(cast(nn.Module, model.encoder)).requires_grad_(False)
        if adaptation == "lora":
            add_lora(encoder, rank=rank, alpha=alpha, targets=lora_targets(encoder))
        model.encoder = encoder
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    return Adaptation(tuple(trained), sum(tensor.numel() for tensor in trained.values()))


def has_attention(encoder: nn.Module) -> bool:
    """Say whether a network attends by linear layers, as transformers do: by the names of its queries and values."""
    layers = (name for name, module in encoder.named_modules() if isinstance(module, nn.Linear))
    return any(_QUERY_OR_VALUE.fullmatch(name) or name.rpartition(".")[2] in _FUSED for name in layers)


def lora_targets(encoder: nn.Module) -> list[str]:
    """Return the names of the layers in ``encoder`` that get adapters, after splitting its fused attention.

    Attention: query and value alone. Networks without attention of linear layers: the pointwise layers (1x1
    convolutions, and the linear layers that stand for them, as in ConvNeXt). Raises UserError where there is neither.
    """
    split_qkv(encoder)
    pointwise = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear) or _is_1x1(module)]
    attention = [
        name
        for name in pointwise
        if isinstance(encoder.get_submodule(name), nn.Linear) and _QUERY_OR_VALUE.fullmatch(name)
    ]
    targets = attention or pointwise
    if not targets:
        network = type(getattr(encoder, "model", encoder)).__name__
        raise UserError(
            f"{network} has neither attention nor 1x1 convolutions for LoRA adapters: "
            "set teacher.adaptation to probe or full."
        )
    return targets


def split_qkv(model: nn.Module) -> list[str]:
    """Replace every fused ``qkv``, ``kv`` or ``qk`` linear layer by a :class:`SplitProjection`; return their names.

    The owner's forward goes on unchanged and the answer is the same. Covers transformers' SAM and timm's attention
    (where the bias lives outside the layer, as in EVA, BEiT and Swin V2, it moves into the parts).
    """
    owners = [
        (name, owner, fused)
        for name, owner in model.named_modules()
        for fused in _FUSED
        if isinstance(getattr(owner, fused, None), nn.Linear)
    ]
    for _, owner, fused in owners:
        setattr(owner, fused, _split_linear(owner, fused))
    return [f"{name}.{fused}" if name else fused for name, _, fused in owners]


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


def _is_1x1(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def _freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Return the module with every batch norm frozen; timm leaves those of rows (LeViT's) as they are."""
    frozen = cast(nn.Module, freeze_batch_norm_2d(module))
    for owner, name, norm in _children(frozen, nn.BatchNorm1d):
        setattr(owner, name, FrozenBatchNorm1d(cast(nn.BatchNorm1d, norm)))
    return frozen


def _outer_bias(owner: nn.Module) -> Tensor | None:
    """Take over the bias that EVA, BEiT and Swin V2 keep beside a qkv layer without one."""
    if getattr(owner, "q_bias", None) is None:
        return None
    bias = torch.cat([cast(Tensor, getattr(owner, name)).detach() for name in ("q_bias", "k_bias", "v_bias")])
    for name in ("q_bias", "k_bias", "v_bias"):
        setattr(owner, name, None)
    return bias


def _split_linear(owner: nn.Module, name: str) -> SplitProjection:
    fused = cast(nn.Linear, getattr(owner, name))
    outer_bias = _outer_bias(owner)
    bias = fused.bias if outer_bias is None else outer_bias
    rows = _rows_of_parts(owner, name, fused.out_features)
    parts = {
        part: _linear(fused.weight.detach()[places], None if bias is None else bias.detach()[places])
        for part, places in rows.items()
    }
    order = torch.cat(list(rows.values()))
    in_order = order.tolist() == list(range(fused.out_features))
    places = None if in_order else order.argsort().to(fused.weight.device)
    return SplitProjection(parts, places).requires_grad_(fused.weight.requires_grad)


def _rows_of_parts(owner: nn.Module, name: str, count: int) -> dict[str, Tensor]:
    """Return which of the fused layer's ``count`` rows are the query's, the key's and the value's.

    Equal parts one after the other, but for LeViT's kin (TinyViT, EfficientFormer: head by head, values wider than
    keys), MaxViT's kin (head by head) and GCViT's global attention, whose ``qkv`` holds no query.
    """
    parts = ("k", "v") if getattr(owner, "use_global", False) else _FUSED[name]
    rows = torch.arange(count, device="cpu")
    sizes = _sizes_in_a_head(owner)
    if sizes is None:
        return dict(zip(parts, rows.chunk(len(parts)), strict=True))
    by_head = rows.reshape(cast(int, owner.num_heads), -1).split(sizes, dim=1)
    return {part: one.flatten() for part, one in zip(parts, by_head, strict=True)}


def _sizes_in_a_head(owner: Any) -> list[int] | None:
    if hasattr(owner, "key_dim") and hasattr(owner, "val_dim"):
        return [owner.key_dim, owner.key_dim, owner.val_dim]
    return [owner.dim_head] * 3 if getattr(owner, "head_first", False) else None


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
