"""What a weight file is, told by the names and shapes in it, and its tensors under the names of an encoder.

Nothing is read but the file's head until a network is filled. timm's own filters translate what timm knows (official
DINOv2, DINOv3, SAM 2, Swin, ConvNeXt, JAX archives); the tables here are for what it does not.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import Tensor, nn

from tskd.errors import UserError
from tskd.models.backbones import build_encoder, fit_backbone
from tskd.models.fitting import Misfit, compare_tensors
from tskd.models.pixels import MINMAX, name_of
from tskd.models.sam_files import check_sam, is_meta
from tskd.models.unfilled import Unfilled
from tskd.models.weights import Contents, has_sam_marks, read_config, read_weights, weight_file

State = dict[str, Tensor]
APACHE = "Apache-2.0"
UNKNOWN = "unknown"
_HEADS = ("head", "fc.", "fc_norm.", "norm.", "norm_head.", "classifier.", "pre_logits.", "conv_head.", "bn2.")
"""Names of what belongs to a classification, which no encoder of ours has."""
_COUNTER = "num_batches_tracked"
"""Of batch norm; old files lack it, and nothing here reads it."""
_VIT_SIZES = {
    (192, 12): "tiny",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1280, 32): "huge",
    (1536, 40): "giant",
}
"""Width and blocks -> timm's word."""
_DEFAULT = "vit_tiny_patch16_224"
"""Stands for networks that timm knows nothing of."""
_CONVNEXT_SIZES = {
    32: "zepto", 40: "atto", 48: "femto", 64: "pico", 80: "nano", 96: "tiny small", 128: "base", 192: "large",
    256: "xlarge", 352: "huge", 384: "xxlarge",
}  # fmt: skip
"""Width of the stem -> timm's words."""
_EFFICIENTNET_SIZES = {
    1280: "[01]", 1408: "2", 1536: "3", 1792: "4", 2048: "5", 2304: "6", 2560: "7", 2816: "8",
}  # fmt: skip
"""Width before the classification -> number."""
_SAM_SIZES = {768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H"}
_RESNET_PLACES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Children of torchvision's ResNet by their place, as a ``Sequential`` of them numbers them."""


@dataclass(frozen=True)
class WeightFile:
    """What is known of a weight file."""

    file: Path
    title: str
    """As a person would call it."""
    backbone: str | None
    """timm's name of its encoder; None: SAM, which has a decoder of its own."""
    twins: tuple[str, ...]
    """Other backbones with the same tensors."""
    pixels: str | None
    """Name of :data:`tskd.models.pixels.PIXELS`; None: as timm says of the backbone."""
    doubt: str
    """Why nothing tells ``pixels``; empty: something does."""
    inferred: str
    """What tells ``pixels`` where only a name does, of the file or inside it; empty: they are certain."""
    choices: tuple[str, ...]
    """What ``pixels`` may be: such weights have been published for each."""
    licence: str
    native: int
    """Side in pixels of the images it was trained on."""
    tensors: int
    unused: tuple[str, ...]
    """What of the file has no place in our network: classification heads, SAM 2's memory …"""
    even_last: bool = False
    """Its last stage keeps the grid of the one before (MobileSAM)."""

    @property
    def teacher(self) -> str:
        """The ``teacher.name`` that takes it."""
        return "sam" if self.backbone is None else f"timm/{self.backbone}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What a model's description says of it beside the backbone."""
        pixels = {} if self.pixels is None else {"pixels": self.pixels}
        return {**pixels, **({"even_last": True} if self.even_last else {})}


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


# --- names ---


def _under(prefix: str, *renames: tuple[str, str]) -> Callable[[State], State]:
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
    Form("MobileSAM", ("image_encoder.patch_embed.seq.0.c.weight",), _tiny_vit, _under("image_encoder.", *_TINY_VIT),
         "imagenet", APACHE, even_last=True, native=1024),
    Form("SAM 2 (Meta's file)", ("image_encoder.trunk.pos_embed_window",), _hiera, _under("image_encoder.trunk."),
         "imagenet", APACHE, native=1024),
    Form("SAM 2 (transformers)", ("vision_encoder.backbone.pos_embed_window",), _hiera,
         _under("vision_encoder.backbone.", *_HIERA), "imagenet", APACHE, native=1024),
    Form("SAM 2 (timm)", ("pos_embed_window", "blocks.0.attn.qkv.weight"), _hiera, pixels="imagenet", licence=APACHE,
         native=1024),
    Form("TinyViT (official)", ("patch_embed.seq.0.c.weight",), _tiny_vit, _under("", *_TINY_VIT)),
    Form("TinyViT", ("patch_embed.conv1.conv.weight", "stages.0.blocks.0.conv1.conv.weight"), _tiny_vit),
    Form("DINOv3 (official)", ("storage_tokens", "patch_embed.proj.weight"), _dinov3,
         pixels="imagenet", licence="DINOv3 License (Meta's own)"),
    Form("DINOv3", ("reg_token", "blocks.0.gamma_1"), _dinov3, licence="DINOv3 License (Meta's own)"),
    Form("DINOv2 (official)", ("mask_token", "blocks.0.ls1.gamma"), _vit, pixels="imagenet", licence=APACHE),
    Form("ViT (JAX archive: augreg)", ("embedding/kernel",), _jax_vit, pixels="half", licence=APACHE),
    Form("ViT (JAX archive: augreg)", ("opt/target/embedding/kernel",), _jax_vit, pixels="half", licence=APACHE),
    Form("RadImageNet ResNet", ("backbone.0.weight", "backbone.4.0.conv1.weight"), _resnet,
         lambda state: _numbered_resnet(_under("backbone.")(state)), "half", UNKNOWN),
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
_ANY = Form("network of timm", (), lambda state: ())


# --- identification ---


def identify(place: Path, backbone: str | None = None) -> WeightFile:
    """Return what the weight file ``place`` (or that in the folder) is; ``backbone``: timm's network it has to fit.

    Reads no more than the file's head. Raises UserError where it cannot be read, is of no known form, or does not fit.
    """
    file = weight_file(place.expanduser().absolute())  # the names of its folders tell, too
    stamp = file.stat()
    return _identify(file, backbone, (stamp.st_mtime_ns, stamp.st_size))


@lru_cache(maxsize=64)
def _identify(file: Path, backbone: str | None, stamp: tuple[int, int]) -> WeightFile:
    contents = read_weights(file, shapes_only=True)
    if has_sam_marks(contents.tensors) and not (backbone or "").startswith("samvit_"):
        return _sam(file, contents, backbone)
    form, state = _form(contents)
    published = _published_as(file)
    if backbone:
        misfit = _require_fit(file, state, backbone, form)
        # who names DeiT has said what its pixels are
        fits = dict.fromkeys((backbone, *(_namesake(backbone) if backbone.startswith("vit_") else ())), misfit)
    else:
        fits = _first_fits(file, state, form, published)
    if published and published.backbone not in fits:
        published = None
    choices = tuple(_expected(fits if backbone else (*fits, *(twin for name in fits for twin in _namesake(name)))))
    pixels, told_by = _pixels(form, file, contents, published, choices)
    name, *twins = (
        fits if backbone else sorted(fits, key=lambda one: pixels not in _expected((one,)))
    )  # sorted is stable
    return WeightFile(
        file=file,
        title=f"{form.title}: {published.title if published else name}",
        backbone=published.backbone if published else name,
        twins=tuple(twins) if published is None else (),
        pixels=pixels,
        doubt="" if told_by else f"weights of these names and shapes exist for pixels {_either(choices)}",
        inferred="" if told_by == _CERTAIN else told_by,
        choices=tuple(name for name in choices if name),
        licence=form.licence or (published.licence if published else _licence(fits)),
        native=form.native or (published.native if published else _side(timm.get_pretrained_cfg(name))),
        tensors=len(contents.tensors),
        unused=tuple(sorted({*contents.left_out, *_untranslated(contents.tensors, form), *fits[name].unexpected})),
        even_last=form.even_last,
    )


def _sam(file: Path, contents: Contents, backbone: str | None) -> WeightFile:
    config, misfit = check_sam(file)
    vision = config.vision_config
    medsam = "medsam" in _words(file)
    maker = "Meta's file" if is_meta(contents.tensors) else "transformers"
    size = _SAM_SIZES.get(vision.hidden_size, f"of width {vision.hidden_size}, as SlimSAM")
    title = f"{'MedSAM' if medsam else 'SAM'} {size} ({maker})"
    if backbone:
        raise UserError(
            f"{file} is {title}, not {backbone}: leave teacher.name out, or set teacher.name=sam; a student takes "
            "the weights of a timm backbone."
        )
    return WeightFile(
        file=file, title=title, backbone=None, twins=(), pixels=MINMAX if medsam else "imagenet", doubt="",
        inferred=f"{'MedSAM' if medsam else 'not MedSAM'} by the name of the file and its folder",
        choices=("imagenet", MINMAX), licence=APACHE, native=vision.image_size, tensors=len(contents.tensors),
        unused=(*contents.left_out, *misfit.unexpected),
    )  # fmt: skip


def _form(contents: Contents) -> tuple[Form, State]:
    """Return the form and the tensors in it, translated; a prefix that most names have is tried without."""
    for state in (contents.tensors, _without_common_prefix(contents.tensors)):
        form = next((form for form in FORMS if set(form.marks) <= state.keys()), None)
        if form is not None:
            return form, form.translate(state)
    return _ANY, contents.tensors


def _without_common_prefix(state: State) -> State:
    """Return what lies under the name that most tensors begin with (``backbone.``, ``encoder.`` …), without it."""
    heads = [name.partition(".")[0] for name in state]
    most = max(set(heads), key=heads.count)
    return _under(f"{most}.")(state)


def _untranslated(state: State, form: Form) -> set[str]:
    if not set(form.marks) <= state.keys():
        return set()
    names: Any = {name: name for name in state}
    return set(state) - set(cast(Mapping[str, str], form.translate(names)).values())


def _first_fits(file: Path, state: State, form: Form, published: Published | None) -> dict[str, Misfit]:
    """Return the networks that fit: what the file's surroundings name, or the first group of candidates that does.

    Several networks of a group may have the same tensors: all are returned, those first that need no resampling.
    """
    named = (published.backbone,) if published else ()
    near: dict[str, Misfit] = {}
    for group in (named, _named_in(file), *(_expand(patterns) for patterns in form.names(state))):
        tried = {name: misfit for name in group if (misfit := _misfit(file, state, name, form, rough=True))}
        near |= tried
        fits = {name: misfit for name, misfit in tried.items() if misfit.fills}
        whole = {name: misfit for name, misfit in fits.items() if not _beside_heads(misfit.unexpected)}
        exact = {name: misfit for name, misfit in whole.items() if _same_shapes(state, name)}
        if whole:
            return exact or whole
    nearest = min(near, key=lambda name: len(near[name].missing) + len(near[name].misshapen), default=None)
    told = f" The nearest, {nearest}: {_misfit(file, state, nearest, form)}." if nearest else ""
    raise UserError(
        f"{file} looks like {form.title}, but no network of timm that was tried has its tensors.{told} Name it, "
        "teacher.name=timm/<backbone> (student.backbone for the student), or bring a file that is whole."
    )


_NAMESAKES = {"vit": "deit", "deit": "vit"}


def _namesake(backbone: str) -> tuple[str, ...]:
    """Return DeiT's name of a ViT, or the ViT's of a DeiT: the same network, trained on other pixels."""
    head, _, rest = backbone.partition("_")
    twin = f"{_NAMESAKES.get(head, head)}_{rest}"
    return (twin,) if twin != backbone and timm.is_model(twin) else ()


def _expand(patterns: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for pattern in patterns.split() for name in timm.list_models(pattern)))


