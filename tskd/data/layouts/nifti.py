"""NIfTI volumes read slice by slice, in plain folders or named as nnU-Net does; a fourth axis holds frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tskd.data import nifti
from tskd.data.images import map_labels
from tskd.data.intensity import to_rgb
from tskd.data.layouts.base import (
    BLIND_TEST_NOTE,
    Description,
    Layout,
    LayoutOptions,
    classes_by_map,
    classes_by_values,
    missing,
    refuse_problems,
    require_mask,
    window_note,
    without_blind_test,
)
from tskd.data.layouts.dataset_yaml import read_volumes_yaml, with_stated
from tskd.errors import UserError
from tskd.types import Record

DESCRIPTION = """\
  images/<case>.nii[.gz]            labels/<case>.nii[.gz]       (a missing label volume: unlabelled)
or as nnU-Net names them:
  imagesTr/<case>_0000.nii.gz       labelsTr/<case>.nii.gz
  imagesTs/<case>_0000.nii.gz       labelsTs/<case>.nii.gz       (may be missing)
  dataset.json                      optional: labels
  dataset.yaml                      optional: name, classes, labels, window"""

_PARTS = (("images", "labels", None), ("imagesTr", "labelsTr", "train"), ("imagesTs", "labelsTs", "test"))
_AXES = ("left-right", "back-front", "foot-head")
_GRID_TOLERANCE_MM = 0.01


def find(root: Path, options: LayoutOptions) -> list[Record]:
    """Return one record per slice along ``options.axis``; a case is a file, and each of its frames a volume."""
    if options.axis not in (0, 1, 2):
        raise UserError(f"axis {options.axis!r} is unknown. Allowed: 0, 1, 2 ({', '.join(_AXES)}).")
    volumes = [volume for images, labels, split in _PARTS for volume in _volumes(root / images, root / labels, split)]
    if not volumes:
        raise missing(root, "any volume such as images/<case>.nii.gz", DESCRIPTION)
    refuse_problems([problem for image, label, _ in volumes for problem in _problems(image, label)], root, DESCRIPTION)
    records = [record for volume in volumes for record in _slices(*volume, axis=options.axis)]
    return without_blind_test(sorted(records, key=lambda record: record.id))


def describe(root: Path, options: LayoutOptions, records: Sequence[Record]) -> Description:
    """Name the classes by options, dataset.yaml, dataset.json or the labels' values, and tell the scaling in use."""
    stated = read_volumes_yaml(root)
    options = with_stated(options, stated)
    notes = [f"slices along axis {options.axis} ({_AXES[options.axis]})", _scaling(options)]
    classes = options.classes or _classes_of_json(root / "dataset.json")
    if classes is None:
        classes, note = _classes_by_values(root, records) if options.labels is None else classes_by_map(options.labels)
        notes.append(note)
    if (root / "imagesTs").is_dir() and all(record.split is None for record in records):
        notes.append(BLIND_TEST_NOTE)
    return Description(stated.name or root.resolve().name, replace(options, classes=classes), tuple(notes))


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
    return any(nifti.is_nifti(path) for images, _, _ in _PARTS for path in (root / images).glob("*.nii*"))


def _index(record: Record) -> int:
    assert record.index is not None, "every record of this layout is a slice"
    return record.index


def _volumes(images: Path, labels: Path, split: str | None) -> list[tuple[Path, Path | None, str | None]]:
    volumes = []
    for path in sorted(path for path in images.glob("*.nii*") if nifti.is_nifti(path)):
        names = [labels / f"{_case(path)}{suffix}" for suffix in (".nii.gz", ".nii")]
        volumes.append((path, next((name for name in names if name.is_file()), None), split))
    return volumes


def _case(image: Path) -> str:
    """Return the case of a volume; nnU-Net's channel number ``_0000`` is not part of it."""
    return nifti.volume_id(image).removesuffix("_0000")


def _problems(image: Path, label: Path | None) -> list[tuple[Path, str]]:
    name = nifti.volume_id(image)
    if name[-5:-1] == "_000" and name[-1] in "123456789":
        return [(image, "a further channel; one channel is read. Keep the files ending in _0000.")]
    try:
        image_shape, image_affine = _grid(image)
        label_shape, label_affine = _grid(label) if label is not None else (image_shape, image_affine)
    except UserError as error:
        return [(image, str(error))]
    if image_shape != label_shape:
        return [(label or image, f"the labels have {label_shape} voxels, the image {image_shape}.")]
    if not np.allclose(image_affine, label_affine, atol=_GRID_TOLERANCE_MM):
        return [(label or image, "labels and image do not lie at the same place: their affines differ.")]
    return []


def _slices(image: Path, label: Path | None, split: str | None, *, axis: int) -> list[Record]:
    case, spacing = _case(image), nifti.slice_spacing(image, axis=axis)
    count, frames = nifti.slice_count(image, axis=axis), nifti.frame_count(image)
    volumes = [case] if frames == 1 else [f"{case}/{frame:03d}" for frame in range(frames)]
    return [
        Record(
            f"{volume}/{place:03d}",
            case,
            image,
            label,
            spacing,
            frame * count + place,
            split,
            volume=volume,
            place=place,
        )
        for frame, volume in enumerate(volumes)
        for place in range(count)
    ]


def _grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the canonical shape, with the number of frames where there are several, and the affine."""
    shape, affine = nifti.canonical_grid(path)
    frames = nifti.frame_count(path)
    return (*shape, frames) if frames > 1 else shape, affine


def _scaling(options: LayoutOptions) -> str:
    if options.window is not None:
        return window_note(options.window)
    low, high = nifti.PERCENTILES
    return f"intensities: percentiles {low:g} and {high:g} of each volume become black and white; 8-bit volumes stay"


def _classes_of_json(path: Path) -> tuple[str, ...] | None:
    """Return the class names of nnU-Net's dataset.json: {name: index}, or {index: name} in its first version."""
    if not path.is_file():
        return None
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        pairs = (
            {int(key): str(value) for key, value in labels.items()}
            if "0" in labels
            else {int(value): str(key) for key, value in labels.items()}
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: holds no `labels` as nnU-Net writes them ({{name: index}}). Mend or remove it."
        ) from error
    pairs.pop(0, None)
    if sorted(pairs) != list(range(1, len(pairs) + 1)):
        raise UserError(
            f"{path}: the labels {sorted(pairs)} are not 1 to K. Give `classes` and `labels` in dataset.yaml."
        )
    return tuple(pairs[index] for index in sorted(pairs))


def _classes_by_values(root: Path, records: Sequence[Record]) -> tuple[tuple[str, ...], str]:
    paths = sorted({record.mask for record in records if record.mask is not None})
    if not paths:
        return ("foreground",), "no labels and no class names: one class is assumed"
    found = sorted(set[int]().union(*map(nifti.label_values, paths)))
    return classes_by_values(found, root, len(paths))


NIFTI = Layout("nifti", (), find, read_nifti_image, read_nifti_mask, fits, DESCRIPTION, describe)
