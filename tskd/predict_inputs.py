"""What is in the files and folders that a user wants predicted: single images, NIfTI volumes, DICOM series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tskd.data import dicom, nifti
from tskd.data.files import find_files
from tskd.data.images import IMAGE_SUFFIXES
from tskd.errors import UserError

Kind = Literal["image", "nifti", "series"]
_GRID_TOLERANCE_MM = 0.1


@dataclass(frozen=True)
class Frame:
    """One image to predict."""

    path: Path
    index: int | None = None
    """Slice of a volume or frame of a file; None: the file is one image."""
    spacing: tuple[float, ...] | None = None
    """Millimetres along (row, column), and to the next slice where that is known."""


@dataclass(frozen=True)
class Item:
    """What becomes one file of labels: an image (PNG), a NIfTI volume or a DICOM series (NIfTI)."""

    kind: Kind
    frames: tuple[Frame, ...]
    name: Path
    """Relative path of its results, without an extension."""
    source: Path
    """The file or folder, as messages and tables name it."""

    @property
    def output(self) -> Path:
        """Relative path of its labels."""
        return self.name.with_name(self.name.name + (".png" if self.kind == "image" else ".nii.gz"))


@dataclass(frozen=True)
class Failure:
    """A file that could not be predicted."""

    source: Path
    problem: str


def find_items(inputs: Sequence[Path], *, results: Path, axis: int = 2) -> tuple[list[Item], list[Failure]]:
    """Return everything that can be predicted, folders searched to the bottom, and what cannot be read.

    NIfTI volumes are sliced along the canonical ``axis``. Other files in folders are passed over, as is the folder of
    the ``results`` where it lies in an input. Raises UserError for an input that does not exist.
    """
    items: list[Item] = []
    failures: list[Failure] = []
    for given in inputs:
        if not given.exists():
            raise UserError(f"{given}: there is no such file or folder.")
        found = _in_folder(given, results, axis) if given.is_dir() else _in_files([given], given.parent, axis)
        for one in found:
            items.append(one) if isinstance(one, Item) else failures.append(one)
    return items, failures


def series_affine(frames: Sequence[Frame]) -> np.ndarray | None:
    """Return the (4, 4) affine, (row, column, slice) to millimetres in RAS, of a DICOM series in order of position.

    None where the slices do not form a grid: no geometry stated, another orientation or size, uneven distances.
    """
    try:
        planes = np.stack([dicom.plane_affine(frame.path, index=frame.index) for frame in frames])
    except UserError:
        return None
    if len(planes) < 2:
        return None
    origins = planes[:, :3, 2]
    step = (origins[-1] - origins[0]) / (len(planes) - 1)
    expected = origins[0] + np.arange(len(planes))[:, None] * step
    uneven = np.abs(origins - expected).max() > _GRID_TOLERANCE_MM
    turned = not np.allclose(planes[:, :3, :2], planes[0, :3, :2], atol=1e-4)
    if uneven or turned or not np.linalg.norm(step) > 0:
        return None
    affine = np.eye(4)
    affine[:3] = np.column_stack([planes[0, :3, :2], step, origins[0]])
    return affine


def _in_folder(root: Path, results: Path, axis: int) -> Iterator[Item | Failure]:
    """Yield what is in a folder; files of one subfolder stay together, since a DICOM series lies in one."""
    by_folder: dict[Path, list[Path]] = {}
    own = results.resolve()
    inside = own.is_relative_to(root.resolve()) and own != root.resolve()
    found = find_files(root, _is_known)
    for path in found.files:
        if not (inside and path.resolve().is_relative_to(own)):
            by_folder.setdefault(path.parent, []).append(path)
    for files in by_folder.values():
        yield from _in_files(files, root, axis)
    yield from (Failure(path, f"{path}: {problem}") for path, problem in found.problems)


def _is_known(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES or nifti.is_nifti(path):
        return True
    return path.name != "DICOMDIR" and dicom.is_dicom(path)


def _in_files(paths: Sequence[Path], root: Path, axis: int) -> Iterator[Item | Failure]:
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
        count = nifti.slice_count(path, axis=axis) * nifti.frame_count(path)
        frames = tuple(Frame(path, index, spacing) for index in range(count))
    except UserError as error:
        return Failure(path, str(error))
    return Item("nifti", frames, path.relative_to(root).with_name(nifti.volume_id(path)), path)


def _dicom_items(paths: Sequence[Path], root: Path) -> Iterator[Item | Failure]:
    """Yield a volume for each series that is a regular grid, else an image for each frame."""
    readable: dict[Path, list[dicom.Slice]] = {}
    for path in paths:
        try:
            readable[path] = dicom.list_slices([path])
        except UserError as error:
            yield Failure(path, str(error))
    series: dict[str, list[dicom.Slice]] = {}
    for item in _in_order(readable):
        series.setdefault(item.series, []).append(item)
    for name, slices in series.items():
        frames = tuple(Frame(item.path, item.index, item.spacing) for item in slices)
        if series_affine(frames) is None:
            yield from (_frame_item(frame, root) for frame in frames)
        else:
            yield Item("series", frames, _series_name(frames, name, root, alone=len(series) == 1), _source(frames))


def _in_order(readable: dict[Path, list[dicom.Slice]]) -> list[dicom.Slice]:
    try:
        return dicom.list_slices(list(readable))
    except UserError:  # a series of unknown order is no volume: each of its slices is an image
        return [item for slices in readable.values() for item in slices]


def _series_name(frames: Sequence[Frame], pseudonym: str, root: Path, *, alone: bool) -> Path:
    """Return the file's name for a multi-frame file, else the folder's, with a pseudonym where it holds several."""
    path = frames[0].path
    if len({frame.path for frame in frames}) == 1:
        return _dicom_name(path, root)
    folder = path.parent.relative_to(root)
    name = folder if folder.name else Path(path.parent.resolve().name)
    return name if alone else name / f"series_{pseudonym}"


def _source(frames: Sequence[Frame]) -> Path:
    paths = {frame.path for frame in frames}
    return frames[0].path if len(paths) == 1 else frames[0].path.parent


def _frame_item(frame: Frame, root: Path) -> Item:
    name = _dicom_name(frame.path, root)
    if frame.index is not None:
        name = name.with_name(f"{name.name}_{frame.index:04d}")
    return Item("image", (frame,), name, frame.path)


def _dicom_name(path: Path, root: Path) -> Path:
    """Return the relative path without an extension; a name such as 1.2.840.7 has none."""
    name = path.relative_to(root)
    return name.with_suffix("") if name.suffix.lower() in (".dcm", ".dicom") else name