def _named_in(file: Path) -> tuple[str, ...]:
    """Return timm's name that the file's or its folder's name begins with, if any: the longest."""
    texts = (file.name, file.parent.name)
    found = [name for name in timm.list_models() if any(text.startswith(name) for text in texts)]
    return (max(found, key=len),) if found else ()


def _same_shapes(state: State, backbone: str) -> bool:
    own = _reference(backbone).state_dict()
    return all(state[name].shape == own[name].shape for name in own.keys() & state.keys())


def _beside_heads(names: Iterable[str]) -> bool:
    return any(not name.startswith(_HEADS) for name in names)


def _require_fit(file: Path, state: State, backbone: str, form: Form) -> Misfit:
    if not timm.is_model(backbone):
        raise UserError(f"timm has no backbone {backbone!r}; {file} looks like {form.title}.")
    misfit = _misfit(file, state, backbone, form)
    if misfit is None or not misfit.fills:
        raise _does_not_fit(file, backbone, misfit)
    return misfit


def _does_not_fit(file: Path, backbone: str, misfit: Misfit | None) -> UserError:
    told = "its tensors cannot be brought to that network's shapes" if misfit is None else str(misfit)
    try:
        it_is = f"It is {identify(file).title}. "
    except UserError:
        it_is = ""
    return UserError(f"{file} does not fit {backbone}: {told}. {it_is}Give weights of this backbone.")


