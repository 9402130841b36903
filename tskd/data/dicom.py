"""DICOM files to arrays: rescaling, stated grey-level window, and the order of a series by geometry.

Sources: DICOM PS3.3 C.7.6.2 (image plane), C.11.1 (modality LUT), C.11.2.1.2 (window). No tag value ever reaches a
message or a record, except sizes and spacings: patients are named by :func:`pseudonym` alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from tskd.data.intensity import IntensityWindow, apply_window, require_finite
from tskd.data.reading import reading
from tskd.errors import UserError

CT_WINDOW = IntensityWindow(-160, 240)
"""Hounsfield units for CT files without a window of their own: abdominal soft tissue (width 400, level 40)."""

_MAX_PIXELS = 89_000_000
_SAME_POSITION_MM = 0.01
_UNEVEN = 0.05  # of the slice distance: what a gap may differ from a whole number of them
_TURNED = 1e-3
_MAGIC_OFFSET = 128


@dataclass(frozen=True)
class Slice:
    """One frame of a DICOM file, with what is needed to order it and to name its case."""

    path: Path
    index: int | None
    """Frame of a multi-frame file; None: the file is one image."""
    series: str
    """Pseudonym of the series."""
    patient: str
    """Pseudonym of the patient, of the series where the file names no patient."""
    position: float | None
    """Millimetres along the slice normal."""
    instance: int | None
    spacing: tuple[float, ...] | None
    """Millimetres along (row, column), and to the next slice where a volume's slices are evenly spaced."""
    orientation: tuple[float, ...] | None = None
    """Direction cosines of rows and columns."""
    volume: int | None = None
    """Which volume of its series; None where the series is none by its geometry."""
    place: int | None = None
    """Place in the volume, counted in slice distances."""


def is_dicom(path: Path) -> bool:
    """Tell by the extension ``.dcm`` or by the magic bytes whether a file is DICOM.

    One that cannot be opened counts as DICOM: it may be, and reading it then says what is wrong.
    """
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(_MAGIC_OFFSET + 4)[_MAGIC_OFFSET:] == b"DICM"
    except OSError:
        return True


def read_header(path: Path) -> pydicom.Dataset:
    """Read everything but the pixels; raises :class:`UserError` where the file is damaged."""
    with _reading(path):
        return pydicom.dcmread(path, stop_before_pixels=True)


def read_stored(path: Path, *, index: int | None = None) -> np.ndarray:
    """Return one frame's stored values, (H, W) integers or (H, W, 3) uint8, without rescaling: for masks."""
    return _read(path, index)[1]


def read_frame(path: Path, *, index: int | None = None, window: IntensityWindow | None = None) -> np.ndarray:
    """Read one frame as 8-bit grey (H, W), or RGB (H, W, 3) where the file is in colour.

    Grey values are rescaled (slope and intercept or modality LUT), windowed as :func:`grey_window` says, and inverted
    for MONOCHROME1, so that high is always bright. Raises :class:`UserError` naming the file.
    """
    header, values = _read(path, index)
    if values.ndim == 3:
        return values
    chosen, _ = grey_window(header, window, index=index)
    grey = values if chosen is None else apply_window(_rescaled(header, values, index, path), chosen)
    return 255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey


def grey_window(
    header: pydicom.Dataset, window: IntensityWindow | None, *, index: int | None = None
) -> tuple[IntensityWindow | None, str]:
    """Return the window in rescaled units and a sentence naming the rule; None: 8-bit values are taken as they are.

    The first that applies: the given window, the file's own, :data:`CT_WINDOW` for CT, the full stored range.
    """
    if window is not None:
        return window, f"the given window {window.low:g} to {window.high:g}"
    own = _own_window(header, index)
    if own is not None:
        return own, "each file's own WindowCenter and WindowWidth"
    if header.get("Modality") == "CT":
        return CT_WINDOW, f"{CT_WINDOW.low:g} to {CT_WINDOW.high:g} HU (default for CT without a window of its own)"
    if header.BitsStored == 8 and header.BitsAllocated == 8 and not header.PixelRepresentation:
        return None, "8-bit values as they are"
    return _stored_range(header, index), f"the full stored range of {header.BitsStored} bits"


def list_slices(paths: Sequence[Path]) -> list[Slice]:
    """Return every frame of the given files, each series in order of position (else of instance number), with volumes.

    Series follow each other by pseudonym. Raises :class:`UserError` where a series of several slices has neither
    positions nor instance numbers.
    """
    series: dict[str, list[Slice]] = {}
    for path in paths:
        for item in _slices_of(path):
            series.setdefault(item.series, []).append(item)
    return [item for name in sorted(series) for item in _with_volumes(_ordered(series[name]))]


