"""The default layout: images/ and masks/ with equal names, and optional split.csv and dataset.yaml."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tskd.data import nifti
from tskd.data.files import find_files, plain
from tskd.data.images import map_labels, read_image, read_mask_indices
from tskd.data.labels import values_in
from tskd.data.layouts.base import (
    Description,
    Layout,
    LayoutOptions,
    Search,
    class_names,
    classes_by_map,
    classes_by_values,
    fault_of,
    is_image,
    missing,
    require_mask,
    window_notes,
)
from tskd.data.layouts.cases import case_of, unmatched, warn_of_folders
from tskd.data.layouts.dataset_yaml import DatasetFile, codes_of, read_dataset_yaml, with_stated
from tskd.data.layouts.pairs import read_paired_mask
from tskd.data.layouts.split_csv import CASE_COLUMNS, SPLIT_CSV, cell, csv_lines, split_problem
from tskd.data.reading import reading
from tskd.errors import UserError
from tskd.machine.memory import cores
from tskd.types import Record

DESCRIPTION = """\
  images/<id>.<ext>   PNG, JPEG, TIFF, GIF, BMP, WebP or DICOM; sub-folders are part of the id
  masks/<id>.<ext>    label index, or 0/255 for one class; a missing mask means: unlabelled
  split.csv           optional: id,split[,case|subject][,volume][,slice] with split train, val, test or empty;
                      slices of a volume name it, and their place in it (without slice: in the order of their ids);
                      by any other column, such as site, data.where takes a part of the images
  dataset.yaml        optional: name, classes, codes, spacing, labels, window, case_pattern"""

MOST_SLICES = 10_000
_LIKE_A_SLICE = re.compile(r"sl(ice)?[-_ ]?\d+$", re.IGNORECASE)
_SLICE_COLUMNS = (CASE_COLUMNS, ("volume",), ("frame",), ("slice",))
_SLICES_NOTE = (
    "the ids look like slices, and split.csv has no column volume (patient and frame) or slice: each is scored as an "
    "image of its own. Add them to have volumes scored as volumes"
)


@dataclass(frozen=True)
class _SplitRow:
    line: int
    split: str | None
    case: str | None
    volume: str | None
    frame: str
    place: int | None


def find(root: Path, options: LayoutOptions, search: Search) -> list[Record]:
    """Return all records, sorted by id; raises :class:`UserError` where there is no image."""
    if not os.path.lexists(root / "images"):
        raise missing(root, "the folder images/", DESCRIPTION)
    images = search.by_id(root / "images", _is_single_image)
    masks = search.by_id(root / "masks", is_image, claims=images)
    if not images and not search.faults:
        raise missing(root, "any image in images/", DESCRIPTION)
    rows = _split_rows(root / SPLIT_CSV, images, search)
    stated = _stated(root, search)
    records = [
        _record(id, path, masks.get(id), row=rows.get(id), stated=stated, search=search) for id, path in images.items()
    ]
    if stated.case_pattern is None:
        unstated = [id for id in images if id not in rows or rows[id].case is rows[id].volume is None]
        warn_of_folders(unstated, root, search, kind="images")
    search.name_unclaimed(masks, {record.mask for record in records}, images)
    _name_volumes(search, root)
    return _with_places(records, root / SPLIT_CSV, search)


def describe(root: Path, options: LayoutOptions, records: Sequence[Record]) -> Description:
    """Fill in name, classes, label map and window from options, dataset.yaml or, for the classes, the masks' values."""
    stated = read_dataset_yaml(root)
    options = with_stated(options, stated)
    notes = list(window_notes(options))
    if options.classes is None:
        classes, note = _classes_from_masks(records) if options.labels is None else classes_by_map(options.labels)
        options = replace(options, classes=classes)
        notes.append(note)
    if records and all(r.volume is None for r in records) and all(_LIKE_A_SLICE.search(r.id) for r in records):
        notes.append(_SLICES_NOTE)
    codes = codes_of(options.classes, stated, root)
    return Description(stated.name or plain(root.resolve().name), options, tuple(notes), codes)


