"""NIfTI volumes as slices, in canonical orientation and with the spacing of the slice's plane.

A slice of the canonical (RAS) volume is shown with the head or the front at the top and the patient's right at the
left, as radiologists read it and as axial DICOM slices are stored.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import io_orientation

from tskd.data.intensity import IntensityWindow, apply_window, require_finite
from tskd.data.reading import reading
from tskd.errors import UserError

PERCENTILES = (0.5, 99.5)
"""Without a window, these percentiles of the whole volume become black and white: magnetic resonance has no unit."""


def is_nifti(path: Path) -> bool:
    """Tell by the name whether a file is NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def volume_id(path: Path) -> str:
    """Return the file's name without ``.nii`` or ``.nii.gz``."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return name[: -len(".nii")]


def slice_count(path: Path, *, axis: int = 2) -> int:
    """Return how many slices each volume of a file has along a canonical axis."""
    return canonical_grid(path)[0][axis]


def frame_count(path: Path) -> int:
    """Return how many volumes a file holds: the length of its fourth axis, 1 without one."""
    with reading(path, what="NIfTI file"):
        return _axes(path)[3]


def slice_spacing(path: Path, *, axis: int = 2) -> tuple[float, float, float] | None:
    """Return millimetres along (row, column, slice) for slices along a canonical axis; None where none are stated."""
    _, affine = canonical_grid(path)
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    columns, rows = (other for other in range(3) if other != axis)
    return (float(zooms[rows]), float(zooms[columns]), float(zooms[axis])) if (zooms > 0).all() else None


def canonical_grid(path: Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape and (4, 4) affine of the volume in canonical orientation, from the head of the file alone."""
    with reading(path, what="NIfTI file"):
        shape, affine, orientation = _geometry(path)
        order = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]
        stored_from_canonical = np.zeros((4, 4))
        stored_from_canonical[3, 3] = 1
        for axis, stored in enumerate(order):
            flipped = orientation[stored, 1] < 0
            stored_from_canonical[stored, axis] = -1 if flipped else 1
            stored_from_canonical[stored, 3] = shape[stored] - 1 if flipped else 0
        return (shape[order[0]], shape[order[1]], shape[order[2]]), affine @ stored_from_canonical


def read_slice(path: Path, index: int, *, window: IntensityWindow | None = None, axis: int = 2) -> np.ndarray:
    """Read one slice as 8-bit grey, (H, W); indices run through the slices of the first frame, then of the second.

    Without a window unscaled 8-bit volumes stay as they are, others are windowed to :data:`PERCENTILES` of the volume.
    """
    values = _plane(path, index, axis)
    require_finite(values, path)
    if window is None and _is_unscaled_uint8(path):
        return values.astype(np.uint8)
    return apply_window(values, window or volume_window(path))


def read_label_slice(path: Path, index: int, *, axis: int = 2) -> np.ndarray:
    """Read one slice of a label volume, (H, W) int32; raises :class:`UserError` for values that are not whole."""
    return whole_labels(_plane(path, index, axis), path)


def read_label_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a whole label volume as stored, int32, and its (4, 4) affine (voxel to millimetres, RAS).

    It has a fourth axis where the file holds several frames.
    """
    with reading(path, what="NIfTI file"):
        _, affine, _ = _geometry(path)
        stored = _stored(path)
        return whole_labels(stored[..., 0] if stored.shape[3] == 1 else stored, path), affine


def volume_window(path: Path) -> IntensityWindow:
    """Return :data:`PERCENTILES` of the volume's finite values as a window."""
    return _volume_window(path, path.stat().st_mtime_ns)


def whole_labels(values: np.ndarray, path: Path) -> np.ndarray:
    """Return ``values`` as int32; raises :class:`UserError` where they are not whole numbers."""
    require_finite(values, path)
    labels = np.rint(values).astype(np.int32)
    if not np.array_equal(labels, values):
        raise UserError(
            f"{path}: a label volume holds whole numbers, this one holds fractions. Save it with integer labels."
        )
    return labels


def _geometry(path: Path) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Return stored shape (3 axes), affine and orientation."""
    affine = nibabel.load(path).affine
    return _axes(path)[:3], affine, io_orientation(affine)


def _axes(path: Path) -> tuple[int, ...]:
    """Return the stored shape with four axes, the last that of frames; only further axes of length 1 may follow."""
    stored = nibabel.load(path).shape
    shape = stored + (1,) * (4 - len(stored))
    if any(length != 1 for length in shape[4:]):
        raise UserError(
            f"{path}: has {len(shape)} axes {shape}; a volume has three, and a fourth where it has frames. "
            "Save each channel as a file of its own."
        )
    return shape[:4]


def _plane(path: Path, index: int, axis: int) -> np.ndarray:
    """Read one canonical slice, rows and columns turned to the radiologist's view, float32."""
    with reading(path, what="NIfTI file"):
        shape, _, orientation = _geometry(path)
        stored_axis = int(np.flatnonzero(orientation[:, 0] == axis)[0])
        count, frames = shape[stored_axis], _axes(path)[3]
        if not 0 <= index < count * frames:
            many = f" in each of {frames} frames" if frames > 1 else ""
            raise UserError(f"{path}: slice {index} asked for, the volume has {count} along axis {axis}{many}.")
        frame, place = divmod(index, count)
        stored_place = place if orientation[stored_axis, 1] > 0 else count - 1 - place
        plane = _read_plane(path, stored_axis, stored_place, frame)
        rest = np.delete(orientation, stored_axis, axis=0)
        plane = np.flip(plane, tuple(k for k in range(2) if rest[k, 1] < 0))
        plane = plane if rest[0, 0] < rest[1, 0] else plane.T
    return np.ascontiguousarray(plane.T[::-1, ::-1])


def _read_plane(path: Path, axis: int, index: int, frame: int) -> np.ndarray:
    """Read one stored plane: from an uncompressed file that plane alone, from a compressed one via the whole file."""
    if path.name.lower().endswith(".gz"):
        return np.take(_stored(path)[..., frame], index, axis=axis)
    proxy = nibabel.load(path).dataobj
    selection: list[slice | int] = [slice(None)] * len(proxy.shape)
    for along, place in ((axis, index), (3, frame)):
        if along < len(selection):
            selection[along] = place
    plane = np.asarray(proxy[tuple(selection)], np.float32)
    return plane.reshape([length for k, length in enumerate((*proxy.shape, 1)[:3]) if k != axis])


def _stored(path: Path) -> np.ndarray:
    return _stored_volume(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # slices are read in order: without it every slice would decompress its whole volume again
def _stored_volume(path: Path, modified_ns: int) -> np.ndarray:
    volume = nibabel.load(path)
    values = np.asarray(volume.dataobj, np.float32)
    return values.reshape((volume.shape + (1,) * 4)[:4])


@lru_cache(maxsize=256)
def _volume_window(path: Path, modified_ns: int) -> IntensityWindow:
    with reading(path, what="NIfTI file"):
        values = np.asarray(nibabel.load(path).dataobj, np.float32)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise UserError(f"{path}: holds no finite value.")
    low, high = (float(value) for value in np.percentile(finite, PERCENTILES))
    return IntensityWindow(low, high if high > low else low + 1)


def _is_unscaled_uint8(path: Path) -> bool:
    header = nibabel.load(path).header
    slope, intercept = header.get_slope_inter()
    return header.get_data_dtype() == np.uint8 and slope in (None, 1) and intercept in (None, 0)
