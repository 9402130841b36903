"""DICOM series, a folder a case, with masks as PNG files or as one NIfTI label volume a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tskd.data import dicom, nifti
from tskd.data.files import find_files, plain
from tskd.data.images import map_labels, read_image, read_mask_indices
from tskd.data.layouts.base import (
    Description,
    Layout,
    LayoutOptions,
    Search,
    classes_by_map,
    missing,
    require_mask,
    require_same_size,
)
from tskd.data.layouts.dataset_yaml import DATASET_YAML, read_volumes_yaml, with_stated
from tskd.errors import UserError
from tskd.types import Record

DESCRIPTION = """\
  images/<case>/**/*.dcm            one folder a case (one or more series, single or multi-frame, with or without .dcm)
  images/*.dcm                      files without a folder: the case is a pseudonym of the patient
  masks/<case>/<dicom name>.png     label index, 0/255 for one class; multi-frame: <dicom name>_<frame, 4 digits>.png
  masks/<case>.nii[.gz]             or one label volume a case, laid over the slices by its coordinates
  dataset.yaml                      optional: name, classes, labels, window
  (without masks/: unlabelled; a folder of DICOM files alone will do too)"""

_GRID_TOLERANCE = 0.1  # voxels; a label volume further off the slices' grid belongs to another series


def find(root: Path, options: LayoutOptions, search: Search) -> list[Record]:
    """Return one record per frame, each series in the order of its positions."""
    folder = root / "images" if (root / "images").is_dir() else root
    files = _readable(search.listing(folder, _is_dicom).files, search)
    if not files and not search.faults:
        raise missing(root, "any DICOM file", DESCRIPTION)
    masks = _mask_files(root, search)
    records = _loose_records([path for path in files if path.parent == folder], masks, search)
    for case in sorted({path.relative_to(folder).parts[0] for path in files if path.parent != folder}):
        inside = [path for path in files if path.relative_to(folder).parts[0] == case]
        records += _case_records(case, inside, masks, search)
    search.name_unclaimed(masks, {record.mask for record in records}, {record.case for record in records})
    return sorted(records, key=lambda record: record.id)


def describe(root: Path, options: LayoutOptions, records: Sequence[Record]) -> Description:
    """Name the classes by options or dataset.yaml, and tell the rule that makes grey levels, by a file of each case."""
    stated = read_volumes_yaml(root)
    options = with_stated(options, stated)
    firsts = {record.case: record.image for record in reversed(records)}
    rules = {dicom.grey_window(dicom.read_header(path), options.intensity)[1] for path in firsts.values()}
    notes = [f"intensities: {rule}" for rule in sorted(rules)]
    if options.classes is None:
        one = (("foreground",), "classes not named: one is assumed")
        classes, note = one if options.labels is None else classes_by_map(options.labels)
        options = replace(options, classes=classes)
        notes.append(note)
    return Description(stated.name or plain(root.resolve().name), options, tuple(notes))


def read_dicom_image(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one frame, (H, W, 3) uint8."""
    return read_image(record.image, index=record.index, intensity=options.intensity)


def read_dicom_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one mask, (H, W) uint8 class index, from its PNG file or from the case's label volume."""
    path = require_mask(record)
    header = dicom.read_header(record.image)
    size = (int(header.Rows), int(header.Columns))
    raw = _overlaid(path, record, size) if nifti.is_nifti(path) else read_mask_indices(path)
    raw = require_same_size(raw, record, size)
    return map_labels(raw, options.labels, classes=len(options.classes or ("foreground",)), path=path)


def fits(root: Path) -> bool:
    """Tell by a DICOM file that is the first in images/, or in the root itself, or in a folder there."""
    if any(root.glob("*/DICOM_anon")) or any(root.glob("*/T2SPIR")):
        return False
    folder = root / "images" if (root / "images").is_dir() else root
    return any(_is_dicom(path) for path in _first_files(folder))


def _first_files(folder: Path) -> list[Path]:
    """Return the first file of the folder and of each folder in it: enough evidence, without opening every file.

    A dataset.yaml is no evidence either way.
    """
    found = find_files(folder, deep=False)
    listed = [found.files, *(find_files(each, deep=False).files for each in found.folders)]
    files = [next((path for path in each if path.name != DATASET_YAML), None) for each in listed]
    return [path for path in files if path is not None]


