"""NIfTI volumes as slices, in canonical orientation and with the spacing of the slice's plane, and labels laid on them.

A slice of the canonical (RAS) volume is shown with the head or the front at the top and the patient's right at the
left, as radiologists read it and as axial DICOM slices are stored.

What a header states is held against the file and against :data:`MAX_VOXELS` before anything is read. A compressed file
is unpacked once, to its end and with its checksum, into a temporary file (small ones into memory), and slices are read
from there one by one: memory holds a slice, a sample of the values for the window, up to four
small volumes, and up to four :data:`SLAB`.
"""

from __future__ import annotations

import errno
import gzip
import io
import logging
import math
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError

from tskd.data.intensity import IntensityWindow, apply_window, require_finite
from tskd.data.labels import values_in, whole
from tskd.data.memory_files import keeping
from tskd.data.reading import MAX_PIXELS, reading
from tskd.errors import UserError

PERCENTILES = (0.5, 99.5)
"""Without a window, these percentiles of the whole volume become black and white: magnetic resonance has no unit."""
MAX_VOXELS = 2**30
"""The most voxels of a file, all frames counted."""
MAX_SLICES = 250_000
"""The most slices of a file along any axis, all frames counted."""

SAMPLED = 2**24
"""Values that the percentiles of a larger volume are taken from: 64 MiB."""
IN_MEMORY = 2**26
"""Bytes of an unpacked volume that are kept in memory rather than on the disk."""
SLAB = 2**22
"""Bytes of the planes across a file that are read at once, as they are stored."""
_DEFLATE_RATIO = 1032  # zlib packs no more than so many bytes into one
_TAIL = 2**24  # bytes behind the voxels that are still read, for the checksum that follows them
_BLOCK = 2**20
_FLAT = 1e-4  # volume of a voxel whose edges have length 1, below which its axes lie in one plane
_MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}  # by the spatial part of xyzt_units; unknown units are read as mm
_UNSIZED = np.diag([-1.0, 1.0, 1.0, 1.0])  # as nibabel lays voxels of which nothing is stated
_PATIENTS_TEXT = ("descrip", "aux_file", "intent_name", "db_name", "data_type")

_SILENT = logging.getLogger(f"{__name__}.header")  # nibabel's own prints what a header holds
_SILENT.disabled = True

_Result = TypeVar("_Result")


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
    return _head(path).axes[3]


def slice_spacing(path: Path, *, axis: int = 2) -> tuple[float, float, float] | None:
    """Return millimetres along (row, column, slice) for slices along a canonical axis; None where none are stated."""
    if not _head(path).measured:
        return None
    _, affine = canonical_grid(path)
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    columns, rows = (other for other in range(3) if other != axis)
    return float(zooms[rows]), float(zooms[columns]), float(zooms[axis])


