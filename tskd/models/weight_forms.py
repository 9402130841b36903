"""The ways in which weights are published: what tells a form by names of tensors, and timm's names that may be it.

timm's own filters translate what timm knows; the tables here are for what it does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

State = dict[str, Tensor]
APACHE = "Apache-2.0"
UNKNOWN = "unknown"
_VIT_SIZES = {
    (192, 12): "tiny",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1280, 32): "huge",
    (1536, 40): "giant",
}
"""Width and blocks -> timm's word."""
_CONVNEXT_SIZES = {
    32: "zepto", 40: "atto", 48: "femto", 64: "pico", 80: "nano", 96: "tiny small", 128: "base", 192: "large",
    256: "xlarge", 352: "huge", 384: "xxlarge",
}  # fmt: skip
"""Width of the stem -> timm's words."""
_EFFICIENTNET_SIZES = {
    1280: "[01]", 1408: "2", 1536: "3", 1792: "4", 2048: "5", 2304: "6", 2560: "7", 2816: "8",
}  # fmt: skip
"""Width before the classification -> number."""
_RESNET_PLACES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Children of torchvision's ResNet by their place, as a ``Sequential`` of them numbers them."""


class Form(NamedTuple):
    """A way in which weights are published."""

    title: str
    marks: tuple[str, ...]
    """Tensor names that together only this form has."""
    names: Callable[[State], Iterable[str]]
    """Groups of patterns of timm's names that may be it, the likeliest first; networks of a group may be twins."""
    translate: Callable[[State], State] = dict
    """Into names that timm, or its filter, knows; parts without a place there are left out."""
    pixels: str | None = None
    """None: as timm says of the weights that fit."""
    licence: str | None = None
    even_last: bool = False
    native: int | None = None
    """Side of the images it was trained on; None: as timm says."""
    is_jax: bool = False
    """An archive of JAX's arrays, which timm reads itself."""


def under(prefix: str, *renames: tuple[str, str]) -> Callable[[State], State]:
    """Return the translation that keeps what is under ``prefix``, but SAM's neck, and renames it."""

    def translate(state: State) -> State:
        kept = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith("neck.")}
        for pattern, replacement in renames:
            kept = {re.sub(pattern, replacement, name): tensor for name, tensor in kept.items()}
        return kept

    return translate


_TINY_VIT = (
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^layers\.0\.downsample\.", "stages.1.downsample."),
    (r"^layers\.1\.downsample\.", "stages.2.downsample."),
    (r"^layers\.2\.downsample\.", "stages.3.downsample."),
    (r"^layers\.", "stages."),
    (r"\.c\.weight$", ".conv.weight"),
    (r"^norm_head\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)  # fmt: skip
_HIERA = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.mlp\.proj_in\.", ".mlp.fc1."),
    (r"\.mlp\.proj_out\.", ".mlp.fc2."),
)  # fmt: skip


def _numbered_resnet(state: State) -> State:
    placed = {}
    for name, tensor in state.items():
        place, _, rest = name.partition(".")
        placed[f"{_RESNET_PLACES.get(place, place)}.{rest}"] = tensor
    return placed


# --- candidates ---


def _tiny_vit(state: State) -> Iterable[str]:
    words = {320: "5m", 448: "11m", 576: "21m"}
    offsets = state["stages.3.blocks.0.attn.attention_biases"].shape[1]
    word = words.get(state["stages.3.blocks.0.attn.qkv.weight"].shape[1], "of_no_known_size")
    return (f"tiny_vit_{word}_{ {49: 224, 144: 384, 256: 512}.get(offsets, 224) }",)


def _hiera(state: State) -> Iterable[str]:
    return ("sam2_hiera_*", "hieradet_*")


def _dinov3(state: State) -> Iterable[str]:
    with_bias = any(name.endswith(("qkv.bias", "q_bias")) for name in state)
    return (f"vit_{_size(state)}*_dinov3" + ("_qkvb" if with_bias else ""), f"vit_*_dinov3{'_qkvb' * with_bias}")


def _vit(state: State) -> Iterable[str]:
    patch = state["patch_embed.proj.weight"].shape[-1]
    core = f"{_size(state)}_patch{patch}"
    scaled = "blocks.0.ls1.gamma" in state
    if {"register_tokens", "reg_token"} & state.keys():
        return (f"vit_{core}_reg4_dinov2", f"vit_{core}_reg*")
    if "dist_token" in state:
        return (f"deit_{core.replace('_', '_distilled_', 1)}_*",)
    if "norm_pre.weight" in state:
        return (f"vit_{core}_clip_???",)
    if scaled or "blocks.0.gamma_1" in state:
        return (f"vit_{core}_dinov2", f"deit3_{core}_???")
    if "cls_token" not in state:
        return (f"vit_{core}_siglip_gap_???", f"vit_{core}_siglip_???", f"vit_{core}_gap_???")
    return (f"vit_{core}_??? deit_{core}_???",)


def _jax_vit(state: State) -> Iterable[str]:
    patch, _, _, width = _jax(state)["embedding/kernel"].shape
    blocks = {found[1] for name in state if (found := re.search(r"encoderblock_(\d+)/", name))}
    tokens = _jax(state)["Transformer/posembed_input/pos_embedding"].shape[1]
    side = patch * int((tokens - 1) ** 0.5)
    return (f"vit_{_VIT_SIZES.get((width, len(blocks)), 'of_no_known_size')}_patch{patch}_{side}",)


def _jax(state: State) -> State:
    return {name.removeprefix("opt/target/").removeprefix("params/"): tensor for name, tensor in state.items()}


def _size(state: State) -> str:
    blocks = {found[1] for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}
    return _VIT_SIZES.get((state["patch_embed.proj.weight"].shape[0], len(blocks)), "of_no_known_size")


def _swin(state: State) -> Iterable[str]:
    return (f"swin_{_swin_size(state)}_patch4_*", "swin_s3_*")


def _swin_v2(state: State) -> Iterable[str]:
    return (f"swinv2_{_swin_size(state)}_window*",)


def _swin_size(state: State) -> str:
    words = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}
    depth = _depth(state, r"layers\.2\.blocks\.(\d+)\.")
    return words.get((state["patch_embed.proj.weight"].shape[0], depth), "of_no_known_size")


