"""Which DICOM slices belong together: series in order of position, volumes, and the grids they form in space.

Sources: DICOM PS3.3 C.7.6.2 (image plane); for tilted gantries the way ITK and dcm2niix place them. Whatever keeps a
series from being one regular grid is told in a remark. No tag of a patient reaches a record or a remark: series and
patients are numbered in the order of their files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom

from tskd.data.dicom_files import MAX_VOXELS, Head, kind_of, number, read_head, reading_dicom, require_image
from tskd.data.dicom_pixels import read_values
from tskd.errors import UserError

_SAME_POSITION_MM = 0.01
_TURNED = 1e-3  # of a direction cosine
_TILT_DEGREES = 0.1
_OFF_GRID_MM = 0.1
_OFF_GRID = 0.1  # of the slice distance, where that is less than a millimetre
_FAR_MM = 1e7  # beyond it a number is damaged; not a number is not below it
_REGION = ("RegionSpatialFormat", "PhysicalUnitsXDirection", "PhysicalUnitsYDirection")
_TWO_DIMENSIONAL, _CENTIMETRES = 1, 3
_SECTIONAL = ("CT", "MR", "PT")
_NAMED = 3
_BLOCK = 2**20  # bytes that are compared at once


@dataclass(frozen=True)
class Slice:
    """One frame of a DICOM file, with what is needed to order it and to name its case."""

    path: Path
    index: int | None
    """Frame of a multi-frame file; None: the file is one image."""
    series: int
    """Number of the series in its listing, from 1."""
    patient: int
    """Number of the patient in its listing, from 1; each series has one of its own where files name no patient."""
    size: tuple[int, int]
    """Rows and columns."""
    position: float | None
    """Millimetres along the slice normal."""
    instance: int | None
    spacing: tuple[float, ...] | None
    """Millimetres along (row, column), and to the next slice where a volume's slices are evenly spaced."""
    origin: tuple[float, ...] | None = None
    """Centre of the first pixel in millimetres, LPS."""
    orientation: tuple[float, ...] | None = None
    """Direction cosines of rows and columns, LPS."""
    volume: int | None = None
    """Which volume of its series; None where the series is none by its geometry."""
    place: int | None = None
    """Place in the volume, counted in slice distances."""
    grid: int | None = None
    """Which regular grid of its series; None where the slice lies in none."""


@dataclass
class Listing:
    """What DICOM files hold."""

    slices: list[Slice] = field(default_factory=list)
    """Each series in order of position (else of instance number), the series by number."""
    failures: list[tuple[Path, str]] = field(default_factory=list)
    """Files that cannot be read, with the message."""
    others: list[tuple[Path, str]] = field(default_factory=list)
    """Files that are not scans, with what they are."""
    copies: dict[Path, Path] = field(default_factory=dict)
    """Files left out, each with the one of its series that shows the same."""
    remarks: list[str] = field(default_factory=list)
    """Why a series is not one regular grid, each naming the folder or file."""


class Names(NamedTuple):
    """What tells files apart: for comparisons alone, never to be shown."""

    series: object
    patient: object
    instance: str
    frame: str
    """Frame of reference, empty where none is stated."""
    sectional: bool


def list_series(paths: Iterable[Path]) -> Listing:
    """Return every frame of the given files, ordered and placed; a file that cannot be read stops nothing."""
    listing = Listing()
    series: dict[object, tuple[int, list[Slice]]] = {}
    patients: dict[object, int] = {}
    names: dict[Path, Names] = {}
    for path in sorted(paths):
        try:
            head = read_head(path)
            if (kind := kind_of(head)) is not None:
                listing.others.append((path, kind))
                continue
            require_image(head, None if head.frames == 1 else 0)
            names[path] = names_of(head)
            number, members = series.setdefault(names[path].series, (len(series) + 1, []))
            patient = patients.setdefault(names[path].patient, len(patients) + 1)
            members += _slices_of(head, number, patient)
        except UserError as error:
            listing.failures.append((path, str(error)))
    for _, members in series.values():
        _place(members, names, listing)
    return listing