def canonical_grid(path: Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape and (4, 4) affine in mm of the volume in canonical orientation, from the file's head alone."""
    head = _head(path)
    orientation = head.orientation
    left, front, top = (head.axes[stored] for stored in np.argsort(orientation[:, 0]))
    return (left, front, top), head.affine @ inv_ornt_aff(orientation, head.axes[:3])


def read_slice(path: Path, index: int, *, window: IntensityWindow | None = None, axis: int = 2) -> np.ndarray:
    """Read one slice as 8-bit grey, (H, W), or RGB, (H, W, 3); indices run through the first frame, then the second.

    Without a window unscaled 8-bit volumes stay as they are, others are windowed to :data:`PERCENTILES` of the volume.
    """
    values = read_values(path, index, axis=axis)
    require_finite(values, path)
    if window is None and _head(path).is_plain_uint8:
        return values.astype(np.uint8)
    return apply_window(values, window or volume_window(path))


def read_values(path: Path, index: int, *, axis: int = 2) -> np.ndarray:
    """Read one slice as ``read_slice`` numbers and shows it, (H, W) or (H, W, 3): the values of the file, rescaled."""
    plane = _plane(path, index, axis)
    return plane if plane.dtype.names is None else np.stack([plane[name] for name in "RGB"], axis=-1)


def read_label_slice(path: Path, index: int, *, axis: int = 2) -> np.ndarray:
    """Read one slice of a label volume, (H, W) integers; raises :class:`UserError` for values that are not whole."""
    return whole_labels(_plane(path, index, axis), path)


def read_label_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a whole label volume as stored, int32, and its (4, 4) affine (voxel to millimetres, RAS).

    It has a fourth axis where the file holds several frames.
    """
    head = _head(path)
    labels = np.empty(head.axes, np.int32, order="F")
    for place, frame, plane in _stored_planes(path):
        labels[:, :, place, frame] = whole_labels(plane, path)
    return labels[..., 0] if head.axes[3] == 1 else labels, head.affine


def label_values(path: Path) -> set[int]:
    """Return the values that occur in a label volume, read plane by plane."""
    return {int(label) for _, _, plane in _stored_planes(path) for label in values_in(whole_labels(plane, path))}


def volume_window(path: Path) -> IntensityWindow:
    """Return :data:`PERCENTILES` of the volume's finite values as a window; of a sample where there are 16 million."""
    return _volume_window(path, *_stamp(path))


def whole_labels(values: np.ndarray, path: Path) -> np.ndarray:
    """Return ``values`` as integers; raises :class:`UserError` where they are not whole, rounding set aside."""
    if values.dtype.names is not None:
        raise UserError(f"{path}: a label volume holds whole numbers, this one holds colours. Save label numbers.")
    return whole(values, path)


def labels_like(path: Path, planes: Iterable[np.ndarray], *, axis: int = 2) -> bytes:
    """Return a ``.nii.gz`` file with labels for every voxel of a file, in the place where each reader sees the file.

    ``planes`` are (H, W) uint8, as ``read_slice`` numbers and shows them along ``axis``. Both transforms, their codes,
    voxel sizes and units are the file's own, bit for bit; type, scaling and intent are those of labels; free text and
    extensions are left out, since they may tell who the patient is. Raises :class:`UserError` where planes do not fit.
    """
    head = _head(path)
    stored_axis, count, rest = _slicing(head, axis)
    voxels = np.zeros(head.axes, np.uint8, order="F")
    slices = np.moveaxis(voxels, (3, stored_axis), (0, 1))
    left = count * head.axes[3]
    for number, plane in enumerate(planes):
        stored = _as_stored(plane, rest)
        if not left or stored.shape != slices.shape[2:]:
            raise _misfit(path)
        frame, place = divmod(number, count)
        slices[frame, _stored_place(head, stored_axis, place)] = stored
        left -= 1
    if left:
        raise _misfit(path)
    header = _label_header(head.stored)
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=6, mtime=0) as file:
        file.write(header.binaryblock.ljust(int(header["vox_offset"]), b"\0"))
        file.write(voxels.T.data)  # contiguous: the first axis varies fastest
    return content.getvalue()


@dataclass(frozen=True)
class _Head:
    """What a file's header states, held against the file's length."""

    stored: Nifti1Header
    """As it is in the file."""
    axes: tuple[int, int, int, int]
    """The stored shape, the last axis that of frames."""
    affine: np.ndarray
    """(4, 4), voxel to millimetres, RAS."""
    measured: bool
    """Whether the size of a voxel is stated."""
    dtype: np.dtype[Any]
    scaling: tuple[float, float]
    """Slope and intercept."""
    offset: int
    """Where the voxels begin."""
    packed: bool

    @property
    def orientation(self) -> np.ndarray:
        """(3, 2): canonical axis and direction of each stored axis."""
        return io_orientation(self.affine)

    @property
    def end(self) -> int:
        """Where the voxels end."""
        return self.offset + math.prod(self.axes) * self.dtype.itemsize

    @property
    def is_plain_uint8(self) -> bool:
        return self.dtype.names is not None or (self.dtype == np.uint8 and self.scaling == (1.0, 0.0))

    def proxy(self, file: IO[bytes]) -> ArrayProxy:
        """Return what reads parts of the voxels from an unpacked file, one thread at a time."""
        return ArrayProxy(file, (self.axes, self.dtype, self.offset, *self.scaling), mmap=False)


