"""How a timm backbone is built for images of a given size: tried on the meta device, which needs no memory."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import Format, PatchEmbed, build_sincos2d_pos_embed
from timm.models import FeatureInfo
from timm.models._features import FeatureGetterNet
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tskd.errors import UserError
from tskd.models.lora import has_attention
from tskd.models.unfilled import Unfilled

NO_ENCODER = "none"
"""The backbone of a network that is its decoder's skip alone: what an encoder has to beat."""
LEAST_TOKENS = 196
"""A 224 px image in patches of 16. With 16 to 49 tokens, as small images gave, students learned to do without them."""
VIT_TAPS = 4
"""Blocks of a one-scale encoder whose features are given, evenly spaced, the last among them."""
_MULTIPLES = (14, 32, 64)
"""Of one of these a side has to be a multiple for some backbones: patches of 14 px, strides and windows of 32 or 64."""
_SMALLEST, _LARGEST = 0.75, 1.5
"""How far a network's side may lie from the size asked for, as a factor: beyond, the cost would surprise."""
_STRIDE_OF_NOTHING = 16
_USUAL_SIZES = (64, 128, 224, 240, 256, 384, 512)
_FAULTS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What timm raises where a backbone cannot be built or cannot take a size; it has no exception of its own."""


class Fit(NamedTuple):
    """A backbone at a size that it can take."""

    backbone: str
    side: int
    """Side in px of the square the encoder sees: the size asked for, or the nearest that the backbone can take."""
    settings: Mapping[str, Any]
    """What timm's ``create_model`` is called with beside the name."""
    dims: tuple[int, ...]
    """Channels of each of its features, shallow to deep."""
    strides: tuple[int, ...]
    """Of each of its features, in px of the side."""
    covers: bool
    """No pixel at the right or the bottom lies outside of the features' grid."""
    normed: bool
    """All taps pass the plain transformer's final norm: raw ones grow block by block."""


@cache
def fit_backbone(backbone: str, image_size: int, patch: int | None = None) -> Fit:
    """Return how to build ``backbone`` for images of ``image_size`` px, found on the meta device in some 0.1 s.

    ``patch``: side of a vision transformer's patches in px, None: the backbone's own. The encoder works at
    ``image_size`` where it can, else at the nearest side between 3/4 and 3/2 of it (a patch of 14 px does not divide 64
    px). Raises UserError for a name that timm does not know and for a size that the backbone cannot take, naming one
    that it can.
    """
    if backbone == NO_ENCODER:
        return Fit(NO_ENCODER, image_size, {}, (1,), (_STRIDE_OF_NOTHING,), covers=True, normed=False)
    _require_known(backbone)
    if patch is not None:
        _require_patch(backbone, image_size, patch)
    found = _find(backbone, _sides(image_size), patch)
    if isinstance(found, Fit):
        return found
    others = sorted(set(_USUAL_SIZES) - {image_size}, key=lambda size: abs(size - image_size))
    works = next((size for size in others if isinstance(_find(backbone, [size], patch), Fit)), None)
    remedy = f"It can take {works} px: set the image size to that" if works else "Choose another backbone"
    raise UserError(f"backbone {backbone!r} cannot take images of {image_size} px (timm: {found}). {remedy}.")


@cache
def has_one_scale(backbone: str) -> bool:
    """Say whether all features have one size, as in a plain vision transformer; else they form a pyramid.

    Raises UserError for a name that timm does not know.
    """
    _require_known(backbone)
    with torch.device("meta"), torch.random.fork_rng(devices=[]), Unfilled():
        return len(set(_strides(timm.create_model(backbone, num_classes=0)))) == 1


def is_transformer(backbone: str) -> bool:
    """Say whether a network of timm's attends; UserError for a name that timm does not know."""
    _require_known(backbone)
    with torch.device("meta"), torch.random.fork_rng(devices=[]), Unfilled():
        return has_attention(timm.create_model(backbone, num_classes=0))