# --- statistics and licence ---


class Published(NamedTuple):
    """What a file is by its name, or by timm's ``config.json`` beside it."""

    backbone: str
    title: str
    pixels: str | None
    licence: str
    native: int
    by_config: bool = False
    """Told by ``config.json``."""


def _published_as(file: Path) -> Published | None:
    config = read_config(file.parent)
    if timm.is_model(str(config.get("architecture"))):
        told, backbone = config.get("pretrained_cfg") or {}, config["architecture"]
        title = f"{backbone}.{told['tag']}" if told.get("tag") else backbone
        return Published(
            backbone,
            title,
            name_of(told.get("mean"), told.get("std")),
            _written(told.get("license")),
            int(told.get("input_size", (224,))[-1]),
            by_config=True,
        )
    names = _names_of_files()
    title = next((names[key] for key in (file.name, file.stem, file.parent.name) if key in names), "")
    if not title:
        return None
    known = timm.get_pretrained_cfg(title)
    return Published(
        title.partition(".")[0], title, name_of(known.mean, known.std), _written(known.license), _side(known)
    )


@cache
def _names_of_files() -> dict[str, str]:
    """Return what published files and folders are called, as timm knows it, and which weights they are."""
    titles = timm.list_models(pretrained=True)
    files = {Path(timm.get_pretrained_cfg(title).url or "").name: title for title in titles}
    return {**{name: title for name, title in files.items() if Path(name).suffix}, **{title: title for title in titles}}