def _shared(size: int) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Keep a function's last results, and let one thread work at a time: many ask for the same volume at once."""

    def wrap(function: Callable[..., _Result]) -> Callable[..., _Result]:
        cached, lock = keeping(size)(function), threading.RLock()

        def call(path: Path, *arguments: Any) -> _Result:
            with lock:
                return cached(path, *arguments)

        return call

    return wrap


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes where the file does."""
    with reading(path):
        status = path.stat()
    return status.st_mtime_ns, status.st_size


def _head(path: Path) -> _Head:
    return _read_head(path, *_stamp(path))


@_shared(256)
def _read_head(path: Path, modified_ns: int, length: int) -> _Head:
    with reading(path, _explain, what="NIfTI file"):
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"  # names lie: packed files are called .nii, plain ones .nii.gz
            file.seek(0)
            block = (gzip.GzipFile(fileobj=file) if packed else file).read(Nifti2Header.sizeof_hdr)
        stored = _header(path, block)
        dtype = _dtype(path, stored)
        checked = stored.copy()
        checked.check_fix(_SILENT)  # mends what nibabel mends as it reads, such as negative sizes
        affine, measured = _place(path, stored, checked)
        slope, intercept = checked.get_slope_inter() if dtype.names is None else (None, None)
        scaling = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
        offset = max(int(checked.get_data_offset()), checked.single_vox_offset)
        head = _Head(stored, _axes(path, checked), affine, measured, dtype, scaling, offset, packed)
        _require_size(path, head, length)
    return head


def _header(path: Path, block: bytes) -> Nifti1Header:
    """Return the header as stored, NIfTI-1 or NIfTI-2 by its stated length, without its extensions."""
    for kind in (Nifti1Header, Nifti2Header):
        if kind.sizeof_hdr in (int.from_bytes(block[:4], order) for order in ("little", "big")):
            if len(block) < kind.sizeof_hdr:
                raise EOFError
            header = kind(block[: kind.sizeof_hdr], check=False)
            if header["magic"].item() == header.pair_magic.rstrip(b"\0"):
                raise UserError(f"{path}: its voxels lie in another file (.img). Save both as one .nii file.")
            return header
    raise UserError(
        f"{path}: is not a NIfTI file (damaged, or another type under this name). Copy it again from the source, save "
        "it as NIfTI, or remove it."
    )


def _place(path: Path, stored: Nifti1Header, checked: Nifti1Header) -> tuple[np.ndarray, bool]:
    """Return the affine in mm, and whether it has the size of a voxel: by the sform, else the qform, else voxel sizes.

    A form whose axes do not span a volume is passed over, as ITK does. Where no code is above 0, only sizes are stated.
    """
    unit = np.diag([*[_MILLIMETRES.get(int(stored["xyzt_units"]) & 7, 1.0)] * 3, 1.0])
    forms = {name: getattr(checked, f"get_{name}") for name in ("sform", "qform") if checked[f"{name}_code"] > 0}
    sizes = stored["pixdim"][1:4]
    sized = bool((np.isfinite(sizes) & (sizes != 0)).all())
    for name, form in forms.items():
        affine = _regular(form)
        if affine is not None:
            return unit @ affine, sized or name == "sform"
    if forms:
        raise UserError(
            f"{path}: its {' and '.join(forms)} put all voxels into one plane, so it is not known where the scan lies. "
            "Write its orientation anew (nibabel: set_sform and set_qform), or export the scan again."
        )
    base = _regular(checked.get_base_affine)
    return (unit @ _UNSIZED, False) if base is None else (unit @ base, sized)


def _regular(form: Callable[[], np.ndarray]) -> np.ndarray | None:
    """Return a form's affine where it is one: finite, with three axes that span a volume, however small its unit."""
    try:
        affine = form()
    except (HeaderDataError, ValueError):  # a quaternion that is none
        return None
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and (lengths > 0).all()):
        return None
    spans = abs(np.linalg.det(affine[:3, :3] / lengths)) > _FLAT and np.isfinite(io_orientation(affine)).all()
    return affine if spans else None


