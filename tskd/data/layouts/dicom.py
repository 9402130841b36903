"""DICOM series, a folder a case, with masks as PNG files or as one NIfTI label volume a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tskd.data import dicom, nifti
from tskd.data.images import map_labels, read_image, read_mask_indices
from tskd.data.layouts.base import (
    Description,
    Layout,
    LayoutOptions,
    classes_by_map,
    missing,
    refuse_problems,
    require_mask,
    require_same_size,
    visible,
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


def find(root: Path, options: LayoutOptions) -> list[Record]:
    """Return one record per frame, each series in the order of its positions."""
    folder = root / "images" if (root / "images").is_dir() else root
    files = _dicom_files(folder)
    if not files:
        raise missing(root, "any DICOM file", DESCRIPTION)
    records = _loose_records(folder, [path for path in files if path.parent == folder], root)
    for case in sorted({path.relative_to(folder).parts[0] for path in files if path.parent != folder}):
        inside = [path for path in files if path.relative_to(folder).parts[0] == case]
        records += _case_records(case, inside, root)
    masks = {record.mask for record in records}
    stray = [(path, "a mask without an image.") for path in _mask_files(root) if path not in masks]
    refuse_problems(stray, root, DESCRIPTION)
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
    return Description(stated.name or root.resolve().name, options, tuple(notes))


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
    folders = [folder, *(path for path in visible(list(folder.iterdir())) if path.is_dir())]
    listed = [[path for path in visible(list(each.iterdir())) if path.name != DATASET_YAML] for each in folders]
    files = [next((path for path in found if path.is_file()), None) for found in listed]
    return [path for path in files if path is not None]


def _is_dicom(path: Path) -> bool:
    return path.name != "DICOMDIR" and dicom.is_dicom(path)


def _dicom_files(folder: Path) -> list[Path]:
    return [path for path in visible(list(folder.rglob("*"))) if path.is_file() and _is_dicom(path)]


def _mask_files(root: Path) -> list[Path]:
    return visible([path for path in (root / "masks").rglob("*") if path.is_file()])


def _loose_records(folder: Path, files: Sequence[Path], root: Path) -> list[Record]:
    """Return the records of files that lie in no case folder: named by pseudonyms of patient and series."""
    slices = dicom.list_slices(files)
    counts: dict[str, int] = {}
    records = []
    for item in slices:
        number = counts[item.series] = counts.get(item.series, -1) + 1
        mask = _png(root / "masks", item)
        records.append(
            _record(
                f"{item.patient}/{item.series}/{number:04d}", f"{item.patient}/{item.series}", item.patient, item, mask
            )
        )
    return records


def _case_records(case: str, files: Sequence[Path], root: Path) -> list[Record]:
    slices = dicom.list_slices(files)
    several = len({item.series for item in slices}) > 1
    volume = next(
        (path for path in (root / "masks" / f"{case}{end}" for end in (".nii.gz", ".nii")) if path.is_file()), None
    )
    counts: dict[str, int] = {}
    records = []
    for item in slices:
        number = counts[item.series] = counts.get(item.series, -1) + 1
        name = f"{case}/{item.series}" if several else case
        mask = volume or _png(root / "masks" / case, item)
        records.append(_record(f"{name}/{number:04d}", name, case, item, mask))
    return records


def _record(id: str, series: str, case: str, item: dicom.Slice, mask: Path | None) -> Record:
    volume = None if item.volume is None else f"{series}/{item.volume}"
    return Record(id, case, item.path, mask, item.spacing, item.index, volume=volume, place=item.place)


def _png(folder: Path, item: dicom.Slice) -> Path | None:
    frame = "" if item.index is None else f"_{item.index:04d}"
    names = [item.path.stem, item.path.name]  # names without an extension may hold dots
    paths = [folder / f"{name}{frame}.png" for name in names]
    return next((path for path in paths if path.is_file()), None)


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
