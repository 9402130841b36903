"""Autooral: oral ulcers in photographs (Jiang et al., Sci. Rep. 14:20085, 2024), and any set in its three parts.

Its exact tree is not documented in public, so the usual names of the three parts and of the folders in them are taken.
Others keep their data so too: their dataset.yaml says what they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tskd.data.images import map_labels, read_image
from tskd.data.layouts.base import (
    BLIND_TEST_NOTE,
    Description,
    Layout,
    LayoutOptions,
    Search,
    is_image,
    missing,
    require_mask,
    single_subfolder,
    window_notes,
    without_blind_test,
)
from tskd.data.layouts.dataset_yaml import DatasetFile, codes_of, read_dataset_yaml, with_stated
from tskd.data.layouts.pairs import read_paired_mask
from tskd.errors import UserError
from tskd.types import Record

CLASSES = ("ulcer",)
DESCRIPTION = """\
  train/images/<id>.<ext>   train/masks/<id>.png    (0 and 255; also <id>_segmentation, <id>_mask)
  val/images/...            val/masks/...           (also Validation, Valid)
  test/images/...           test/masks/...          (in any case; also image, img, mask, label, labels, gt)
  dataset.yaml              of another data set in such parts: name, classes, codes, spacing, labels, window,
                            case_pattern"""

_TAKEN_FOR = (
    "taken for Autooral by its folders train/ and test/: if it is another data set, write name and classes into "
    "dataset.yaml"
)
_PARTS = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
_IMAGE_FOLDERS = ("images", "image", "img", "imgs")
_MASK_FOLDERS = ("masks", "mask", "labels", "label", "gt")
_MASK_ENDINGS = ("", "_segmentation", "_mask")


def find(root: Path, options: LayoutOptions, search: Search) -> list[Record]:
    """Return the records of the three parts; ids carry the part, since numbers may repeat."""
    try:
        stated = read_dataset_yaml(root)
    except UserError:  # describing says what is wrong with it
        stated = DatasetFile()
    records: list[Record] = []
    for split, names in _PARTS.items():
        part = single_subfolder(root, names)
        if part is not None:
            records += _part(part, split, stated, search)
    if not records and not search.faults:
        raise missing(root, "any image such as train/images/1.jpg", DESCRIPTION)
    return without_blind_test(sorted(records, key=lambda record: record.id))


def describe(root: Path, options: LayoutOptions, records: Sequence[Record]) -> Description:
    """Fill in what dataset.yaml states, and tell of a test part without labels."""
    stated = read_dataset_yaml(root)
    options = with_stated(options, stated)
    notes = [BLIND_TEST_NOTE] if all(record.split is None for record in records) else []
    if stated.name is None and options.classes is None:
        notes.append(_TAKEN_FOR)
    if options.classes is None:
        options = replace(options, classes=CLASSES)
    codes = codes_of(options.classes, stated, root)
    return Description(stated.name or "Autooral", options, (*notes, *window_notes(options)), codes)


def read_autooral_image(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one photograph, (H, W, 3) uint8."""
    return read_image(record.image, intensity=options.intensity)


def read_autooral_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read the ulcers, (H, W) uint8: 0 and 1."""
    path = require_mask(record)
    return map_labels(read_paired_mask(record), options.labels, classes=len(options.classes or CLASSES), path=path)


def fits(root: Path) -> bool:
    """Tell by a training and a test part that each hold a folder of images."""
    parts = [single_subfolder(root, _PARTS[name]) for name in ("train", "test")]
    return all(part is not None and single_subfolder(part, _IMAGE_FOLDERS) is not None for part in parts)


def _part(part: Path, split: str, stated: DatasetFile, search: Search) -> list[Record]:
    images = _files(single_subfolder(part, _IMAGE_FOLDERS), search)
    masks = _files(single_subfolder(part, _MASK_FOLDERS), search, claims=images)
    records = [_record(id, path, split, masks, stated, search) for id, path in images.items()]
    search.name_unclaimed(masks, {record.mask for record in records}, images)
    return records


def _files(folder: Path | None, search: Search, claims: Collection[str] = ()) -> dict[str, Path]:
    return {} if folder is None else search.by_id(folder, is_image, deep=False, claims=claims)


def _record(name: str, image: Path, split: str, masks: dict[str, Path], stated: DatasetFile, search: Search) -> Record:
    found = [masks[name + ending] for ending in _MASK_ENDINGS if name + ending in masks]
    case = id = f"{split}/{name}"
    if stated.case_pattern is not None:
        match = re.search(stated.case_pattern, id)
        if match is None or not match[1]:
            search.fault(image, f"the id {id!r} has no case by case_pattern {stated.case_pattern!r} of dataset.yaml.")
        else:
            case = match[1]
    return Record(id, case, image, found[0] if found else None, stated.spacing, split=split)


AUTOORAL = Layout("autooral", CLASSES, find, read_autooral_image, read_autooral_mask, fits, DESCRIPTION, describe)