_CERTAIN = "told by what the file is, or by config.json beside it"
_PIXELS_BY_WORD = (
    ("radimagenet", "half"),
    ("deit", "imagenet"),
    ("augreg", "half"),
    ("siglip", "half"),
    ("clip", "clip"),
    ("mae", "imagenet"),
    ("dino", "imagenet"),
)


def _pixels(
    form: Form, file: Path, contents: Contents, published: Published | None, choices: Sequence[str | None]
) -> tuple[str | None, str]:
    """Return what pixels the weights expect and what tells them: ``_CERTAIN``, a name alone, or (empty) nothing."""
    words = _words(file)
    by_word = next((pixels for word, pixels in _PIXELS_BY_WORD if re.search(rf"(?<![a-z]){word}", words)), None)
    told = form.pixels or (published.pixels if published else None) or by_word
    known = told or (None if published else next(iter(choices), None))
    if form.pixels or (published and published.by_config) or len(choices) < 2:
        return known, _CERTAIN
    if told or published or _named_in(file):
        return known, "told by the name of the file or its folder"
    if contents.wrapper == "model":  # as Meta publishes DeiT and MAE
        return "imagenet", "taken for Meta's, which lie under the key 'model' as these do"
    return known, ""


def _either(choices: Iterable[str | None]) -> str:
    return " and ".join(map(str, choices))


def _expected(fits: Iterable[str]) -> dict[str | None, None]:
    """Return the names of the statistics that timm's weights of these backbones expect, in the backbones' order."""
    known = [timm.get_pretrained_cfg(title) for name in fits for title in _titles(name)]
    return dict.fromkeys(name_of(config.mean, config.std) for config in known)


def _words(file: Path) -> str:
    return f"{file.parent.name}/{file.name}".lower()


def _titles(backbone: str) -> list[str]:
    titles: list[str] = timm.list_models(f"{backbone}.*", pretrained=True)
    return titles


def _licence(fits: Iterable[str]) -> str:
    found = {_written(timm.get_pretrained_cfg(title).license) for name in fits for title in _titles(name)}
    return found.pop() if len(found) == 1 else UNKNOWN


def _side(known: Any) -> int:
    return int((known or timm.get_pretrained_cfg(_DEFAULT)).input_size[-1])


def _written(licence: str | None) -> str:
    return APACHE if licence == "apache-2.0" else licence or UNKNOWN


def require_pixels(known: WeightFile, setting: str, key: str) -> str | None:
    """Return what pixels a model gets: as set, or (``auto``) as its weights expect; UserError where nobody knows."""
    if setting != "auto":
        return setting
    if known.doubt:
        raise UserError(
            f"{known.file}: {known.doubt}, and neither its name nor a config.json beside it says which these are. "
            f"Set {key}, or keep the name under which the file was published."
        )
    return known.pixels


def explain_pixels(known: WeightFile, setting: str, key: str) -> str:
    """Return what a person should know of pixels that a name alone tells; empty: they are certain, or set."""
    if setting != "auto" or not known.inferred:
        return ""
    return (
        f"{known.file.name}: pixels {known.pixels} are inferred ({known.inferred}); the same tensors exist for "
        f"{_either(known.choices)}. If that is wrong, --set {key}={'|'.join(known.choices)}"
    )