def build_encoder(fit: Fit) -> Any:
    """Return the encoder with random weights: (B, 3, side, side) to a list of (B, C, h, w), shallow to deep.

    Its tensors have the names of timm's weight files, those of a ``FeatureGetterNet`` under ``model.``.
    """
    if fit.backbone == NO_ENCODER:
        return NoEncoder()
    return _place_tokens(_extractor(fit.backbone, fit.settings, normed=fit.normed))


class NoEncoder(nn.Module):
    """Answers one channel of zeros, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = FeatureInfo([{"num_chs": 1, "reduction": _STRIDE_OF_NOTHING, "module": ""}], [0])

    def forward(self, planes: Tensor) -> list[Tensor]:
        height, width = planes.shape[-2:]
        return [planes.new_zeros(len(planes), 1, height // _STRIDE_OF_NOTHING, width // _STRIDE_OF_NOTHING)]


def patch_for(backbone: str, image_size: int) -> int | None:
    """Return the side of the patches that cut an image into ``LEAST_TOKENS`` or more, at most the backbone's own.

    None where the backbone is not a plain vision transformer: its tokens are its own affair.
    """
    own = None if backbone == NO_ENCODER else _own_patch(backbone)
    if own is None:
        return None
    fine = (side for side in range(min(own, image_size), 0, -1) if image_size % side == 0)
    return next(side for side in fine if (image_size // side) ** 2 >= LEAST_TOKENS)


@cache
def _own_patch(backbone: str) -> int | None:
    _require_known(backbone)
    with torch.device("meta"), torch.random.fork_rng(devices=[]), Unfilled():
        embed: Any = getattr(timm.create_model(backbone, num_classes=0), "patch_embed", None)
    if type(embed) is not PatchEmbed or not has_one_scale(backbone):  # a stem of convolutions, or a pyramid
        return None
    return int(embed.patch_size[0])


def _require_patch(backbone: str, image_size: int, patch: int) -> None:
    if _own_patch(backbone) is None:
        raise UserError(f"patch is for plain vision transformers, and {backbone} is none: leave it out.")
    if image_size % patch:
        fitting = [str(side) for side in range(2, 33) if image_size % side == 0]
        raise UserError(f"patches of {patch} px do not cut {image_size} px evenly: choose one of {', '.join(fitting)}.")


def _place_tokens(encoder: Any) -> Any:
    """Let a transformer's positions start as sines and cosines of row and column (as in MAE); they are trained on."""
    vit = getattr(encoder, "model", None)
    table = getattr(vit, "pos_embed", None)
    if isinstance(vit, VisionTransformer) and table is not None and table.shape[-1] % 4 == 0:
        grid = build_sincos2d_pos_embed(list(vit.patch_embed.grid_size), dim=table.shape[-1])
        with torch.no_grad():
            table.zero_()[:, table.shape[1] - len(grid) :] = grid
    return encoder


def _require_known(backbone: str) -> None:
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=5)
        raise UserError(f"timm has no backbone {backbone!r}. Similar names: {', '.join(near) or 'none'}")