def _is_dicom(path: Path) -> bool:
    return path.name != "DICOMDIR" and dicom.is_dicom(path)


def _readable(files: Sequence[Path], search: Search) -> list[Path]:
    """Return the files whose header can be read; the others are faults."""
    sound = []
    for path in files:
        try:
            dicom.list_slices([path])
            sound.append(path)
        except UserError as error:
            search.drop(error, path)
    return sound


def _mask_files(root: Path, search: Search) -> dict[str, Path]:
    """Return all files in masks/ by their path there without the ending, as names are compared."""
    return search.by_id(root / "masks", lambda path: True, _mask_id)


def _mask_id(path: Path, folder: Path) -> str:
    name = nifti.volume_id(path) if nifti.is_nifti(path) else path.stem
    return plain(path.relative_to(folder).with_name(name).as_posix())


def _loose_records(files: Sequence[Path], masks: Mapping[str, Path], search: Search) -> list[Record]:
    """Return the records of files that lie in no case folder: named by pseudonyms of patient and series."""
    slices = _in_order(files, search)
    counts: dict[str, int] = {}
    records = []
    for item in slices:
        number = counts[item.series] = counts.get(item.series, -1) + 1
        mask = _png("", item, masks)
        records.append(
            _record(
                f"{item.patient}/{item.series}/{number:04d}", f"{item.patient}/{item.series}", item.patient, item, mask
            )
        )
    return records


def _case_records(folder: str, files: Sequence[Path], masks: Mapping[str, Path], search: Search) -> list[Record]:
    case, slices = plain(folder), _in_order(files, search)
    several = len({item.series for item in slices}) > 1
    volume = masks[case] if case in masks and nifti.is_nifti(masks[case]) else None
    counts: dict[str, int] = {}
    records = []
    for item in slices:
        number = counts[item.series] = counts.get(item.series, -1) + 1
        name = f"{case}/{item.series}" if several else case
        mask = volume or _png(f"{case}/", item, masks)
        records.append(_record(f"{name}/{number:04d}", name, case, item, mask))
    return records


def _record(id: str, series: str, case: str, item: dicom.Slice, mask: Path | None) -> Record:
    volume = None if item.volume is None else f"{series}/{item.volume}"
    return Record(id, case, item.path, mask, item.spacing, item.index, volume=volume, place=item.place)


def _in_order(files: Sequence[Path], search: Search) -> list[dicom.Slice]:
    try:
        return dicom.list_slices(files)
    except UserError as error:
        search.drop(error, files[0].parent)
        return []


def _png(folder: str, item: dicom.Slice, masks: Mapping[str, Path]) -> Path | None:
    frame = "" if item.index is None else f"_{item.index:04d}"
    names = [item.path.stem, item.path.name]  # names without an extension may hold dots
    found = (masks.get(plain(f"{folder}{name}{frame}")) for name in names)
    return next((path for path in found if path is not None and not nifti.is_nifti(path)), None)


def _overlaid(path: Path, record: Record, size: tuple[int, int]) -> np.ndarray:
    """Sample a label volume at the centres of one slice's pixels: orientation and slice order do not matter."""
    volume, affine = nifti.read_label_volume(path)
    if volume.ndim > 3:
        raise UserError(f"{path}: holds several frames; a DICOM series is labelled by a volume. Save one frame.")
    rows, columns = np.indices(size)
    pixels = np.stack([rows.ravel(), columns.ravel(), np.ones(rows.size)])
    voxels = (np.linalg.inv(affine) @ dicom.plane_affine(record.image, index=record.index) @ pixels)[:3]
    nearest = np.rint(voxels).astype(np.intp)
    outside = (nearest < 0).any() or (nearest >= np.array(volume.shape)[:, None]).any()
    if outside or np.abs(voxels - nearest).max() > _GRID_TOLERANCE:
        raise UserError(
            f"{path}: the label volume does not lie on the grid of {record.image.name}. Resample it to the DICOM "
            "series (nearest neighbour), or give PNG masks."
        )
    return volume[tuple(nearest)].reshape(size)


DICOM = Layout("dicom", ("foreground",), find, read_dicom_image, read_dicom_mask, fits, DESCRIPTION, describe)