# --- tensors ---


def encoder_state(place: Path, encoder: nn.Module, backbone: str) -> State:
    """Return the file's tensors under the names and in the shapes of ``encoder``, which is timm's ``backbone``.

    Position tables and patches are resampled as timm does it. Raises UserError listing what does not fit.
    """
    file = weight_file(place.expanduser())
    form, state = _form(read_weights(file))
    inner = getattr(encoder, "model", None)
    named = _named(file, state, form, backbone, inner if isinstance(inner, nn.Module) else _reference(backbone))
    own = encoder.state_dict()
    found = {name: named[key] for name in own if (key := _key(name, named or {}))} if named is not None else {}
    counters = {name: tensor for name, tensor in own.items() if name.endswith(_COUNTER)}
    misfit = None if named is None else compare_tensors({**counters, **found}, own)
    if misfit is None or not misfit.fills:
        raise _does_not_fit(file, backbone, misfit)
    return {**counters, **found}


def _key(name: str, named: State) -> str | None:
    """Return the name in the file of an encoder's tensor: timm wraps networks, or flattens their stages."""
    bare = name.removeprefix("model.")
    dotted = re.sub(r"^([a-z]+(?:_[a-z]+)*)_(\d+)\.", r"\1.\2.", bare)
    return next((key for key in (name, bare, dotted) if key in named), None)


@lru_cache(maxsize=8)
def _reference(backbone: str) -> nn.Module:
    """Return timm's network without numbers."""
    with torch.device("meta"), Unfilled():
        network: nn.Module = timm.create_model(backbone, num_classes=0)
    return network


def _misfit(file: Path, state: State, backbone: str, form: Form, *, rough: bool = False) -> Misfit | None:
    """Compare the file with timm's network; None: its tensors cannot be brought to that network's shapes.

    ``rough``: of a network that does not fit all that is missing need not be told; it is one of dozens that are tried.
    """
    network = _reference(backbone)
    named = _named(file, state, form, backbone, network)
    if named is None:
        return None
    own = network.state_dict()
    heads = {name for name in own if name.startswith(_HEADS)}
    misfit = _without_heads(named, own, heads)
    lacking = heads - named.keys()
    if not lacking or (rough and not misfit.fills):
        return misfit
    return _without_heads(named, own, heads - (lacking & _used_by_encoder(backbone)))


def _without_heads(named: State, own: State, heads: set[str]) -> Misfit:
    spared = {name: tensor for name, tensor in own.items() if name in heads or name.endswith(_COUNTER)}
    return compare_tensors({**spared, **named}, own)


@lru_cache(maxsize=8)
def _used_by_encoder(backbone: str) -> frozenset[str]:
    """Return the names of timm's tensors that our encoder has: a plain transformer's final norm is among them."""
    own = _reference(backbone).state_dict()
    fit = fit_backbone(backbone, _side(timm.get_pretrained_cfg(backbone)))
    with torch.device("meta"), torch.random.fork_rng(devices=[]), Unfilled():
        encoder = build_encoder(fit)
    return frozenset(key for name in encoder.state_dict() if (key := _key(name, own)))


def _named(file: Path, state: State, form: Form, backbone: str, network: nn.Module) -> State | None:
    """Return tensors as ``network`` of timm names them; None: they are of other shapes than it can use."""
    try:
        if form.names is _jax_vit:
            return _from_jax(file, backbone, network)
        return _filtered(state, network)
    except (RuntimeError, KeyError, AttributeError, AssertionError, ValueError, TypeError, IndexError):
        return None


def _filtered(state: State, network: nn.Module) -> State:
    """Apply timm's own translation for this family of networks."""
    module = importlib.import_module(type(network).__module__)
    translate: Any = getattr(module, "checkpoint_filter_fn", None)
    if translate is None:
        return state
    options = {"adapt_layer_scale": True} if "adapt_layer_scale" in inspect.signature(translate).parameters else {}
    with contextlib.redirect_stdout(io.StringIO()):  # a probe of timm's prints what it did not find
        named: State = translate(dict(state), network, **options)
    return named


def _from_jax(file: Path, backbone: str, network: nn.Module) -> State:
    """Let timm read a JAX archive into its whole network; then fit the positions to ``network``."""
    with torch.device("meta"), Unfilled():
        whole = timm.create_model(backbone, num_classes=0)
    whole = whole.to_empty(device="cpu").requires_grad_(False)
    whole.load_pretrained(str(file))
    return _filtered(whole.state_dict(), network)