def _dtype(path: Path, header: Nifti1Header) -> np.dtype[Any]:
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V1")
    if dtype.names is None and dtype.kind not in "iuf":
        what = "complex numbers" if dtype.kind == "c" else "a type of voxel that no reader knows"
        raise UserError(f"{path}: holds {what}. Save what is to be seen with 16-bit integers or 32-bit floats.")
    return dtype


def _axes(path: Path, header: Nifti1Header) -> tuple[int, int, int, int]:
    """Return the stored shape with four axes, the last that of frames; only further axes of length 1 may follow."""
    stored = tuple(int(length) for length in header.get_data_shape())
    shape = stored + (1,) * (4 - len(stored))
    if any(length != 1 for length in shape[4:]):
        raise UserError(
            f"{path}: has {len(shape)} axes {shape}; a volume has three, and a fourth where it has frames. "
            "Save each channel as a file of its own."
        )
    if min(shape) < 1 or not stored:
        raise UserError(f"{path}: states the shape {stored}, in which there is no voxel. Export it again or remove it.")
    return shape[0], shape[1], shape[2], shape[3]


def _require_size(path: Path, head: _Head, length: int) -> None:
    """Refuse what the file cannot hold, and what is beyond the stated limits, before anything is allocated."""
    sides = sorted(head.axes[:3])
    if head.end > length * (_DEFLATE_RATIO if head.packed else 1):
        raise UserError(
            f"{path}: is cut short, or its header is wrong: it states the shape {head.axes}, {head.end} bytes, and the "
            f"file has {length}{' packed' if head.packed else ''}. Copy it again from the source, or remove it."
        )
    if math.prod(head.axes) > MAX_VOXELS:
        raise UserError(
            f"{path}: the shape {head.axes} has more than {MAX_VOXELS // 10**6} million voxels. Cut it into parts."
        )
    if sides[2] * head.axes[3] > MAX_SLICES or sides[2] * sides[1] > MAX_PIXELS:
        raise UserError(
            f"{path}: the shape {head.axes} has more than {MAX_SLICES} slices, or a slice of more than "
            f"{MAX_PIXELS // 10**6} million pixels. Cut it into parts first."
        )


def _explain(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"there is no room to unpack it in the folder for temporary files, {tempfile.gettempdir()}. Free some, or "
            "name another folder in the environment variable TMPDIR."
        )
    if isinstance(error, HeaderDataError):
        return "the NIfTI file's header is damaged. Copy it again from the source, or remove it."
    return None


@contextmanager
def _voxels(path: Path) -> Iterator[ArrayProxy]:
    """Yield what reads parts of the voxels, (X, Y, Z, T): only what is asked for is read."""
    head = _head(path)
    with reading(path, _explain, what="NIfTI file"):
        if head.packed:
            yield _unpacked(path, *_stamp(path))
        else:
            with path.open("rb") as file:
                yield head.proxy(file)


@_shared(4)  # slices are read in order, image and labels side by side
def _unpacked(path: Path, modified_ns: int, length: int) -> ArrayProxy:
    """Unpack a file to its end, so that its checksum is read; what it is unpacked into has no name, and leaves none."""
    head = _head(path)
    unpacked = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 (the proxy keeps it open)
    size = 0
    with path.open("rb") as file, gzip.open(file) as packed:
        while block := packed.read(_BLOCK):
            unpacked.write(block[: max(head.end - size, 0)])
            size += len(block)
            if size > head.end + _TAIL:
                raise UserError(
                    f"{path}: unpacks to more than the {head.end} bytes that its header states. Save it again."
                )
    if size < head.end:
        raise EOFError
    return head.proxy(unpacked)