def _sides(image_size: int) -> list[int]:
    """Return the sides to try, the nearest first, of two equally near ones the larger."""
    near = {image_size} | {multiple * (image_size // multiple + more) for multiple in _MULTIPLES for more in (0, 1)}
    allowed = [side for side in near if _SMALLEST * image_size <= side <= _LARGEST * image_size]
    return sorted(allowed, key=lambda side: (abs(side - image_size), -side))


def _find(backbone: str, sides: Sequence[int], patch: int | None) -> Fit | str:
    """Return the fit at the first side that works and leaves no pixel out, or what is wrong with the first side.

    Pyramids that leave pixels out at every side are taken: unpadded convolutions, as in Inception, lose a rim always.
    """
    cropping: Fit | None = None
    fault = ""
    for side in sides:
        try:
            fit = _try(backbone, side, patch)
        except _FAULTS as error:
            fault = fault or (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            continue
        if fit.covers:
            return fit
        cropping = cropping or fit
    if cropping is not None and not has_one_scale(backbone):
        return cropping
    return fault or "its patches do not divide it"


def _try(backbone: str, side: int, patch: int | None) -> Fit:
    """Build and run on the meta device, or (a network that reads numbers as it runs) on the CPU; raises ``_FAULTS``."""
    try:
        return _run(backbone, side, patch, "meta")
    except RuntimeError as error:
        if "meta tensor" not in str(error).lower():
            raise
        return _run(backbone, side, patch, "cpu")


def _run(backbone: str, side: int, patch: int | None, device: str) -> Fit:
    with torch.device(device), torch.random.fork_rng(devices=[]), torch.no_grad():
        with Unfilled():
            whole, settings = _whole(backbone, side, patch)
            normed = isinstance(whole, Beit | Eva | VisionTransformer) and isinstance(whole.norm, nn.LayerNorm)
            encoder, wrapped = _fitting_extractor(backbone, set(whole.state_dict()), settings, normed=normed)
        features = encoder.eval()(torch.zeros(1, 3, side, side))
    info = encoder.feature_info
    dims = tuple(info.channels())
    if [tuple(plane.shape[1:2]) if plane.ndim == 4 else None for plane in features] != [(dim,) for dim in dims]:
        raise ValueError("it gives no planes of features")
    covers = all(min(plane.shape[-2:]) * stride >= side for plane, stride in zip(features, info.reduction()))
    return Fit(backbone, side, wrapped, dims, tuple(info.reduction()), covers, normed)


def _strides(model: Any) -> list[int]:
    """Return the strides of all the features that a network can give."""
    return [level["reduction"] for level in model.feature_info]


def _whole(backbone: str, side: int, patch: int | None) -> tuple[nn.Module, dict[str, Any]]:
    """Return the classifier without a head, and the settings that fit it to the side and tap it.

    Networks whose tables or windows hang on the size take ``img_size``; the others refuse the word.
    """
    settings: dict[str, Any] = {} if patch is None else {"patch_size": patch}
    try:
        whole = timm.create_model(backbone, num_classes=0, img_size=side, **settings)
        settings["img_size"] = side
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        whole = timm.create_model(backbone, num_classes=0, **settings)
    if len(set(strides := _strides(whole))) < len(strides):
        settings["out_indices"] = _taps(strides)
    return whole, settings


def _taps(strides: Sequence[int]) -> list[int]:
    """Return which features to give where several have one size: the last of each size, or four of a single one."""
    if len(set(strides)) > 1:
        return sorted({stride: index for index, stride in enumerate(strides)}.values())
    depth = len(strides)
    return sorted({max(round((i + 1) * depth / VIT_TAPS), 1) - 1 for i in range(VIT_TAPS)})


def _fitting_extractor(
    backbone: str, names: set[str], settings: dict[str, Any], *, normed: bool
) -> tuple[Any, dict[str, Any]]:
    """Return the feature extractor and what it is made with.

    timm's own choice is taken where it keeps the names of the weight files and answers channels first. For Swin,
    ConvNeXt and most hierarchical networks it rewrites ``stages.0`` to ``stages_0``; its getter leaves them whole.
    """
    encoder = _extractor(backbone, settings, normed=normed)
    own = {name.removeprefix("model.") for name in encoder.state_dict()}
    if own <= names and getattr(encoder, "output_fmt", Format.NCHW) == Format.NCHW:
        return encoder, settings
    settings = {**settings, "feature_cls": "getter"}
    return _extractor(backbone, settings, normed=False), settings


def _extractor(backbone: str, settings: Mapping[str, Any], *, normed: bool) -> Any:
    if not normed:
        return timm.create_model(backbone, features_only=True, **settings)
    sizes = {name: value for name, value in settings.items() if name != "out_indices"}
    return FeatureGetterNet(  # features_only takes no ``norm``
        timm.create_model(backbone, num_classes=0, **sizes), out_indices=settings["out_indices"], norm=True
    )
