"""NIfTI volumes read slice by slice, in plain folders or named as nnU-Net does; a fourth axis holds frames."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tskd.data import nifti
from tskd.data.files import find_files, is_beside, plain, shown
from tskd.data.images import map_labels
from tskd.data.intensity import to_rgb
from tskd.data.layouts.base import (
    BLIND_TEST_NOTE,
    Description,
    Layout,
    LayoutOptions,
    Search,
    classes_by_map,
    classes_by_values,
    missing,
    require_mask,
    window_note,
)
from tskd.data.layouts.cases import with_stated_cases
from tskd.data.layouts.dataset_yaml import codes_of, read_volumes_yaml, with_stated
from tskd.data.reading import reading
from tskd.errors import UserError
from tskd.types import UNLABELLED, Record

DESCRIPTION = """\
  images/<case>.nii[.gz]            labels/<case>.nii[.gz]       (a missing label volume: unlabelled; sub-folders are
                                                                  part of the case)
or as nnU-Net names them:
  imagesTr/<case>_0000.nii.gz       labelsTr/<case>.nii.gz
  imagesTs/<case>_0000.nii.gz       labelsTs/<case>.nii.gz       (may be missing)
  dataset.json                      optional: labels (`ignore`: unlabelled)
  dataset.yaml                      optional: name, classes, codes, labels, window, case_pattern
  split.csv                         optional: id,split[,case|subject], the id being <case> above"""

_PARTS = (("images", "labels", None), ("imagesTr", "labelsTr", "train"), ("imagesTs", "labelsTs", "test"))
_AXES = ("left-right", "back-front", "foot-head")
_GRID_TOLERANCE = 0.05
"""Of a voxel's shortest edge; writers round affines to single precision, and quaternions more."""
_FURTHER_CHANNEL = re.compile(r"_000[1-9]$")


def find(root: Path, options: LayoutOptions, search: Search) -> list[Record]:
    """Return one record per slice along ``options.axis``; a file is a case where none is stated, its frames volumes."""
    if options.axis not in (0, 1, 2):
        raise UserError(f"axis {options.axis!r} is unknown. Allowed: 0, 1, 2 ({', '.join(_AXES)}).")
    pairs = [pair for images, labels, split in _PARTS for pair in _pairs(root / images, root / labels, split, search)]
    if not pairs and not search.faults:
        raise missing(root, f"any volume such as images/<case>.nii.gz{_other_ending(root)}", DESCRIPTION)
    apart = _apart(pairs)
    records = [record for pair in apart for record in _sound_slices(pair, options.axis, search)]
    records = sorted(_without_ignored(records, root, options, search), key=lambda record: record.id)
    stated = with_stated_cases(
        [replace(record, split=None) for record in records],
        {pair.case: pair.image for pair in apart},
        root,
        search,
        unknown="of a volume it is the path below its folder without .nii or .nii.gz, and without nnU-Net's _0000",
        kind="volumes",
        by_folder=apart == pairs,
    )
    official = [replace(one, split=one.split or record.split) for one, record in zip(stated, records, strict=True)]
    tested = any(record.split == "test" and record.mask is not None for record in official)
    return official if tested else stated  # a test part without labels scores nothing: its split is none


def _apart(pairs: Sequence[_Pair]) -> list[_Pair]:
    """Return the pairs, a name that an earlier part has too under its own part: test scans may be numbered anew."""
    first = {pair.case: pair.image.parent for pair in reversed(pairs)}
    apart = [(pair, first[pair.case] == pair.image.parent) for pair in pairs]
    return [pair if own else replace(pair, case=f"{pair.split or 'images'}/{pair.case}") for pair, own in apart]


def describe(root: Path, options: LayoutOptions, records: Sequence[Record]) -> Description:
    """Name the classes by options, dataset.yaml, dataset.json or the labels' values, and tell the scaling in use."""
    stated = read_volumes_yaml(root)
    options = with_stated(options, stated)
    notes = [f"slices along axis {options.axis} ({_AXES[options.axis]})", _scaling(options), *_channels_note(root)]
    options = _with_json(options, root)
    classes = options.classes
    if classes is None:
        classes, note = _classes_by_values(root, records) if options.labels is None else classes_by_map(options.labels)
        notes.append(note)
    if (root / "imagesTs").is_dir() and all(record.split is None for record in records):
        notes.append(BLIND_TEST_NOTE)
    codes = codes_of(classes, stated, root)
    return Description(
        stated.name or plain(root.resolve().name), replace(options, classes=classes), tuple(notes), codes
    )