def grid_affines(slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Return the (4, 4) affines from (column, row, slice) to millimetres in RAS of the slices of one grid.

    The first says where the voxels are; the second is the nearest without shear, by which ITK places a series of a
    tilted gantry. They are equal where the gantry was not tilted. DICOM counts in LPS (PS3.3 C.7.6.2.1.1), hence the
    sign change of the first two axes.
    """
    first, last = slices[0], slices[-1]
    step = (np.array(last.origin) - np.array(first.origin)) / (len(slices) - 1)
    normal = _normal(first)
    straight = normal * np.linalg.norm(step)
    plane = plane_of(first)
    sheared, upright = (np.column_stack([plane[:, :2], third, plane[:, 2]]) for third in (step, straight))
    return _in_ras(sheared), _in_ras(upright)


def plane_affine(path: Path, *, index: int | None = None) -> np.ndarray:
    """Return the (4, 3) matrix that takes (column, row, 1) to homogeneous millimetres in RAS, as NIfTI counts.

    Raises :class:`UserError` where the file has no position, orientation or spacing.
    """
    found = slice_at(path, index)
    if found.orientation is None or found.origin is None or found.spacing is None:
        raise UserError(
            f"{path}: has no ImagePositionPatient, ImageOrientationPatient or PixelSpacing, so a label volume cannot "
            "be laid over it. Give its masks as PNG files named like the DICOM files."
        )
    return _in_ras(plane_of(found))


def slice_at(path: Path, index: int | None) -> Slice:
    """Return one frame of a file with what itself says of its place; raises :class:`UserError` naming the file."""
    head = read_head(path)
    with reading_dicom(path):
        (found,) = [one for one in slices_of(head) if one.index == index or head.frames == 1]
        return found


def slices_of(head: Head) -> list[Slice]:
    """Return the frames of a file with what they themselves say of their places; raises :class:`UserError`."""
    return _slices_of(head, 1, 1)


class Place(NamedTuple):
    """Where a frame says that it lies; None for what it does not say."""

    origin: np.ndarray | None
    """Centre of the first pixel in millimetres, LPS, (3,)."""
    orientation: np.ndarray | None
    """Direction cosines of rows and columns, LPS, (6,)."""
    spacing: tuple[float, float] | None
    """Millimetres along (row, column)."""


def place_of(data: pydicom.Dataset, index: int | None) -> Place:
    """Return where a frame of a file says that it lies."""
    return Place(_origin(data, index), _orientation(data, index), _spacing(data, index))


def functional_group(data: pydicom.Dataset, index: int | None, sequence: str) -> pydicom.Dataset:
    """Return where a frame's values lie: its own group, the shared one, or the file itself (classic DICOM)."""
    frames = data.get("PerFrameFunctionalGroupsSequence") or []
    own = [frames[index or 0]] if (index or 0) < len(frames) else []
    for group in [*own, *(data.get("SharedFunctionalGroupsSequence") or [])]:
        if group.get(sequence):
            return group[sequence][0]
    return data


def names_of(head: Head) -> Names:
    """Return what tells a file's series and image from others; for comparisons alone, never to be shown."""
    with reading_dicom(head.path):
        data = head.data
        series = str(data.get("SeriesInstanceUID") or "") or head.path.parent
        patient = str(data["PatientID"].value) if data.get("PatientID") else series
        return Names(
            series,
            patient,
            str(data.get("SOPInstanceUID") or ""),
            str(data.get("FrameOfReferenceUID") or ""),
            data.get("Modality") in _SECTIONAL,
        )


def _slices_of(head: Head, series: int, patient: int) -> list[Slice]:
    with reading_dicom(head.path):
        indices = [None] if head.frames == 1 else range(head.frames)
        return [_slice(head, index, series, patient) for index in indices]


def _slice(head: Head, index: int | None, series: int, patient: int) -> Slice:
    data = head.data
    origin, orientation, spacing = place_of(data, index)
    position = None
    if orientation is not None and origin is not None:
        position = float(np.dot(np.cross(orientation[:3], orientation[3:]), origin))
    instance = head.number("InstanceNumber")
    return Slice(
        head.path,
        index,
        series,
        patient,
        head.size,
        position,
        None if instance is None else int(instance),
        spacing,
        None if origin is None else tuple(origin.tolist()),
        None if orientation is None else tuple(orientation.tolist()),
    )


def _orientation(data: pydicom.Dataset, index: int | None) -> np.ndarray | None:
    """Return six direction cosines; None where they are no two directions at right angles."""
    found = _vector(functional_group(data, index, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    if found is None:
        return None
    row, column = found[:3], found[3:]
    upright = abs(row @ row - 1) < 0.01 and abs(column @ column - 1) < 0.01 and abs(row @ column) < 0.01
    return found if upright else None


def _origin(data: pydicom.Dataset, index: int | None) -> np.ndarray | None:
    group = functional_group(data, index, "PlanePositionSequence")
    if group is data and index:  # a classic multi-frame file states the position of its first frame only
        return None
    return _vector(group, "ImagePositionPatient", 3)


def _spacing(data: pydicom.Dataset, index: int | None) -> tuple[float, float] | None:
    value = _vector(functional_group(data, index, "PixelMeasuresSequence"), "PixelSpacing", 2)
    if value is None:
        return _spacing_of_ultrasound(data)
    return (float(value[0]), float(value[1])) if (value > 0).all() else None


def _spacing_of_ultrasound(data: pydicom.Dataset) -> tuple[float, float] | None:
    """Return the scale of an ultrasound image whose regions are all two-dimensional, in centimetres and of one scale.

    PS3.3 C.8.5.5: a region beside them may be a curve over time, whose pixels are no millimetres.
    """
    found = set()
    for region in data.get("SequenceOfUltrasoundRegions") or ():
        kind, *units = (number(region, name) for name in _REGION)
        rows, columns = (abs(number(region, f"PhysicalDelta{axis}") or 0.0) for axis in "YX")
        if (kind, *units) != (_TWO_DIMENSIONAL, _CENTIMETRES, _CENTIMETRES) or not rows * columns:
            return None
        found.add((10 * rows, 10 * columns))
    return found.pop() if len(found) == 1 else None


def _vector(source: pydicom.Dataset, keyword: str, length: int) -> np.ndarray | None:
    """Return an element of several numbers; None where it is absent, of another length or no place on Earth."""
    try:
        value = source.get(keyword)
        found = np.array([float(one) for one in value or ()])
    except (ValueError, TypeError, ArithmeticError):
        return None
    return found if found.size == length and (np.abs(found) < _FAR_MM).all() else None


def plane_of(one: Slice) -> np.ndarray:
    """Return the (3, 3) matrix from (column, row, 1) to millimetres in LPS of a slice that states its place."""
    assert one.orientation is not None
    assert one.origin is not None
    assert one.spacing is not None
    turned = np.array(one.orientation)
    return np.column_stack([turned[:3] * one.spacing[1], turned[3:] * one.spacing[0], one.origin])


def _in_ras(lps: np.ndarray) -> np.ndarray:
    homogeneous = np.zeros((1, lps.shape[1]))
    homogeneous[0, -1] = 1
    return np.vstack([lps * np.array([[-1.0], [-1.0], [1.0]]), homogeneous]) + 0.0  # no -0.0


def _normal(one: Slice) -> np.ndarray:
    assert one.orientation is not None
    normal = np.cross(one.orientation[:3], one.orientation[3:])
    return normal / np.linalg.norm(normal)


def _place(members: list[Slice], names: dict[Path, Names], listing: Listing) -> None:
    """Add the slices of one series to the listing, in order, with volumes, grids and remarks."""
    members = _without_copied_files(members, names, listing)
    placed = [item for item in members if item.position is not None]
    loose = [item for item in members if item.position is None]
    groups = _groups(placed)
    _remark_on_groups(groups, listing)
    done: list[Slice] = []
    for group in groups:
        done += _volumes(group, listing, done)
    done.sort(key=lambda item: (item.position, item.volume or 0, item.instance or 0, item.index or 0))
    listing.slices += [*done, *_without_positions(loose, names, listing)]


def _without_copied_files(members: list[Slice], names: dict[Path, Names], listing: Listing) -> list[Slice]:
    """Leave out files that hold the same image as another of the series under the same instance UID."""
    kept: dict[str, list[Slice]] = {}
    copies: dict[Path, Path] = {}
    firsts = {item.path: item for item in reversed(members)}
    for path in sorted(firsts, key=lambda path: (len(path.name), path)):
        known = kept.setdefault(names[path].instance, [])
        twin = next((one for one in known if names[path].instance and _show_the_same(firsts[path], one)), None)
        if twin is None:
            known.append(firsts[path])
        else:
            copies[path] = twin.path
    for path in sorted(copies):
        _note_copy(path, copies[path], listing)
    return [item for item in members if item.path not in copies]


def _note_copy(path: Path, other: Path, listing: Listing) -> None:
    listing.copies[path] = other
    listing.remarks.append(
        f"{path}: is a copy of {other.name}, the same image twice in one series. It is left out; remove one of the two."
    )


def _show_the_same(one: Slice, other: Slice) -> bool:
    if one.path == other.path or one.size != other.size or one.origin != other.origin:
        return False  # frames of one file have equal bytes whatever they show
    if _have_equal_bytes(one.path, other.path):
        return True
    if one.index is not None or other.index is not None:
        return False
    try:
        first, second = (read_values(read_head(item.path), None) for item in (one, other))
    except UserError:  # reading it for its own sake says what is wrong
        return False
    return np.array_equal(first, second)


def _have_equal_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while (block := first.read(_BLOCK)) == second.read(_BLOCK):
            if not block:
                return True
    return False


def _without_positions(loose: list[Slice], names: dict[Path, Names], listing: Listing) -> list[Slice]:
    files = {item.path for item in loose}
    if len(files) > 1 and any(names[path].sectional for path in files):
        unknown = any(item.instance is None for item in loose)
        more = " nor instance numbers, so their order is unknown" if unknown else ""
        listing.remarks.append(
            f"{loose[0].path.parent}: {len(loose)} slices of a series state no positions{more}. "
            "Each is taken as a single image."
        )
    return sorted(loose, key=lambda item: (item.instance or 0, item.path, item.index or 0))


def _groups(slices: list[Slice]) -> list[list[Slice]]:
    """Return the slices that are parallel, of one size and one pixel spacing, the largest group first."""
    groups: list[list[Slice]] = []
    for item in slices:
        for group in groups:
            if _fit(item, group[0]):
                group.append(item)
                break
        else:
            groups.append([item])
    return sorted(groups, key=len, reverse=True)


def _fit(one: Slice, other: Slice) -> bool:
    if one.size != other.size or (one.spacing is None) != (other.spacing is None):
        return False
    return np.allclose(one.orientation, other.orientation, atol=_TURNED) and (  # type: ignore[arg-type]
        one.spacing is None or np.allclose(one.spacing, other.spacing, rtol=1e-3)  # type: ignore[arg-type]
    )


def _remark_on_groups(groups: list[list[Slice]], listing: Listing) -> None:
    if len(groups) < 2:
        return
    main, *others = groups
    folder = main[0].path.parent
    odd = f"{folder}: the slices of a series differ in orientation, size or pixel spacing, as a localizer does"
    if len(main) == 1:
        listing.remarks.append(f"{odd}, so each of the {len(groups)} is an image of its own.")
        return
    apart = sorted({item.path.name for group in others for item in group})
    named = ", ".join(apart[:_NAMED]) + (f" and {len(apart) - _NAMED} more" if len(apart) > _NAMED else "")
    listing.remarks.append(f"{odd}; {len(main)} belong together, apart from them are kept: {named}.")


def _volumes(group: list[Slice], listing: Listing, before: list[Slice]) -> list[Slice]:
    """Return parallel slices with volume, place and grid.

    Where every position comes several times (time points, echoes), they are as many volumes: the first of each
    position, the second, and so on.
    """
    slices, level = _levels(group)
    counts = np.bincount(level)
    if len(set(counts.tolist())) > 1:
        slices, level = _levels(_without_copied_slices(slices, level, listing))
        counts = np.bincount(level)
    if len(slices) < 2:
        return slices
    folder = slices[0].path.parent
    if len(set(counts.tolist())) > 1:
        listing.remarks.append(
            f"{folder}: positions in a series come {counts.min()} to {counts.max()} times, so which slices are one "
            "volume is not known. Each is taken as a single slice."
        )
        return slices
    volumes = 1 + max((item.volume for item in before if item.volume is not None), default=-1)
    grids = 1 + max((item.grid for item in before if item.grid is not None), default=-1)
    done: list[Slice] = []
    for first in range(int(counts[0])):
        volume, remarks = _volume(slices[first :: counts[0]], volumes + first, grids)
        grids = 1 + max((item.grid for item in volume if item.grid is not None), default=grids - 1)
        listing.remarks += [remark for remark in remarks if remark not in listing.remarks]
        done += volume
    return done


def _levels(slices: Sequence[Slice]) -> tuple[list[Slice], np.ndarray]:
    """Return the slices by position, within one by instance, and the number of its position for each.

    Positions of time points may differ in the last digits, so instances do not count before positions are told apart.
    """
    ordered = sorted(slices, key=lambda item: (item.position, item.instance or 0, item.index or 0))
    positions = np.array([item.position for item in ordered])
    level = np.concatenate([[0], np.cumsum(np.diff(positions) > _SAME_POSITION_MM)]).astype(int)
    order = sorted(
        range(len(ordered)), key=lambda k: (level[k], ordered[k].instance or 0, ordered[k].index or 0, ordered[k].path)
    )
    return [ordered[k] for k in order], level


def _without_copied_slices(slices: list[Slice], level: np.ndarray, listing: Listing) -> list[Slice]:
    """Leave out files that hold the same pixels as another at the same position, under whatever name."""
    kept: list[Slice] = []
    for place in range(level[-1] + 1):
        here: list[Slice] = []
        for item in sorted(
            (one for one, where in zip(slices, level) if where == place), key=lambda one: (len(one.path.name), one.path)
        ):
            twin = next((one for one in here if _show_the_same(item, one)), None)
            if twin is None:
                here.append(item)
            else:
                _note_copy(item.path, twin.path, listing)
        kept += here
    return kept


def _volume(slices: Sequence[Slice], volume: int, grid: int) -> tuple[list[Slice], list[str]]:
    """Return the slices of one volume, in order, with places and grids, and what keeps them from one regular grid."""
    places, distance = _places(np.array([item.position for item in slices]))
    spaced = [
        replace(
            item,
            spacing=item.spacing if item.spacing is None or distance is None else (*item.spacing, distance),
            volume=volume,
            place=place,
        )
        for item, place in zip(slices, places)
    ]
    reason = _irregularity(spaced, distance)
    if reason is not None or spaced[0].spacing is None or len(spaced) < 2:
        return spaced, [] if reason is None else [reason]
    done: list[Slice] = []
    for run in _runs(spaced):
        done += [replace(item, grid=grid) for item in run] if len(run) > 1 else run
        grid += 1
    return done, [remark for remark in (_gap_remark(spaced), _tilt_remark(spaced)) if remark is not None]


def _places(positions: np.ndarray) -> tuple[list[int], float | None]:
    """Return places counted in slice distances, and that distance in mm; None (and the order) where it is uneven."""
    if len(positions) < 2:
        return [0], None
    gaps = np.diff(positions)
    usual = np.sort(gaps)[(len(gaps) - 1) // 2]  # of two gaps the smaller: a mean of both would be neither
    steps = np.maximum(np.rint(gaps / usual), 1).astype(int)
    distance = float(gaps.sum() / steps.sum())
    places = np.concatenate([[0], np.cumsum(steps)])
    if np.ptp(positions - places * distance) / 2 > _tolerance(distance):
        return list(range(len(positions))), None
    return places.tolist(), distance


def _tolerance(distance: float) -> float:
    return min(_OFF_GRID_MM, _OFF_GRID * distance)


def _irregularity(slices: Sequence[Slice], distance: float | None) -> str | None:
    """Return why slices form no grid at all, not even with gaps; None where they do."""
    folder = slices[0].path.parent
    if distance is None:
        gaps = np.diff([item.position for item in slices])
        if gaps.size == 0:
            return None
        return (
            f"{folder}: the distance between the slices of a series varies from {gaps.min():.4g} to "
            f"{gaps.max():.4g} mm, "
            "so they are not a regular grid."
        )
    places, origins = np.array([item.place for item in slices]), np.array([item.origin for item in slices])
    step = (origins[-1] - origins[0]) / places[-1]
    if np.abs(origins - origins[0] - places[:, None] * step).max() > max(_OFF_GRID_MM, _tolerance(distance)):
        return f"{folder}: the slices of a series are shifted against each other, so they are not a regular grid."
    if places.size * slices[0].size[0] * slices[0].size[1] > MAX_VOXELS:
        return f"{folder}: a series holds more than {MAX_VOXELS // 1_000_000} million pixels, too many for one volume."
    return None


def _runs(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Return the slices in runs without a gap."""
    runs: list[list[Slice]] = []
    for item in slices:
        if runs and item.place == (runs[-1][-1].place or 0) + 1:
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _gap_remark(slices: Sequence[Slice]) -> str | None:
    gaps = [(a, b) for a, b in pairwise(slices) if (b.place or 0) - (a.place or 0) > 1]
    if not gaps:
        return None
    first, second = gaps[0]
    width = (second.position or 0) - (first.position or 0)
    spacing = slices[0].spacing
    assert spacing is not None
    more = f", and at {len(gaps) - 1} more places" if len(gaps) > 1 else ""
    return (
        f"{first.path.parent}: slices of a series are missing: the distance is {spacing[2]:.4g} mm, but {width:.4g} mm "
        f"between {_told(first)} and {_told(second)}{more}. What lies on either side are grids of their own; add the "
        "missing slices for one."
    )


def _told(item: Slice) -> str:
    return item.path.name if item.index is None else f"{item.path.name} frame {item.index}"


def _tilt_remark(slices: Sequence[Slice]) -> str | None:
    step = np.array(slices[-1].origin) - np.array(slices[0].origin)
    angle = np.degrees(np.arccos(np.clip(step @ _normal(slices[0]) / np.linalg.norm(step), -1, 1)))
    if angle <= _TILT_DEGREES:
        return None
    return (
        f"{slices[0].path.parent}: the gantry was tilted by {angle:.1f} degrees: the slices of a series are "
        "shifted against each other evenly, a sheared grid. Its NIfTI says so in the sform; the qform is the grid "
        "without shear, as ITK reads the series."
    )