def read_folder_image(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one image, (H, W, 3) uint8."""
    return read_image(record.image, index=record.index, intensity=options.intensity)


def read_folder_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one mask, (H, W) uint8 class index, at the image's size."""
    path = require_mask(record)
    raw = read_paired_mask(record)
    return map_labels(raw, options.labels, classes=len(options.classes or ("foreground",)), path=path)


def fits(root: Path) -> bool:
    """Tell whether images/ holds image files."""
    return bool(find_files(root / "images", is_image).files)


def _is_single_image(path: Path) -> bool:
    return is_image(path) or path.suffix.lower() == ".dcm"


def _name_volumes(search: Search, root: Path) -> None:
    for name in ("images", "masks"):
        for path in find_files(root / name, nifti.is_nifti).files:
            search.fault(path, "a volume: use the `nifti` layout, which reads it as slices.")


def _stated(root: Path, search: Search) -> DatasetFile:
    try:
        return read_dataset_yaml(root)
    except UserError as error:
        search.faults.append(fault_of(error, root / "dataset.yaml"))
        return DatasetFile()


def _record(
    id: str, image: Path, mask: Path | None, *, row: _SplitRow | None, stated: DatasetFile, search: Search
) -> Record:
    case = row.case if row is not None and row.case else None
    if case is None and stated.case_pattern is not None:
        case = case_of(id, stated.case_pattern)
        if case is None:
            search.fault(image, unmatched(id, stated.case_pattern))
    if row is None:
        return Record(id, case or id, image, mask, stated.spacing)
    volume = row.volume
    if volume is None and row.place is not None and case is not None:
        volume = f"{case}/{row.frame}" if row.frame else case
    return Record(
        id, case or volume or id, image, mask, stated.spacing, split=row.split, volume=volume, place=row.place
    )


def _with_places(records: Sequence[Record], path: Path, search: Search) -> list[Record]:
    """Return the records with the place of every slice: as stated, else by the numbers in the ids."""
    volumes: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.volume is not None:
            volumes[record.volume].append(record)
        elif record.place is not None:
            search.fault(path, f"{record.id!r} has a slice, and neither a volume nor a case to be a slice of.")
    places: dict[str, int] = {}
    for volume, slices in volumes.items():
        if problem := _volume_problem(slices):
            search.fault(path, f"the volume {volume!r} {problem}")
        ordered = sorted(slices, key=lambda record: _natural_order(record.id))
        places |= {record.id: number for number, record in enumerate(ordered)}
    return [
        replace(record, place=places[record.id]) if record.place is None and record.id in places else record
        for record in records
    ]


def _volume_problem(slices: Sequence[Record]) -> str | None:
    if len({record.case for record in slices}) > 1:
        return "has slices of several cases. A volume is of one patient: give each its own name."
    stated = [record.place for record in slices if record.place is not None]
    if len(stated) not in (0, len(slices)):
        return f"has a slice number for {len(stated)} of its {len(slices)} slices. Give all of them one, or none."
    if len(set(stated)) < len(stated):
        return "has two slices of one number. Frames of one patient are volumes of their own: name them in `volume`."
    return None


def _natural_order(text: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key that sorts numbers in texts as numbers: slice2 before slice10."""
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def _split_rows(path: Path, images: dict[str, Path], search: Search) -> dict[str, _SplitRow]:
    """Read split.csv where there is one; rows that cannot be used are faults, named with their line."""
    rows: dict[str, _SplitRow] = {}
    for line, row in csv_lines(path, search):
        id, split = plain(row["id"].strip()), row["split"].strip()
        problem = _row_problem(id, split, row, images, rows)
        if problem is not None:
            search.fault(path, f"line {line}: {problem}")
            continue
        case, volume, frame, place = (cell(row, *names) for names in _SLICE_COLUMNS)
        rows[id] = _SplitRow(line, split or None, case or None, volume or None, frame, int(place) if place else None)
    return rows


def _row_problem(
    id: str, split: str, row: Mapping[str, str], images: dict[str, Path], rows: dict[str, _SplitRow]
) -> str | None:
    if id in rows:
        return f"the id {id!r} was given before, in line {rows[id].line}."
    if id not in images:
        return f"no image has the id {id!r}: an id is the path below images/ without the extension."
    if problem := split_problem(split):
        return problem
    place = cell(row, "slice")
    if place and not (place.isdecimal() and int(place) < MOST_SLICES):
        return f"slice {place!r} is not a whole number from 0 to {MOST_SLICES - 1}."
    return None


def _classes_from_masks(records: Sequence[Record]) -> tuple[tuple[str, ...], str]:
    """Count the classes by the values that all masks together hold."""
    paths = [record.mask for record in records if record.mask is not None]
    if not paths:
        return class_names(1), "no masks and no class names: one class is assumed"
    with ThreadPoolExecutor(cores()) as pool:  # decoding releases the interpreter lock
        values = list(pool.map(_values_of, paths))
    return classes_by_values([one for one in values if one], paths[0].parent)


def _values_of(path: Path) -> set[int]:
    try:
        with reading(path):
            return set(values_in(read_mask_indices(path)).tolist())
    except UserError:  # an unreadable mask is reported when it is read; here it only cannot vote
        return set()


FOLDER = Layout(
    name="folder",
    classes=(),
    find=find,
    read_image=read_folder_image,
    read_mask=read_folder_mask,
    fits=fits,
    description=DESCRIPTION,
    describe=describe,
)