def pseudonym(*values: object) -> str:
    """Return twelve hexadecimal digits that stand for ``values``: stable, and without showing them."""
    return hashlib.sha256("\x1f".join(str(value) for value in values).encode()).hexdigest()[:12]


def plane_affine(path: Path, *, index: int | None = None) -> np.ndarray:
    """Return the (4, 3) matrix that takes (row, column, 1) to homogeneous millimetres in RAS, as NIfTI counts.

    DICOM counts in LPS (PS3.3 C.7.6.2.1.1), hence the sign change of the first two axes. Raises :class:`UserError`
    where the file has no position, orientation or spacing.
    """
    header = read_header(path)
    with _reading(path):
        orientation, position = _orientation(header, index), _position(header, index)
        spacing = _spacing(header, index)
    if orientation is None or position is None or spacing is None:
        raise UserError(
            f"{path}: has no ImagePositionPatient, ImageOrientationPatient or PixelSpacing, so a label volume cannot "
            "be laid over it. Give its masks as PNG files named like the DICOM files."
        )
    along_row, along_column = orientation[:3], orientation[3:]
    lps = np.stack([along_column * spacing[0], along_row * spacing[1], position], axis=1)
    return np.vstack([lps * np.array([[-1.0], [-1.0], [1.0]]), [0.0, 0.0, 1.0]])


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    with reading(path, _explain, what="DICOM file"):
        yield


def _explain(error: BaseException) -> str | None:
    if isinstance(error, InvalidDicomError):
        return "is not a DICOM file. Copy it again from the source or remove it."
    return None


def _read(path: Path, index: int | None) -> tuple[pydicom.Dataset, np.ndarray]:
    with _reading(path):
        header = pydicom.dcmread(path)
        frames = int(header.get("NumberOfFrames") or 1)
        _require_frame(header, frames, index, path)
        values = pixel_array(header, index=index if frames > 1 else None)
        if header.PhotometricInterpretation == "PALETTE COLOR":
            values = apply_color_lut(values, header)
        if values.ndim == 3 and values.dtype != np.uint8:
            values = (values >> max(header.BitsStored - 8, 0) if header.SamplesPerPixel > 1 else values >> 8).astype(
                np.uint8
            )
    return header, values


def _require_frame(header: pydicom.Dataset, frames: int, index: int | None, path: Path) -> None:
    if header.Rows * header.Columns > _MAX_PIXELS:
        raise UserError(f"{path}: more than {_MAX_PIXELS // 1_000_000} million pixels. Cut it into tiles first.")
    if index is None and frames > 1:
        raise UserError(f"{path}: holds {frames} frames. Use the `dicom` layout, which reads each as an image.")
    if index is not None and not 0 <= index < frames:
        raise UserError(f"{path}: frame {index} asked for, the file holds {frames} (0 to {frames - 1}).")


def _rescaled(header: pydicom.Dataset, values: np.ndarray, index: int | None, path: Path) -> np.ndarray:
    if "ModalityLUTSequence" in header:
        return apply_modality_lut(values, header)
    slope, intercept = _rescale(header, index)
    rescaled = values.astype(np.float32) * slope + intercept
    require_finite(rescaled, path)
    return rescaled


def _rescale(header: pydicom.Dataset, index: int | None) -> tuple[float, float]:
    source = _functional_group(header, index, "PixelValueTransformationSequence")
    slope, intercept = _number(source.get("RescaleSlope")), _number(source.get("RescaleIntercept"))
    return 1.0 if slope is None else slope, intercept or 0.0