def _convnext(state: State) -> Iterable[str]:
    family = "convnextv2" if any("grn" in name for name in state) else "convnext"
    stem = next((state[name] for name in ("stem.0.weight", "downsample_layers.0.0.weight") if name in state), None)
    words = _CONVNEXT_SIZES.get(0 if stem is None else stem.shape[0], "of_no_known_size").split()
    return [f"{family}_{word}{end}" for word in words for end in ("", "_*")]


def _resnet(state: State) -> Iterable[str]:
    blocks = sum(_depth(state, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    depth = blocks * (3 if "layer1.0.conv3.weight" in state else 2) + 2
    return (f"resnet{depth}", f"resnext{depth}*", f"wide_resnet{depth}*", f"resnet{depth}[a-z]", f"*resnet*{depth}*")


def _efficientnet(state: State) -> Iterable[str]:
    head = state["conv_head.weight"].shape[0] if "conv_head.weight" in state else 0
    word = _EFFICIENTNET_SIZES.get(head, "?")
    return (
        f"efficientnet_b{word} tf_efficientnet_b{word}", "*efficientnet_lite*", "*efficientnetv2_*", "*mobilenet*",
    )  # fmt: skip


def _depth(state: Iterable[str], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.match(pattern, name))})


FORMS: tuple[Form, ...] = (
    Form("MobileSAM", ("image_encoder.patch_embed.seq.0.c.weight",), _tiny_vit, under("image_encoder.", *_TINY_VIT),
         "imagenet", APACHE, even_last=True, native=1024),
    Form("SAM 2 (Meta's file)", ("image_encoder.trunk.pos_embed_window",), _hiera, under("image_encoder.trunk."),
         "imagenet", APACHE, native=1024),
    Form("SAM 2 (transformers)", ("vision_encoder.backbone.pos_embed_window",), _hiera,
         under("vision_encoder.backbone.", *_HIERA), "imagenet", APACHE, native=1024),
    Form("SAM 2 (timm)", ("pos_embed_window", "blocks.0.attn.qkv.weight"), _hiera, pixels="imagenet", licence=APACHE,
         native=1024),
    Form("TinyViT (official)", ("patch_embed.seq.0.c.weight",), _tiny_vit, under("", *_TINY_VIT)),
    Form("TinyViT", ("patch_embed.conv1.conv.weight", "stages.0.blocks.0.conv1.conv.weight"), _tiny_vit),
    Form("DINOv3 (official)", ("storage_tokens", "patch_embed.proj.weight"), _dinov3,
         pixels="imagenet", licence="DINOv3 License (Meta's own)"),
    Form("DINOv3", ("reg_token", "blocks.0.gamma_1"), _dinov3, licence="DINOv3 License (Meta's own)"),
    Form("DINOv2 (official)", ("mask_token", "blocks.0.ls1.gamma"), _vit, pixels="imagenet", licence=APACHE),
    Form("ViT (JAX archive: augreg)", ("embedding/kernel",), _jax_vit, pixels="half", licence=APACHE, is_jax=True),
    Form("ViT (JAX archive: augreg)", ("opt/target/embedding/kernel",), _jax_vit, pixels="half", licence=APACHE,
         is_jax=True),
    Form("RadImageNet ResNet", ("backbone.0.weight", "backbone.4.0.conv1.weight"), _resnet,
         lambda state: _numbered_resnet(under("backbone.")(state)), "half", UNKNOWN),
    Form("ResNet (numbered)", ("0.weight", "4.0.conv1.weight"), _resnet, _numbered_resnet),
    Form("ViT", ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"), _vit),
    Form("Swin", ("layers.0.blocks.0.attn.relative_position_bias_table",), _swin),
    Form("Swin V2", ("layers.0.blocks.0.attn.cpb_mlp.0.weight",), _swin_v2),
    Form("ConvNeXt", ("stages.0.blocks.0.conv_dw.weight",), _convnext),
    Form("ConvNeXt (official)", ("downsample_layers.0.0.weight",), _convnext),
    Form("ResNet", ("layer1.0.conv1.weight",), _resnet),
    Form("EfficientNet", ("conv_stem.weight",), _efficientnet),
)  # fmt: skip
"""The first whose marks are in a file says what it is."""
ANY = Form("network of timm", (), lambda state: ())