def _stored_planes(path: Path) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield place, frame and values of every plane along the third stored axis, in the order of the file."""
    _, _, depth, frames = _head(path).axes
    with _voxels(path) as voxels:
        for frame in range(frames):
            for place in range(depth):
                yield place, frame, np.asarray(voxels[:, :, place, frame])


@_shared(256)
def _volume_window(path: Path, modified_ns: int, length: int) -> IntensityWindow:
    head = _head(path)
    step = -(-math.prod(head.axes) // SAMPLED)
    planes = (plane for _, _, plane in _stored_planes(path))
    with np.errstate(over="ignore"):  # what is too large for single precision does not count
        parts = [plane.ravel()[number % step :: step].astype(np.float32) for number, plane in enumerate(planes)]
    values = np.concatenate(parts)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise UserError(f"{path}: holds no value that is finite in 32 bits. Rescale its values, or export it again.")
    low, high = (float(value) for value in np.percentile(finite, PERCENTILES))
    return IntensityWindow(low, high if high > low else low + max(1.0, abs(low) * 1e-6))


def _slicing(head: _Head, axis: int) -> tuple[int, int, np.ndarray]:
    """Return the stored axis that is a canonical one, its length, and the orientation of the two others."""
    stored_axis = int(np.flatnonzero(head.orientation[:, 0] == axis)[0])
    return stored_axis, head.axes[stored_axis], np.delete(head.orientation, stored_axis, axis=0)


def _stored_place(head: _Head, stored_axis: int, place: int) -> int:
    return place if head.orientation[stored_axis, 1] > 0 else head.axes[stored_axis] - 1 - place


def _as_shown(plane: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Turn a stored plane to the radiologist's view."""
    plane = np.flip(plane, tuple(k for k in range(2) if rest[k, 1] < 0))
    plane = plane if rest[0, 0] < rest[1, 0] else plane.T
    return np.ascontiguousarray(plane.T[::-1, ::-1])


def _as_stored(plane: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Undo :func:`_as_shown`."""
    plane = plane[::-1, ::-1].T
    plane = plane if rest[0, 0] < rest[1, 0] else plane.T
    return np.flip(plane, tuple(k for k in range(2) if rest[k, 1] < 0))


def _plane(path: Path, index: int, axis: int) -> np.ndarray:
    """Read one canonical slice, rows and columns turned to the radiologist's view, in the type of the file."""
    head = _head(path)
    stored_axis, count, rest = _slicing(head, axis)
    frames = head.axes[3]
    if not 0 <= index < count * frames:
        many = f" in each of {frames} frames" if frames > 1 else ""
        raise UserError(f"{path}: slice {index} asked for, the volume has {count} along axis {axis}{many}.")
    frame, place = divmod(index, count)
    return _as_shown(_read_plane(path, stored_axis, _stored_place(head, stored_axis, place), frame), rest)


def _read_plane(path: Path, axis: int, index: int, frame: int) -> np.ndarray:
    """Return one stored plane; what is along the first axis lies scattered in the file, and is read in slabs."""
    if axis == 0:
        across, plane = divmod(index, _slab_width(_head(path)))
        return np.array(_slab(path, *_stamp(path), across, frame)[plane])
    with _voxels(path) as voxels:
        return np.asarray(voxels[:, :, index, frame] if axis == 2 else voxels[:, index, :, frame])


def _slab_width(head: _Head) -> int:
    """Return how many planes along the first axis are read at once."""
    _, rows, depth, _ = head.axes
    return max(1, SLAB // (rows * depth * head.dtype.itemsize))


@_shared(4)  # image and labels side by side, as above
def _slab(path: Path, modified_ns: int, length: int, number: int, frame: int) -> np.ndarray:
    """Return neighbouring planes along the first axis, (planes, Y, Z): each of them alone would take as long."""
    width = _slab_width(_head(path))
    with _voxels(path) as voxels:
        depth = voxels.shape[2]
        parts = (voxels[:, :, place, frame][number * width : (number + 1) * width] for place in range(depth))
        first = next(parts)
        slab = np.empty((*first.shape, depth), first.dtype)
        slab[..., 0] = first
        for place, part in enumerate(parts, start=1):
            slab[..., place] = part
    return slab


def _misfit(path: Path) -> UserError:
    return UserError(f"{path}: the labels have not the shape of the volume. Give one mask for each of its slices.")


def _label_header(stored: Nifti1Header) -> Nifti1Header:
    header = stored.copy()
    header.set_data_dtype(np.uint8)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"] = header["cal_max"] = 0
    header.set_intent("label")
    for name in _PATIENTS_TEXT:
        if name in header.keys():  # noqa: SIM118 (no mapping)
            header[name] = b""
    header["vox_offset"] = header.single_vox_offset
    return header
