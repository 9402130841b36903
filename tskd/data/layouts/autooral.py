"""Autooral: oral ulcers in photographs (Jiang et al., Sci. Rep. 14:20085, 2024).

Its exact tree is not documented in public, so the usual names of the three parts and of the folders in them are taken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    with_classes,
    without_blind_test,
)
from tskd.data.layouts.pairs import read_paired_mask
from tskd.types import Record

CLASSES = ("ulcer",)
DESCRIPTION = """\
  train/images/<id>.<ext>   train/masks/<id>.png    (0 and 255; also <id>_segmentation, <id>_mask)
  val/images/...            val/masks/...           (also Validation, Valid)
  test/images/...           test/masks/...          (in any case; also image, img, mask, label, labels, gt)"""

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
    records: list[Record] = []
    for split, names in _PARTS.items():
        part = single_subfolder(root, names)
        if part is not None:
            records += _part(part, split, search)
    if not records and not search.faults:
        raise missing(root, "any image such as train/images/1.jpg", DESCRIPTION)
    return without_blind_test(sorted(records, key=lambda record: record.id))


def describe(root: Path, options: LayoutOptions, records: Sequence[Record]) -> Description:
    """Tell of a test part without labels."""
    notes = (BLIND_TEST_NOTE,) if all(record.split is None for record in records) else ()
    return Description("Autooral", with_classes(options, CLASSES), (*notes, *window_notes(options)))


def read_autooral_image(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one photograph, (H, W, 3) uint8."""
    return read_image(record.image, intensity=options.intensity)


def read_autooral_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read the ulcers, (H, W) uint8: 0 and 1."""
    path = require_mask(record)
    return map_labels(read_paired_mask(record), None, classes=1, path=path)


def fits(root: Path) -> bool:
    """Tell by a training and a test part that each hold a folder of images."""
    parts = [single_subfolder(root, _PARTS[name]) for name in ("train", "test")]
    return all(part is not None and single_subfolder(part, _IMAGE_FOLDERS) is not None for part in parts)


def _part(part: Path, split: str, search: Search) -> list[Record]:
    images = _files(single_subfolder(part, _IMAGE_FOLDERS), search)
    masks = _files(single_subfolder(part, _MASK_FOLDERS), search, claims=images)
    records = [_record(id, path, split, masks) for id, path in images.items()]
    search.name_unclaimed(masks, {record.mask for record in records}, images)
    return records


def _files(folder: Path | None, search: Search, claims: Collection[str] = ()) -> dict[str, Path]:
    return {} if folder is None else search.by_id(folder, is_image, deep=False, claims=claims)


def _record(name: str, image: Path, split: str, masks: dict[str, Path]) -> Record:
    found = [masks[name + ending] for ending in _MASK_ENDINGS if name + ending in masks]
    id = f"{split}/{name}"
    return Record(id, id, image, found[0] if found else None, split=split)


AUTOORAL = Layout("autooral", CLASSES, find, read_autooral_image, read_autooral_mask, fits, DESCRIPTION, describe)
