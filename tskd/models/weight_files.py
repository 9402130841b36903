"""What a weight file is, told by the names and shapes in it, and its tensors under the names of an encoder.

Nothing is read but the file's head until a network is filled. timm's own filters translate what timm knows (official
DINOv2, DINOv3, SAM 2, Swin, ConvNeXt, JAX archives); ``weight_forms`` has what it does not.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import nn

from tskd.errors import UserError
from tskd.models.backbones import build_encoder, fit_backbone
from tskd.models.fitting import Misfit, compare_tensors
from tskd.models.pixels import MINMAX, name_of
from tskd.models.sam_files import check_sam, is_meta
from tskd.models.unfilled import Unfilled
from tskd.models.weight_forms import ANY, APACHE, FORMS, UNKNOWN, Form, State, under
from tskd.models.weights import Contents, has_sam_marks, read_config, read_weights, weight_file

_HEADS = ("head", "fc.", "fc_norm.", "norm.", "norm_head.", "classifier.", "pre_logits.", "conv_head.", "bn2.")
"""Names of what belongs to a classification, which no encoder of ours has."""
_COUNTER = "num_batches_tracked"
"""Of batch norm; old files lack it, and nothing here reads it."""
_DEFAULT = "vit_tiny_patch16_224"
"""Stands for networks that timm knows nothing of."""
_SAM_SIZES = {768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H"}


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
        _require_padding(file, backbone, published)
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
    return ANY, contents.tensors


def _without_common_prefix(state: State) -> State:
    """Return what lies under the name that most tensors begin with (``backbone.``, ``encoder.`` …), without it."""
    heads = [name.partition(".")[0] for name in state]
    most = max(set(heads), key=heads.count)
    return under(f"{most}.")(state)


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


def _require_padding(file: Path, backbone: str, published: Published | None) -> None:
    """Raise UserError where config.json names the network of the same tensors that pads images in another way."""
    told = published.backbone if published is not None and published.by_config else backbone
    if told != backbone and told.removeprefix("tf_") == backbone.removeprefix("tf_"):
        raise UserError(
            f"{file}: config.json beside it says {told}, which has the tensors of {backbone} and pads images in "
            f"another way. Name {told}, or take config.json away where it is of another file."
        )


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
_OF_SATELLITES = "0.43,0.411,0.296/0.213,0.156,0.143"
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
    if "sat493m" in words:  # DINOv3 of satellite images, whose form and tensors are those of the others
        return _OF_SATELLITES, "told by the name of the file or its folder"
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
    if named is None:
        raise _does_not_fit(file, backbone, None)
    own = encoder.state_dict()
    found = {name: tensor for name, tensor in own.items() if name.endswith(_COUNTER)}
    found |= {name: named[key] for name in own if (key := _key(name, named))}
    misfit = compare_tensors(found, own)
    if not misfit.fills:
        raise _does_not_fit(file, backbone, misfit)
    return found


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
        if form.is_jax:
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
