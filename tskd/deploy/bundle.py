"""The bundle: the folder that is shipped. It is verified before it is used, and nothing in it can run code."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tskd.artifacts import MANIFEST
from tskd.data.codes import ClassCode, parse_class_code
from tskd.data.intensity import IntensityWindow
from tskd.deploy.network_file import open_session
from tskd.errors import UserError
from tskd.machine.disk import file_sha256, replaced_folder, write_atomic
from tskd.types import LEAST_TILE, UNLABELLED

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

DESCRIPTION, WEIGHTS, ONNX, ONNX_INT8 = "model.json", "model.safetensors", "model.onnx", "model.int8.onnx"
CARD, SUMS = "MODEL_CARD.md", "SHA256SUMS"
FOLDER = "model"
"""Name of the bundle's folder in a run's output folder."""
_LARGEST_DESCRIPTION = 16_000_000
_LEFT_BY_WINDOWS = ("thumbs.db", "desktop.ini")
_LEFT_IN_HIDING = (".ds_store", "._", ".directory", ".localized", ".nfs", ".smbdelete", ".fuse_hidden")
"""Beginnings of the hidden files that systems leave in any folder that is looked at."""
_REQUIRED = (DESCRIPTION, ONNX)
_SUM_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._-]+)")


class _Input(BaseModel):
    """How images were made 8 bit before the network saw them."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)
    window: tuple[float, float] | None
    axis: Annotated[int, Field(ge=0, le=2)] = 2

    @field_validator("window")
    @classmethod
    def _has_a_width(cls, window: tuple[float, float] | None) -> tuple[float, float] | None:
        if window is not None and not window[0] < window[1]:
            raise ValueError("black must be below white")
        return window


class _Doubt(BaseModel):
    """When an answer is to be looked at."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)
    look_below: Annotated[float, Field(ge=0, le=1)]
    calibrated_on: Annotated[int, Field(ge=0)] = 0


class _Described(BaseModel):
    """What prediction takes of ``model.json``; the rest is for the card."""

    model_config = ConfigDict(strict=True, frozen=True)
    classes: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=UNLABELLED - 1)]
    input: _Input
    doubt: _Doubt | None = None
    dataset: str = ""
    tile: Annotated[int, Field(ge=LEAST_TILE, le=65_536)] | None = None
    codes: dict[str, Any] = {}

    @field_validator("codes")
    @classmethod
    def _are_codes(cls, stated: dict[str, Any]) -> dict[str, ClassCode]:
        return {name: parse_class_code(value) for name, value in stated.items()}

    @field_validator("classes")
    @classmethod
    def _are_different(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a name is there twice")
        return names


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those that were exported."""

    folder: Path
    network: str = ONNX
    """Which of its networks answers."""

    @cached_property
    def description(self) -> dict[str, Any]:
        """What ``model.json`` holds."""
        path = self.folder / DESCRIPTION
        try:
            if path.stat().st_size > _LARGEST_DESCRIPTION:
                raise ValueError("it is too large")
            description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._no_description(str(error)) from error
        return description

    @property
    def _described(self) -> _Described:
        """What prediction takes of the description, checked."""
        try:
            return _Described.model_validate_json(json.dumps(self.description))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            raise self._no_description(": ".join([*map(str, first["loc"]), first["msg"]])) from error

    def _no_description(self, why: str) -> UserError:
        path = self.folder / DESCRIPTION
        return UserError(f"{path} is not the description of a bundle ({why}). Export the model again.")

    @property
    def classes(self) -> tuple[str, ...]:
        return self._described.classes

    @property
    def codes(self) -> dict[str, ClassCode]:
        """What classes are in a terminology, of those of which the data set stated it."""
        return self._described.codes

    @property
    def dataset(self) -> str:
        """The name of the data set that it was trained on; empty in bundles that do not say."""
        return self._described.dataset

    @property
    def tile(self) -> int | None:
        """The side in px of the tiles of larger images that it was trained on; None: it saw each image as a whole."""
        return self._described.tile

    def tile_for(self, asked: int | None) -> int | None:
        """Return the side of the tiles to answer larger images in where one is asked for; 0: as a whole.

        Raises UserError for tiles that no network sees anything in.
        """
        if asked is not None and 0 != asked < LEAST_TILE:
            raise UserError(f"tiles of {asked} px: give {LEAST_TILE} px or more, or 0 to answer images as a whole.")
        return self.tile if asked is None else asked or None

    @property
    def digest(self) -> str:
        """The sha256 of the network that answers, as ``SHA256SUMS`` has it."""
        return read_sums(self.folder)[self.network]

    @property
    def window(self) -> IntensityWindow | None:
        """The intensity window the network was trained with; None: each format's own rule."""
        window = self._described.input.window
        return None if window is None else IntensityWindow(*window)

    @property
    def look_below(self) -> float:
        """Confidence below which an answer is to be looked at; 0 in bundles that do not say."""
        doubt = self._described.doubt
        return 0.0 if doubt is None else doubt.look_below

    @property
    def is_calibrated(self) -> bool:
        """Whether its probabilities were calibrated on validation images."""
        doubt = self._described.doubt
        return doubt is not None and doubt.calibrated_on > 0

    @property
    def axis(self) -> int:
        """The canonical axis along which the network saw volumes sliced; 2 (foot-head) in bundles that do not say."""
        return self._described.input.axis

    @property
    def card(self) -> str:
        """The model card, Markdown; empty where the bundle has none."""
        path = self.folder / CARD
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def refuse_inside(self, place: Path, option: str = "--out") -> None:
        """Raise UserError where what ``option`` names would lie in the bundle, which would then be another one."""
        if place.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"{place} lies in the bundle, which has to stay as it is. Choose another {option}.")

    def session(self, threads: int | None = None) -> InferenceSession:
        """Open the network in onnxruntime on the CPU; ``threads`` None: as many as onnxruntime chooses."""
        return open_session(self.folder / self.network, threads, classes=len(self.classes))


