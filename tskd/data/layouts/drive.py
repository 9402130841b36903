"""DRIVE: retinal vessels in fundus photographs (Staal et al., IEEE TMI 23(4), 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tskd.data.files import find_files, id_of, plain
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
    window_notes,
    with_classes,
    without_blind_test,
)
from tskd.data.layouts.pairs import read_paired_mask
from tskd.types import UNLABELLED, Record

CLASSES = ("vessel",)
DESCRIPTION = """\
  training/images/21_training.tif    training/1st_manual/21_manual1.gif    training/mask/21_training_mask.gif
  test/images/01_test.tif            test/1st_manual/01_manual1.gif        test/mask/01_test_mask.gif
  (1st_manual: vessels 0/255; mask: field of view, optional; test/1st_manual may be missing; annotator 2 reads
  test/2nd_manual)"""

_FIELD_OF_VIEW_NOTE = "pixels outside the field of view (mask/) count as unlabelled: neither trained on nor scored"


def find(root: Path, options: LayoutOptions, search: Search) -> list[Record]:
    """Return the records of both parts, the case being the image number."""
    if not (root / "training" / "images").is_dir():
        raise missing(root, "the folder training/images/", DESCRIPTION)
    records = [*_part(root / "training", "train", 1, search), *_part(root / "test", "test", options.annotator, search)]
    if not records and not search.faults:
        raise missing(root, "any image such as training/images/21_training.tif", DESCRIPTION)
    return without_blind_test(sorted(records, key=lambda record: record.id))


def describe(root: Path, options: LayoutOptions, records: Sequence[Record]) -> Description:
    """Tell of the field of view, and of a test part without labels."""
    blind = BLIND_TEST_NOTE if all(record.split is None for record in records) else None
    outside = _FIELD_OF_VIEW_NOTE if any(_field_of_view(record.image) is not None for record in records) else None
    return Description("DRIVE", with_classes(options, CLASSES), (*_notes(outside, blind), *window_notes(options)))


def read_drive_image(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one photograph, (H, W, 3) uint8."""
    return read_image(record.image, intensity=options.intensity)


def read_drive_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read the vessels, (H, W) uint8: 0, 1, and ``UNLABELLED`` outside the field of view."""
    mask = _binary(record)
    field = _field_of_view(record.image)
    if field is not None:
        mask[_binary(replace(record, mask=field)) == 0] = UNLABELLED
    return mask


def fits(root: Path) -> bool:
    """Tell by training/1st_manual."""
    return (root / "training" / "1st_manual").is_dir()


def _notes(*notes: str | None) -> tuple[str, ...]:
    return tuple(note for note in notes if note is not None)


def _part(folder: Path, split: str, annotator: int, search: Search) -> list[Record]:
    manual = folder / ("1st_manual" if annotator == 1 else "2nd_manual")
    images = search.by_id(folder / "images", is_image, _number_of, deep=False)
    labels = search.by_id(manual, is_image, _number_of, deep=False, claims=images)
    if split == "train" and images and not labels and not search.faults:
        search.fault(manual, f"holds no labels. Expected:\n{DESCRIPTION}")
    records = [
        Record(plain(image.stem), number, image, labels.get(number), split=split) for number, image in images.items()
    ]
    search.name_unclaimed(labels, {record.mask for record in records}, images)
    fields = search.by_id(folder / "mask", is_image, deep=False)
    search.name_unclaimed(fields, {fields.get(f"{record.id}_mask") for record in records}, images)
    return records


def _number_of(path: Path, folder: Path) -> str:
    return id_of(path, folder).split("_")[0]


def _field_of_view(image: Path) -> Path | None:
    folder = image.parent.parent / "mask"
    fields = {id_of(path, folder): path for path in find_files(folder, is_image, deep=False).files}
    return fields.get(f"{plain(image.stem)}_mask")


def _binary(record: Record) -> np.ndarray:
    return map_labels(read_paired_mask(record), None, classes=1, path=require_mask(record))


def _read_beside(record: Record) -> Path | None:
    return None if record.mask is None else _field_of_view(record.image)


DRIVE = Layout(
    "drive", CLASSES, find, read_drive_image, read_drive_mask, fits, DESCRIPTION, describe, _read_beside
)  # fmt: skip