def read_nifti_image(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one slice, (H, W, 3) uint8."""
    return to_rgb(nifti.read_slice(record.image, _index(record), window=options.intensity, axis=options.axis))


def read_nifti_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one slice of the label volume, (H, W) uint8 class index."""
    path = require_mask(record)
    raw = nifti.read_label_slice(path, _index(record), axis=options.axis)
    return map_labels(raw, options.labels, classes=len(options.classes or ("foreground",)), path=path)


def fits(root: Path) -> bool:
    """Tell by NIfTI files in images/, imagesTr/ or imagesTs/."""
    return any(find_files(root / images, nifti.is_nifti).files for images, _, _ in _PARTS)


def _index(record: Record) -> int:
    assert record.index is not None, "every record of this layout is a slice"
    return record.index


_Grid = tuple[tuple[int, ...], np.ndarray]
"""Canonical shape, frames last, and the (4, 4) affine."""


@dataclass(frozen=True)
class _Pair:
    case: str
    image: Path
    label: Path | None
    split: str | None


def _pairs(images: Path, labels: Path, split: str | None, search: Search) -> list[_Pair]:
    """Return each volume with its label, which is named as the case is, or as the image, channel number and all."""
    found = search.by_id(images, nifti.is_nifti, _volume)
    labelled = {_volume(path, labels) for path in find_files(labels, nifti.is_nifti).files}
    several = len(_channels(images.parent)) > 1
    for case, path in list(found.items()):
        first = _FURTHER_CHANNEL.sub("_0000", case)
        if first != case and case not in labelled and (several or first in found):
            search.fault(path, "a further channel; one channel is read. Keep the files ending in _0000.")
            del found[case]
    cases = _by_case(found, search)
    named = search.by_id(labels, nifti.is_nifti, _volume, claims={*found, *cases})
    pairs = [
        _Pair(case, found[id], next((named[one] for one in (case, id) if one in named), None), split)
        for case, id in cases.items()
    ]
    search.name_unclaimed(named, {pair.label for pair in pairs}, cases)
    if numbered := sum(pair.label is not None and _volume(pair.label, labels) != pair.case for pair in pairs):
        search.notes.append(f"{numbered} labels in {labels.name}/ end in the channel number _0000 as their images do")
    return pairs


def _by_case(found: Mapping[str, Path], search: Search) -> dict[str, str]:
    """Return the id of each case's volume; nnU-Net's channel number ``_0000`` is not part of the case."""
    cases: dict[str, str] = {}
    for id, path in found.items():
        other = cases.setdefault(id.removesuffix("_0000"), id)
        if other is not id:
            search.fault(path, f"is the same case as {shown(found[other].name)}: keep one of the two.")
    return cases


def _volume(path: Path, folder: Path) -> str:
    """Return the id of a volume: its path below the folder without ``.nii`` or ``.nii.gz``."""
    return plain(path.relative_to(folder).with_name(nifti.volume_id(path)).as_posix())


def _other_ending(root: Path) -> str:
    """Return a hint where nnU-Net's dataset.json says that the files are no NIfTI."""
    ending = _dataset_json(root).get("file_ending")
    known = ending is None or str(ending).lower() in (".nii", ".nii.gz")
    return "" if known else f" (dataset.json states file_ending {ending}: convert the volumes to NIfTI)"


def _sound_slices(pair: _Pair, axis: int, search: Search) -> list[Record]:
    """Return the slices of a volume; none where it or its label cannot be used, which is noted."""
    grids = []
    for path in (pair.image, pair.label or pair.image):
        try:
            grids.append(_grid(path))
        except UserError as error:
            search.drop(error, path)
    if len(grids) < 2:
        return []
    try:
        if pair.label is not None:
            _require_same_grid(pair.image, pair.label, *grids)
        return _slices(pair, axis=axis)
    except UserError as error:
        search.drop(error, pair.image)
        return []


def _without_ignored(records: list[Record], root: Path, options: LayoutOptions, search: Search) -> list[Record]:
    """Return the records, those of which the labels say ``ignore`` (unlabelled) throughout without a mask."""
    try:
        labels = _with_json(with_stated(options, read_volumes_yaml(root)), root).labels or {}
    except UserError:  # describing the data set says what is wrong
        return records
    ignored = [value for value, index in labels.items() if index == UNLABELLED]
    if not ignored:
        return records
    left = [replace(one, mask=None) if _is_ignored(one, ignored, options.axis) else one for one in records]
    if count := sum(one is not other for one, other in zip(left, records, strict=True)):
        search.notes.append(f"{count} slices are to be ignored throughout: they count as unlabelled")
    return left


def _is_ignored(record: Record, ignored: Sequence[int], axis: int) -> bool:
    if record.mask is None:
        return False
    try:
        return bool(np.isin(nifti.read_label_slice(record.mask, _index(record), axis=axis), ignored).all())
    except UserError:  # named when it is read
        return False


def _require_same_grid(image: Path, label: Path, of_image: _Grid, of_label: _Grid) -> None:
    """Raise :class:`UserError` where a label volume does not lie voxel for voxel on its image, naming which and why."""
    (image_shape, image_affine), (label_shape, label_affine) = of_image, of_label
    if image_shape != label_shape:
        axes = (
            f", {len(label_shape)} axes instead of {len(image_shape)}" if len(label_shape) != len(image_shape) else ""
        )
        raise UserError(
            f"{label}: the labels have {label_shape} voxels, the image {image_shape}{axes}. "
            "Both must be equal: take the label volume that was drawn on this image, or leave both out."
        )
    apart, voxel = _distance(image_affine, label_affine, image_shape), _smallest_edge(image_affine)
    if apart <= _GRID_TOLERANCE * voxel:
        return
    for path, other in ((label, "image"), (image, "label volume")):
        if not _states_place(path):
            raise UserError(
                f"{path}: states no place (sform_code and qform_code are 0): whether it lies on its {other} cannot be "
                f"known. Where both hold the same voxels, copy the header of the {other}: "
                "nibabel.Nifti1Image(voxels, None, header)."
            )
    raise UserError(
        f"{label}: labels and image do not lie at the same place: their affines differ, by up to {apart:.3g} mm. "
        "Resample the labels to the image (nearest neighbour), or copy the image's header where the voxels agree."
    )


def _distance(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """Return how far two affines place the farthest corner of a grid apart, in millimetres."""
    corners = np.array(list(product(*((0, length - 1) for length in shape[:3]), (1,)))).T
    return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())


def _smallest_edge(affine: np.ndarray) -> float:
    return float(np.linalg.norm(affine[:3, :3], axis=0).min())


def _states_place(path: Path) -> bool:
    with reading(path, what="NIfTI file"):
        header = nibabel.load(path).header
        return bool(int(header["sform_code"]) or int(header["qform_code"]))


def _slices(pair: _Pair, *, axis: int) -> list[Record]:
    case, image = pair.case, pair.image
    spacing = nifti.slice_spacing(image, axis=axis)
    count, frames = nifti.slice_count(image, axis=axis), nifti.frame_count(image)
    volumes = [case] if frames == 1 else [f"{case}/{frame:03d}" for frame in range(frames)]
    return [
        Record(
            f"{volume}/{place:03d}",
            case,
            image,
            pair.label,
            spacing,
            frame * count + place,
            pair.split,
            volume=volume,
            place=place,
        )
        for frame, volume in enumerate(volumes)
        for place in range(count)
    ]


def _grid(path: Path) -> _Grid:
    """Return the canonical shape, with the number of frames where there are several, and the affine."""
    shape, affine = nifti.canonical_grid(path)
    frames = nifti.frame_count(path)
    return (*shape, frames) if frames > 1 else shape, affine


def _scaling(options: LayoutOptions) -> str:
    if options.window is not None:
        return window_note(options.window)
    low, high = nifti.PERCENTILES
    return f"intensities: percentiles {low:g} and {high:g} of each volume become black and white; 8-bit volumes stay"


def _dataset_json(root: Path) -> dict[str, Any]:
    """Return what nnU-Net's dataset.json holds; empty where there is none."""
    path = root / "dataset.json"
    if not is_beside(path):
        return {}
    with reading(
        path, lambda error: "is not readable JSON. Mend or remove it." if isinstance(error, ValueError) else None
    ):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no settings of nnU-Net ({{...}}). Mend or remove it.")
    return content


def _labels_of_json(root: Path) -> tuple[tuple[str, ...], dict[int, int] | None] | None:
    """Return class names and label map of dataset.json; None where it states no labels.

    nnU-Net writes {name: index}, {index: name} in its first version, and {name: [indices]} for regions. Its ``ignore``
    is what nobody labelled. A map is returned where the indices are not the classes themselves.
    """
    path, stated = root / "dataset.json", _dataset_json(root)
    if not stated:
        return None
    labels = stated.get("labels")
    if not isinstance(labels, dict):
        raise UserError(f"{path}: holds no `labels` as nnU-Net writes them ({{name: index}}). Mend or remove it.")
    values = {name: found for name, found in _values_by_name(labels, path).items() if found != (0,)}
    ignored = values.pop("ignore", ())
    used = [value for found in values.values() for value in found]
    if len(set(used) | set(ignored)) < len(used) + len(ignored):
        regions = "; ".join(f"{name}: {', '.join(map(str, found))}" for name, found in values.items())
        raise UserError(
            f"{path}: its labels are regions that overlap ({regions}), and here each pixel has one class. "
            "Name what the single values are in dataset.yaml, such as `classes: [oedema, core]` and "
            f"`labels: {{1: 1, 2: 2}}` ({UNLABELLED} for what is to be ignored)."
        )
    if not used or sorted(used) != list(range(1, len(used) + 1)):
        raise UserError(
            f"{path}: the labels {sorted(used)} are not 1 to K. Give `classes` and `labels` in dataset.yaml."
        )
    names = sorted(values, key=lambda name: min(values[name]))
    indices = {value: names.index(name) + 1 for name in names for value in values[name]}
    indices |= dict.fromkeys(ignored, UNLABELLED)
    return tuple(names), None if all(value == index for value, index in indices.items()) else indices


def _with_json(options: LayoutOptions, root: Path) -> LayoutOptions:
    """Fill in classes and label map from dataset.json where neither the user nor dataset.yaml stated them."""
    if options.classes is not None and options.labels is not None:
        return options
    names, labels = _labels_of_json(root) or ((), None)
    fits = options.classes is None or len(options.classes) == len(names)
    return replace(
        options, classes=options.classes or names or None, labels=options.labels or (labels if fits else None)
    )


def _values_by_name(labels: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    try:
        if "0" in labels:
            return {str(name): (_whole(value),) for value, name in labels.items()}
        return {
            str(name): tuple(map(_whole, value)) if isinstance(value, list) else (_whole(value),)
            for name, value in labels.items()
        }
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: holds no `labels` as nnU-Net writes them ({{name: index}}). Mend or remove it."
        ) from error


def _whole(value: object) -> int:
    """Return a label's number, which the first version of nnU-Net writes as text; ValueError for what is none."""
    number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    if not number.is_integer():
        raise ValueError(value)
    return int(number)


def _channels(root: Path) -> Mapping[str, Any]:
    """Return the channels that dataset.json states, by number; empty where it cannot say."""
    try:
        stated = _dataset_json(root)
    except UserError:  # describing the data set says what is wrong
        return {}
    channels = stated.get("channel_names") or stated.get("modality")
    return channels if isinstance(channels, dict) else {}


def _channels_note(root: Path) -> list[str]:
    channels = _channels(root)
    if len(channels) < 2:
        return []
    names = ", ".join(str(name) for name in channels.values())
    return [f"dataset.json states {len(channels)} channels ({names}); one is read, that of the files ending in _0000"]


def _classes_by_values(root: Path, records: Sequence[Record]) -> tuple[tuple[str, ...], str]:
    paths = sorted({record.mask for record in records if record.mask is not None})
    if not paths:
        return ("foreground",), "no labels and no class names: one class is assumed"
    values = [values for path in paths if (values := _values_of(path))]
    return classes_by_values(values, root)


def _values_of(path: Path) -> set[int]:
    try:
        return nifti.label_values(path)
    except UserError:  # named when it is read; here it only cannot vote
        return set()


NIFTI = Layout("nifti", (), find, read_nifti_image, read_nifti_mask, fits, DESCRIPTION, describe)