def open_bundle(path: Path) -> Bundle:
    """Return the verified bundle of a bundle's folder, a run's output folder, or an ONNX file inside a bundle.

    Raises UserError where there is none and where a file differs from ``SHA256SUMS``, which it names.
    """
    bundle = _locate(Path(path))
    _verify(bundle)
    return bundle


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` of every file in the folder, as ``sha256sum --check`` reads it."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file() and _belongs(file.name))
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in names]
    write_atomic(folder / SUMS, "".join(lines).encode())


def read_sums(folder: Path) -> dict[str, str]:
    """Return file name to sha256; raises UserError for a missing list, or one that is not of plain file names."""
    path = folder / SUMS
    if not path.is_file():
        raise UserError(f"{folder} is not a bundle: it has no {SUMS}. Give the folder `{FOLDER}` that a run wrote.")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    matches = [_SUM_LINE.fullmatch(line) for line in lines]
    entries = {match[2]: match[1] for match in matches if match is not None}
    if None in matches or any(name not in entries for name in _REQUIRED):
        raise UserError(f"{path} is damaged: it must list at least {' and '.join(_REQUIRED)}. Copy the bundle again.")
    if len(entries) < len(matches):
        raise UserError(f"{path} is damaged: it lists a file twice. Copy the bundle again.")
    return entries


def publish(source: Path, place: Path) -> None:
    """Copy the bundle in ``source`` to ``place``; an older one there is replaced only when the new one is whole.

    Files of ``source`` that its ``SHA256SUMS`` does not list stay behind. Raises UserError where :func:`require_ours`
    does.
    """
    require_ours(place)
    with replaced_folder(place) as partial:
        for name in (*read_sums(source), SUMS):
            shutil.copyfile(source / name, partial / name)
        _verify(Bundle(partial))


def require_ours(place: Path) -> None:
    """Raise UserError where what a bundle would replace holds anything that is not of an earlier one.

    A list of sums that names no network is of something else, and a hidden folder (``.git``) is somebody's work.
    """
    if place.is_dir():
        known = _listed(place)
        foreign = sorted(path.name for path in place.iterdir() if not _may_go(path, known))
        if foreign:
            raise UserError(
                f"{place / foreign[0]} is not of a bundle, and `{place.name}` is where the bundle goes: all in it "
                "would be replaced. Move it away, or choose another --out."
            )
    elif place.exists():
        raise UserError(f"{place} is a file where the bundle's folder goes. Move it away, or choose another --out.")


def _listed(place: Path) -> Mapping[str, str]:
    try:
        return read_sums(place)
    except UserError:
        return {}


def _may_go(path: Path, sums: Mapping[str, str]) -> bool:
    if path.name.startswith("."):
        return path.is_file() and path.name.lower().startswith(_LEFT_IN_HIDING)
    return not _is_foreign(path, sums) or (path.is_file() and _belongs(path.name))


def _belongs(name: str) -> bool:
    return name in (DESCRIPTION, WEIGHTS, ONNX, ONNX_INT8, CARD)


def _is_foreign(path: Path, sums: Mapping[str, str]) -> bool:
    """Say whether something beside the listed files was put there; what file managers hide in folders is not meant."""
    own = path.name in sums or path.name in (SUMS, MANIFEST)
    return not own and not path.name.startswith(".") and path.name.lower() not in _LEFT_BY_WINDOWS


def _locate(path: Path) -> Bundle:
    if path.suffix == ".onnx" and path.is_file():
        return Bundle(path.parent, path.name)
    for folder in (path, path / FOLDER):
        if (folder / SUMS).is_file():
            return Bundle(folder)
    what = "has no bundle in it" if path.exists() else "does not exist"
    raise UserError(
        f"{path} {what}. Give the folder `{FOLDER}` that `tskd run` wrote, the run's output folder, or a .onnx file "
        f"beside its {SUMS}."
    )


def _verify(bundle: Bundle) -> None:
    sums = read_sums(bundle.folder)
    for name, expected in sums.items():
        path = bundle.folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, though {SUMS} lists it. Copy the bundle again from its source.")
        if file_sha256(path) != expected:
            raise UserError(
                f"{path} is damaged or was changed: its sha256 is not the one in {SUMS}. "
                "Copy the bundle again from its source."
            )
    if bundle.network not in sums:
        raise UserError(f"{bundle.folder / bundle.network} is not listed in {SUMS}: it is not part of the bundle.")
    if extra := next((one for one in sorted(bundle.folder.iterdir()) if _is_foreign(one, sums)), None):
        raise UserError(
            f"{extra} is not listed in {SUMS}: it is not part of the bundle. Move it elsewhere, or copy the bundle "
            "again from its source."
        )
    _ = bundle.classes  # reads and checks the description
