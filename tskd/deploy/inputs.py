"""What is in the files and folders that a user wants predicted: single images, NIfTI volumes, DICOM series."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tskd.data import dicom, nifti
from tskd.data.files import OTHER_TYPES, find_files, tally
from tskd.data.images import IMAGE_SUFFIXES
from tskd.data.memory_files import MemoryFolder
from tskd.errors import UserError

Kind = Literal["image", "nifti", "series"]


@dataclass(frozen=True)
class Frame:
    """One image to predict."""

    path: Path
    index: int | None = None
    """Slice of a volume or frame of a file; None: the file is one image."""
    spacing: tuple[float, ...] | None = None
    """Millimetres along (row, column), and to the next slice where that is known."""
    size: tuple[int, int] | None = None
    """Rows and columns, where they were read on the way."""


@dataclass(frozen=True)
class Item:
    """What becomes one file of labels: an image (PNG), a NIfTI volume or a DICOM series (NIfTI)."""

    kind: Kind
    frames: tuple[Frame, ...]
    name: Path
    """Relative path of its results, without an extension."""
    source: Path
    """The file or folder, as messages and tables name it."""
    affines: tuple[np.ndarray, np.ndarray] | None = field(default=None, compare=False)
    """Of a series: (4, 4) from (column, row, slice) to millimetres in RAS, with a tilted gantry's shear and without."""
    slices: tuple[dicom.Slice, ...] = field(default=(), compare=False)
    """Of DICOM: the frames, one by one."""

    @property
    def output(self) -> Path:
        """Relative path of its labels."""
        return self.name.with_name(self.name.name + (".png" if self.kind == "image" else ".nii.gz"))


@dataclass(frozen=True)
class Failure:
    """A file that could not be predicted."""

    source: Path
    problem: str


@dataclass(frozen=True)
class NoScan:
    """A DICOM file that is no image, such as a report: it belongs to the study and is passed over."""

    source: Path
    kind: str


@dataclass(frozen=True)
class Remark:
    """What the person should know of files that are predicted all the same, or that are copies of others."""

    text: str


Found = Item | Failure | NoScan | Remark
_NOTHING = f"no image found. Allowed: {', '.join(IMAGE_SUFFIXES)}, DICOM, NIfTI."


@dataclass(frozen=True)
class Inputs:
    """Everything in the files and folders given."""

    items: list[Item]
    """What can be predicted, each once."""
    failures: list[Failure]
    remarks: list[str]
    paths: frozenset[Path]
    """Of all files found, resolved: also of those that cannot be read or are no scans. No result may replace one."""


def find_items(inputs: Sequence[Path], *, results: Path, axis: int = 2) -> Inputs:
    """Return everything that can be predicted, folders searched to the bottom, what cannot be read, and remarks.

    NIfTI volumes are sliced along the canonical ``axis``. Other files in folders are passed over, as is the folder of
    the ``results`` where it lies in an input. Raises UserError for an input that does not exist, and where none of them
    holds anything.
    """
    all_found: list[Found] = []
    bare: list[Path] = []
    for given in inputs:
        found = list(_given(given, results, axis))
        all_found += found
        if all(isinstance(one, Remark) for one in found):
            bare.append(given)
    if inputs and all(not os.path.lexists(given) for given in inputs):
        raise UserError("\n".join(one.problem for one in all_found if isinstance(one, Failure)))
    if len(bare) == len(inputs):
        said = [f"\n{one.text}" for one in all_found if isinstance(one, Remark)]
        raise UserError(f"{', '.join(map(str, inputs))}: {_NOTHING}{''.join(said)}")
    items, twins = _each_once([one for one in all_found if isinstance(one, Item)])
    failures = [one for one in all_found if isinstance(one, Failure)]
    failures += [Failure(given, f"{given}: {_NOTHING}") for given in bare]
    remarks = [one.text for one in [*all_found, *twins] if isinstance(one, Remark)]
    others = [one for one in all_found if isinstance(one, NoScan)]
    if others:
        kinds = sorted(Counter(one.kind for one in others).items())
        told = ", ".join(f"{count} {kind}" for kind, count in kinds)
        remarks.append(f"passed over, since they are not scans: {told}.")
    paths = {frame.path for item in items for frame in item.frames}
    paths |= {one.source for one in failures} | {one.source for one in others}
    return Inputs(items, failures, remarks, frozenset(map(_real, paths)))


def _each_once(items: Sequence[Item]) -> tuple[list[Item], list[Remark]]:
    """Return the items, those with the same frames once, and what else they are called.

    A file may be given twice, or with its folder; of a file and a link to it the file is answered.
    """
    real = {path: _real(path) for path in {frame.path for item in items for frame in item.frames}}
    alike: dict[object, list[Item]] = {}
    for item in items:
        alike.setdefault(tuple((real[frame.path], frame.index) for frame in item.frames) or item.source, []).append(
            item
        )
    kept, twins = [], []
    for same in alike.values():
        first = min(same, key=lambda item: any(frame.path.is_symlink() for frame in item.frames))
        kept.append(first)
        twins += [(one.source, first.source) for one in same if _absolute(one) != _absolute(first)]
    if not twins:
        return kept, []
    (other, name), more = twins[0], f" ({len(twins) - 1} more likewise)" if len(twins) > 1 else ""
    return kept, [Remark(f"{other} and {name} are one file: answered once, as the latter{more}.")]


def _absolute(item: Item) -> str:
    return os.path.abspath(item.source)  # noqa: PTH100 (links stay)