def _own_window(header: pydicom.Dataset, index: int | None) -> IntensityWindow | None:
    """The first window of the file, PS3.3 C.11.2.1.2.1: LINEAR maps c - 0.5 -+ (w - 1) / 2, LINEAR_EXACT c -+ w / 2."""
    source = _functional_group(header, index, "FrameVOILUTSequence")
    centre, width = _number(source.get("WindowCenter")), _number(source.get("WindowWidth"))
    if centre is None or width is None or not width > 0:
        return None
    if source.get("VOILUTFunction") == "LINEAR_EXACT" or width <= 1:
        return IntensityWindow(centre - width / 2, centre + width / 2)
    return IntensityWindow(centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _stored_range(header: pydicom.Dataset, index: int | None) -> IntensityWindow:
    bits = int(header.BitsStored)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if header.PixelRepresentation else (0, (1 << bits) - 1)
    slope, intercept = _rescale(header, index)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return IntensityWindow(ends[0], ends[1])


def _functional_group(header: pydicom.Dataset, index: int | None, sequence: str) -> pydicom.Dataset:
    """Return where a frame's values lie: its own group, the shared one, or the file itself (classic DICOM)."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    own = [frames[index or 0]] if (index or 0) < len(frames) else []
    for group in [*own, *(header.get("SharedFunctionalGroupsSequence") or [])]:
        if group.get(sequence):
            return group[sequence][0]
    return header


def _number(value: object) -> float | None:
    """Return a tag as float: the first of several, None where it is absent or empty."""
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)  # type: ignore[arg-type]


def _slices_of(path: Path) -> list[Slice]:
    header = read_header(path)
    with _reading(path):
        frames = int(header.get("NumberOfFrames") or 1)
        series = pseudonym(header.get("SeriesInstanceUID") or path.parent)
        patient = pseudonym(header["PatientID"].value) if header.get("PatientID") else series
        indices = [None] if frames == 1 else range(frames)
        return [_slice(header, path, index, series=series, patient=patient) for index in indices]


def _slice(header: pydicom.Dataset, path: Path, index: int | None, *, series: str, patient: str) -> Slice:
    orientation, origin = _orientation(header, index), _position(header, index)
    position = None
    if orientation is not None and origin is not None:
        position = float(np.dot(np.cross(orientation[:3], orientation[3:]), origin))
    number = _number(header.get("InstanceNumber"))
    instance = None if number is None else int(number)
    turned = None if orientation is None else tuple(orientation.tolist())
    return Slice(path, index, series, patient, position, instance, _spacing(header, index), turned)


def _orientation(header: pydicom.Dataset, index: int | None) -> np.ndarray | None:
    return _vector(_functional_group(header, index, "PlaneOrientationSequence").get("ImageOrientationPatient"), 6)


def _position(header: pydicom.Dataset, index: int | None) -> np.ndarray | None:
    group = _functional_group(header, index, "PlanePositionSequence")
    if group is header and index:  # a classic multi-frame file states the position of its first frame only
        return None
    return _vector(group.get("ImagePositionPatient"), 3)


def _spacing(header: pydicom.Dataset, index: int | None) -> tuple[float, float] | None:
    value = _vector(_functional_group(header, index, "PixelMeasuresSequence").get("PixelSpacing"), 2)
    return None if value is None or not (value > 0).all() else (float(value[0]), float(value[1]))


def _vector(value: Sequence[float] | None, length: int) -> np.ndarray | None:
    if value is None or not isinstance(value, Sequence | pydicom.multival.MultiValue) or len(value) != length:
        return None
    return np.array([float(number) for number in value])


def _ordered(slices: list[Slice]) -> list[Slice]:
    """Sort a series by position along its normal, else by instance number and frame; never by file name."""
    if all(item.position is not None for item in slices):
        return sorted(slices, key=lambda item: (item.position, item.instance or 0, item.index or 0))
    if len({item.path for item in slices}) == 1 or all(item.instance is not None for item in slices):
        return sorted(slices, key=lambda item: (item.instance or 0, item.index or 0))
    raise UserError(
        f"{slices[0].path.parent}: the {len(slices)} slices of a series have neither positions nor instance numbers, "
        "so their order is unknown. Export the series again, or use the `folder` layout for single images."
    )


def _with_volumes(slices: list[Slice]) -> list[Slice]:
    """Return a series in order of position with volume and place of each slice, as they are where it is no volume.

    A volume's slices are parallel and state their positions. Where every position comes several times (time points,
    echoes), the series holds as many volumes: the first of each position, the second, and so on.
    """
    if len(slices) < 2 or not _are_parallel(slices):
        return slices
    positions = np.array([item.position for item in slices])
    level = np.concatenate([[0], np.cumsum(np.diff(positions) > _SAME_POSITION_MM)])
    counts = np.bincount(level)
    if len(set(counts.tolist())) > 1:
        return slices
    places, distance = _places(positions[:: counts[0]])
    # within a position by instance: positions of time points may differ in the last digits
    order = sorted(range(len(slices)), key=lambda k: (level[k], slices[k].instance or 0, slices[k].index or 0))
    slices = [slices[k] for k in order]
    return [
        replace(
            item,
            spacing=item.spacing if item.spacing is None or distance is None else (*item.spacing, distance),
            volume=int(number % counts[0]),
            place=places[level[number]],
        )
        for number, item in enumerate(slices)
    ]


def _are_parallel(slices: Sequence[Slice]) -> bool:
    turned = [item.orientation for item in slices if item.position is not None and item.orientation is not None]
    return len(turned) == len(slices) and bool(np.allclose(turned, turned[0], atol=_TURNED))


def _places(positions: np.ndarray) -> tuple[list[int], float | None]:
    """Return places counted in slice distances, and that distance in mm; None (and the order) where it is uneven."""
    if len(positions) < 2:
        return [0], None
    gaps = np.diff(positions)
    steps = np.maximum(np.rint(gaps / np.median(gaps)), 1).astype(int)
    distance = float(gaps.sum() / steps.sum())
    if np.abs(gaps - steps * distance).max() > _UNEVEN * distance:
        return list(range(len(positions))), None
    return [0, *np.cumsum(steps).tolist()], distance
