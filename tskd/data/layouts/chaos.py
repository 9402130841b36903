"""CHAOS: abdominal organs in CT and MR (Kavur et al., Medical Image Analysis 69, 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tskd.data import dicom
from tskd.data.files import plain
from tskd.data.images import map_labels, read_image, read_mask_indices
from tskd.data.layouts.base import (
    BLIND_TEST_NOTE,
    Description,
    Layout,
    LayoutOptions,
    Search,
    missing,
    require_mask,
    require_same_size,
    with_classes,
    without_blind_test,
)
from tskd.data.layouts.dicom import grey_notes
from tskd.errors import UserError
from tskd.types import Record

CT_CLASSES = ("liver",)
MR_CLASSES = ("liver", "right kidney", "left kidney", "spleen")
CT_DESCRIPTION = """\
  [CHAOS_Train_Sets/][Train_Sets/][CT/]<case>/DICOM_anon/*.dcm   <case>/Ground/*.png   (paired by order of names)
  [CHAOS_Test_Sets/][Test_Sets/][CT/]<case>/DICOM_anon/*.dcm     (no labels)"""
MR_DESCRIPTION = """\
  [CHAOS_Train_Sets/][Train_Sets/][MR/]<case>/T1DUAL/DICOM_anon/{InPhase,OutPhase}/*.dcm   T1DUAL/Ground/*.png
  [CHAOS_Train_Sets/][Train_Sets/][MR/]<case>/T2SPIR/DICOM_anon/*.dcm                      T2SPIR/Ground/*.png
  [CHAOS_Test_Sets/][Test_Sets/][MR/]<case>/...                                            (no labels)"""

_MR_RANGES = ((55, 70), (110, 135), (175, 200), (240, 255))
"""Mask values of liver, right and left kidney, spleen: nominally 63, 126, 189, 252; both ends belong to it."""
_MR_LABELS = {value: index for index, (low, high) in enumerate(_MR_RANGES, 1) for value in range(low, high + 1)}
_SEQUENCES = {
    "t1_in": ("T1DUAL", "DICOM_anon/InPhase"),
    "t1_out": ("T1DUAL", "DICOM_anon/OutPhase"),
    "t2": ("T2SPIR", "DICOM_anon"),
}
_TEST_NAMES = ("test_sets", "chaos_test_sets")


def find_ct(root: Path, options: LayoutOptions, search: Search) -> list[Record]:
    """Return every CT slice; a case is a volume."""
    cases = _cases(root, "CT", "DICOM_anon", search)
    if not cases and not search.faults:
        raise missing(root, "any folder <case>/DICOM_anon with CT slices", CT_DESCRIPTION)
    records = [
        record
        for case in cases
        for record in _slices(case / "DICOM_anon", case / "Ground", case, root=root, sequence="", search=search)
    ]
    return without_blind_test(sorted(records, key=lambda record: record.id))


def find_mr(root: Path, options: LayoutOptions, search: Search) -> list[Record]:
    """Return every MR slice of the chosen sequences; a case is a patient with all sequences."""
    if options.sequence not in (*_SEQUENCES, "all"):
        raise UserError(f"sequence {options.sequence!r} is unknown. Allowed: all, {', '.join(_SEQUENCES)}.")
    cases = sorted({*_cases(root, "MR", "T1DUAL", search), *_cases(root, "MR", "T2SPIR", search)})
    chosen = _SEQUENCES if options.sequence == "all" else {options.sequence: _SEQUENCES[options.sequence]}
    records = [
        record
        for case in cases
        for sequence, (folder, images) in chosen.items()
        for record in _slices(
            case / folder / images, case / folder / "Ground", case, root=root, sequence=sequence, search=search
        )
    ]
    if not records and not search.faults:
        raise missing(root, "any MR slice such as <case>/T2SPIR/DICOM_anon/*.dcm", MR_DESCRIPTION)
    return without_blind_test(sorted(records, key=lambda record: record.id))


def describe_ct(root: Path, options: LayoutOptions, records: Sequence[Record]) -> Description:
    """Tell the grey-level window in use."""
    return _described("CHAOS CT", CT_CLASSES, options, records)


def describe_mr(root: Path, options: LayoutOptions, records: Sequence[Record]) -> Description:
    """Tell the grey-level window in use."""
    return _described("CHAOS MR", MR_CLASSES, options, records)


def read_chaos_image(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one slice, (H, W, 3) uint8."""
    return read_image(record.image, intensity=options.intensity)


def read_ct_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read the liver, (H, W) uint8: 0 and 1 (1-bit PNG)."""
    return _read_mask(record, None, 1)


def read_mr_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read the four organs, (H, W) uint8: 0 background, 1 liver, 2 right kidney, 3 left kidney, 4 spleen."""
    return _read_mask(record, _MR_LABELS, len(MR_CLASSES))


def fits_ct(root: Path) -> bool:
    """Tell by folders <case>/DICOM_anon that hold DICOM files."""
    return bool(_cases(root, "CT", "DICOM_anon", Search()))


def fits_mr(root: Path) -> bool:
    """Tell by folders <case>/T1DUAL or <case>/T2SPIR."""
    return any(_cases(root, "MR", inside, Search()) for inside in ("T1DUAL", "T2SPIR"))


def _cases(root: Path, modality: str, inside: str, search: Search) -> list[Path]:
    """Return the case folders, whichever outer folders of the two archives are kept."""
    outer = ("", "Train_Sets", "CHAOS_Train_Sets", "CHAOS_Train_Sets/Train_Sets")
    both = (*outer, *(name.replace("Train", "Test") for name in outer[1:]))
    parents = sorted({root / name / inner for name in both for inner in ("", modality)})
    folders = [case for parent in parents for case in search.listing(parent, deep=False).folders]
    return sorted(case for case in folders if case / inside in search.listing(case, deep=False).folders)


def _slices(images: Path, ground: Path, case: Path, *, root: Path, sequence: str, search: Search) -> list[Record]:
    """Pair the slices of one volume; T1 out-phase slices take the in-phase mask, which lies on the same grid.

    The masks have other names than CT and out-phase slices: both run in the order of their names [CHAOS data page].
    """
    files = search.listing(images, lambda path: path.suffix.lower() == ".dcm", deep=False).files
    masks: list[Path | None] = [*search.listing(ground, lambda path: path.suffix.lower() == ".png", deep=False).files]
    if masks and len(masks) != len(files):
        error = UserError(
            f"{ground}: {len(masks)} masks for {len(files)} slices in {images.name}; they are paired by order, so the "
            "numbers must be equal. Unpack the archive again."
        )
        search.drop(error, ground)
        return []
    split = _split(case, root)
    prefix = "/".join(part for part in ("test" if split == "test" else "", plain(case.name), sequence) if part)
    case_name = f"test/{plain(case.name)}" if split == "test" else plain(case.name)
    placed = _placed(files)
    return [
        Record(
            f"{prefix}/{number:03d}",
            case_name,
            file,
            mask,
            placed[number][1],
            split=split,
            volume=prefix,
            place=placed[number][0],
        )
        for number, (file, mask) in enumerate(zip(files, masks or [None] * len(files)))
    ]


def _placed(files: Sequence[Path]) -> list[tuple[int, tuple[float, ...] | None]]:
    """Return place in the volume and spacing of each file: by its position, else in the order of their names."""
    found = {item.path: item for item in dicom.list_series(files).slices}
    places = [found[file].place if file in found else None for file in files]
    if None in places or len(set(places)) < len(places):  # several series in one folder, or a file is broken
        spacing = next((item.spacing[:2] for item in found.values() if item.spacing is not None), None)
        return [(number, spacing) for number in range(len(files))]
    return [(place, found[file].spacing) for file, place in zip(files, places) if place is not None]


def _split(case: Path, root: Path) -> str:
    above = [part.lower() for part in case.relative_to(root.parent).parts[:-1]]
    return "test" if any(name in above for name in _TEST_NAMES) else "train"


def _read_mask(record: Record, labels: dict[int, int] | None, classes: int) -> np.ndarray:
    path = require_mask(record)
    raw = require_same_size(read_mask_indices(path), record, dicom.read_head(record.image).size)
    return map_labels(raw, labels, classes=classes, path=path)


def _described(name: str, classes: tuple[str, ...], options: LayoutOptions, records: Sequence[Record]) -> Description:
    blind = (BLIND_TEST_NOTE,) if all(record.split is None for record in records) else ()
    return Description(name, with_classes(options, classes), (*grey_notes(records, options), *blind))


CHAOS_CT = Layout("chaos_ct", CT_CLASSES, find_ct, read_chaos_image, read_ct_mask, fits_ct, CT_DESCRIPTION, describe_ct)
CHAOS_MR = Layout("chaos_mr", MR_CLASSES, find_mr, read_chaos_image, read_mr_mask, fits_mr, MR_DESCRIPTION, describe_mr)