def _given(path: Path, results: Path, axis: int) -> Iterator[Found]:
    """Yield what an input holds; what a shell's ``*`` names besides files, such as a pipe, stops no other input."""
    if not os.path.lexists(path):
        yield Failure(path, f"{path}: there is no such file or folder.")
    elif os.path.isdir(path):  # noqa: PTH112 (Path's own raises where the folder may not be entered)
        yield from items_in(path, results, axis)
    elif path.is_file():
        yield from in_files([path], path.parent, axis)
    else:
        yield Failure(
            path, f"{path}: is not a file but a broken link, pipe or device that cannot be read. Leave it out."
        )


def items_in(root: Path, results: Path, axis: int) -> Iterator[Found]:
    """Yield what is in a folder; files of one subfolder stay together, since a DICOM series lies in one."""
    by_folder: dict[Path, list[Path]] = {}
    own = results.resolve()
    inside = own.is_relative_to(root.resolve()) and own != root.resolve()
    found = find_files(root, _is_known)
    files, others = (
        [path for path in paths if not (inside and path.resolve().is_relative_to(own))]
        for paths in (found.files, found.others)
    )
    for path in files:
        by_folder.setdefault(path.parent, []).append(path)
    if others:
        yield Remark(f"{root}: left out: {tally(OTHER_TYPES, others)}.")
    for files in by_folder.values():
        yield from in_files(files, root, axis)
    yield from (Failure(path, f"{path}: {problem}") for path, problem in found.problems)


def _is_known(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES or nifti.is_nifti(path):
        return True
    return path.name != "DICOMDIR" and dicom.is_dicom(path)


def in_files(paths: Sequence[Path], root: Path, axis: int) -> Iterator[Found]:
    """Yield the items of files in one folder; their results keep the path relative to ``root``."""
    dicoms = []
    for path in paths:
        if nifti.is_nifti(path):
            yield _nifti_item(path, root, axis)
        elif dicom.is_dicom(path):
            dicoms.append(path)
        else:
            yield Item("image", (Frame(path),), path.relative_to(root).with_suffix(""), path)
    yield from _dicom_items(dicoms, root)


def _nifti_item(path: Path, root: Path, axis: int) -> Item | Failure:
    try:
        spacing = nifti.slice_spacing(path, axis=axis)
        shape, _ = nifti.canonical_grid(path)
        columns, rows = (length for other, length in enumerate(shape) if other != axis)
        count = shape[axis] * nifti.frame_count(path)
        frames = tuple(Frame(path, index, spacing, (rows, columns)) for index in range(count))
    except UserError as error:
        return Failure(path, str(error))
    return Item("nifti", frames, path.relative_to(root).with_name(nifti.volume_id(path)), path)


def _dicom_items(paths: Sequence[Path], root: Path) -> Iterator[Found]:
    """Yield a volume for each regular grid of a series, an image for every other frame, and what is to be said."""
    listing = dicom.list_series(paths)
    yield from (Failure(path, problem) for path, problem in listing.failures)
    yield from (NoScan(path, kind) for path, kind in listing.others)
    yield from (Remark(text) for text in listing.remarks)
    several = len({item.series for item in listing.slices}) > 1
    grids: dict[int, dict[int, list[dicom.Slice]]] = {}
    for item in listing.slices:
        if item.grid is None:
            yield image_item(item, dicom_name(item.path, root))
        else:
            grids.setdefault(item.series, {}).setdefault(item.grid, []).append(item)
    for volumes in grids.values():
        for number, slices in enumerate(volumes.values(), start=1):
            name = _series_name(slices, root, alone=not several)
            if len(volumes) > 1:
                name = name.with_name(f"{name.name}_{number}")
            frames = tuple(map(_frame, slices))
            yield Item("series", frames, name, _source(slices), dicom.grid_affines(slices), tuple(slices))


def _frame(item: dicom.Slice) -> Frame:
    return Frame(item.path, item.index, item.spacing, item.size)


def _series_name(slices: Sequence[dicom.Slice], root: Path, *, alone: bool) -> Path:
    """Return the file's name for a multi-frame file, else the folder's, with a number where it holds several."""
    path = slices[0].path
    if len({item.path for item in slices}) == 1:
        return dicom_name(path, root)
    folder = path.parent.relative_to(root)
    name = folder if folder.name else Path(_called(path.parent) or "series")
    return name if alone else name / f"series_{slices[0].series}"


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # of links that lead in a circle `resolve` raises


def _called(folder: Path) -> str:
    """Return a folder's name as it was given: what a link leads to may be called by a patient's name."""
    return folder.name if isinstance(folder, MemoryFolder) else Path(os.path.abspath(folder)).name  # noqa: PTH100


def _source(slices: Sequence[dicom.Slice]) -> Path:
    paths = {item.path for item in slices}
    return slices[0].path if len(paths) == 1 else slices[0].path.parent


def image_item(item: dicom.Slice, name: Path) -> Item:
    """Return one DICOM frame as an image of its own; ``name`` is its file's, relative and without an extension."""
    if item.index is not None:
        name = name.with_name(f"{name.name}_{item.index:04d}")
    return Item("image", (_frame(item),), name, item.path, slices=(item,))


def dicom_name(path: Path, root: Path) -> Path:
    """Return the relative path without an extension; a name such as 1.2.840.7 has none."""
    name = path.relative_to(root)
    return name.with_suffix("") if name.suffix.lower() in (".dcm", ".dicom") else name
