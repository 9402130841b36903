"""What a DICOM file holds besides its pixels, how large it says it is, and whether it is a scan at all.

Sizes are compared with the file and with stated limits before anything is allocated. What pydicom and
highdicom warn of quotes what a file says of a patient, so it is switched off here, for the process.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.encaps import parse_basic_offsets, parse_fragments
from pydicom.errors import InvalidDicomError
from pydicom.filereader import _read_file_meta_info, read_partial, read_preamble
from pydicom.misc import size_in_bytes
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UID_dictionary,
)

from tskd.data.memory_files import MemoryFile, keeping
from tskd.data.reading import reading, require_size
from tskd.errors import UserError

MAX_FRAMES = 100_000
"""Of one file."""
MAX_VOXELS = 2**30
"""Of all frames of a file together; labels of a volume are held in memory until they are written."""
MAX_INFLATED = 256 * 2**20
"""Bytes of a deflated file when inflated: it cannot be read in parts."""

_DEFERRED = "1 MB"  # longer elements are left in the file until they are asked for
_MAX_ELEMENTS = 100_000  # outside of sequences
_MAGIC_OFFSET = 128
_PART = 2**20  # bytes inflated at once
_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_STANDARD = "1.2.840.10008."
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_KINDS = {
    f"{_STORAGE}481.1": None,  # a portal image is an image
    f"{_STORAGE}481.2": "RT dose (RTDOSE)",
    f"{_STORAGE}481.3": "RT structure set (RTSTRUCT)",
    f"{_STORAGE}481.5": "RT plan (RTPLAN)",
    f"{_STORAGE}481.8": "RT plan (RTPLAN)",
    f"{_STORAGE}481.": "radiotherapy object",
    f"{_STORAGE}66.1": "registration (REG)",
    f"{_STORAGE}66.2": "spatial fiducials",
    f"{_STORAGE}66.3": "registration (REG)",
    f"{_STORAGE}66.4": "segmentation (SEG)",
    f"{_STORAGE}66.5": "surface segmentation",
    f"{_STORAGE}66.7": "segmentation (SEG)",
    f"{_STORAGE}66": "raw data",
    f"{_STORAGE}67": "real world value mapping",
    f"{_STORAGE}88.59": "key object selection (KOS)",
    f"{_STORAGE}88.": "structured report (SR)",
    f"{_STORAGE}11.": "presentation state (PR)",
    f"{_STORAGE}9.": "waveform",
    f"{_STORAGE}104.": "encapsulated document",
    f"{_STORAGE}4.2": "MR spectroscopy",
    f"{_STANDARD}1.3.10": "table of contents (DICOMDIR)",
}
"""SOP classes (PS3.4 B.5) that are not scans; a UID that ends with a dot stands for all that begin so."""


def _silence() -> None:
    for name in ("pydicom", "highdicom"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|tskd\.data\.dicom|tskd\.deploy\.dicom)")


_silence()


_OF_PIXELS = (
    "Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation", "BitsStored",
    "PixelRepresentation",
)  # fmt: skip
"""Elements that pixels are read by, PS3.3 C.7.6.3; floats need the first five."""


@dataclass(frozen=True)
class PixelElement:
    """Where the pixels of a file lie."""

    keyword: str
    vr: str
    start: int
    """Of the value, in bytes from the beginning of the file."""
    length: int | None
    """Bytes; None: encapsulated."""


@dataclass(frozen=True)
class Head:
    """Everything of a file but its pixels."""

    path: Path
    data: pydicom.Dataset
    pixels: PixelElement | None
    frames: int
    syntax: UID
    """The transfer syntax of the pixels; of a file that states none, the one it was read by."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.data.Rows), int(self.data.Columns)

    def number(self, keyword: str) -> float | None:
        """Return a number of the file itself: see :func:`number`."""
        return number(self.data, keyword)


def is_dicom(path: Path) -> bool:
    """Tell by the extension ``.dcm``, the magic bytes or the first element whether a file is DICOM.

    One that cannot be opened counts as DICOM: it may be, and reading it then says what is wrong.
    """
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    try:
        with path.open("rb") as file:
            start = file.read(_MAGIC_OFFSET + 4)
    except OSError:
        return True
    return start[_MAGIC_OFFSET:] == b"DICM" or _begins_with_an_element(start)


def read_head(path: Path) -> Head:
    """Read everything but the pixels; raises :class:`UserError` where the file is damaged or larger than it can be."""
    with reading_dicom(path):
        status = path.stat()
        return _head(path, status.st_mtime_ns, status.st_size)


def kind_of(head: Head) -> str | None:
    """Return what a file is that is not a scan, such as ``RT structure set (RTSTRUCT)``; None for an image."""
    with reading_dicom(head.path):
        uid = str(head.data.get("SOPClassUID") or head.data.file_meta.get("MediaStorageSOPClassUID") or "")
    for prefix, kind in _KINDS.items():
        if uid == prefix or (prefix.endswith(".") and uid.startswith(prefix)):
            return kind
    if head.pixels is not None or "Rows" in head.data or not uid:
        return None
    if not uid.startswith(_STANDARD):
        return "private object without an image"
    name = UID_dictionary.get(uid, ("",))[0]
    return None if "Image" in name or not name else name.removesuffix(" Storage")


def require_image(head: Head, index: int | None = None) -> None:
    """Raise :class:`UserError` where a file has no pixels, impossible sizes, or not the frame that is asked for."""
    path = head.path
    if (kind := kind_of(head)) is not None:
        raise UserError(f"{path}: is not a scan but a {kind}. Leave it out.")
    if head.pixels is None:
        raise UserError(f"{path}: states no image: it has no pixels. Export it again, or remove it.")
    needed = _OF_PIXELS if head.pixels.keyword == "PixelData" else _OF_PIXELS[:5]
    if lacking := [keyword for keyword in needed if head.data.get(keyword) in (None, "")]:
        raise UserError(
            f"{path}: states no {' and no '.join(lacking)}, without which its pixels cannot be read. Export it again "
            "from where it was made, or leave it out."
        )
    if index is None and head.frames > 1:
        raise UserError(f"{path}: holds {head.frames} frames. Use the `dicom` layout, which reads each as an image.")
    if index is not None and not 0 <= index < head.frames:
        raise UserError(f"{path}: frame {index} asked for, the file holds {head.frames} (0 to {head.frames - 1}).")


def number(source: pydicom.Dataset, keyword: str) -> float | None:
    """Return an element as a finite float: the first of several; None where it is absent, empty or no such number."""
    try:
        value = source.get(keyword)
        if isinstance(value, pydicom.multival.MultiValue):
            value = value[0] if len(value) else None
        found = None if value is None or value == "" else float(value)
    except (ValueError, TypeError, ArithmeticError):
        return None
    return found if found is not None and abs(found) < float("inf") else None


@contextmanager
def open_dicom(path: Path) -> Iterator[BinaryIO]:
    """Yield the file, a deflated one inflated in memory; raises :class:`UserError` above :data:`MAX_INFLATED`."""
    if _is_deflated(path):
        status = path.stat()
        # of a file in memory it is not kept: what a server keeps has a bound, which counts what was sent
        inflated = (
            _inflate(path) if isinstance(path, MemoryFile) else _inflated(path, status.st_mtime_ns, status.st_size)
        )
        yield io.BytesIO(inflated)
        return
    with path.open("rb") as file:
        yield file


@contextmanager
def reading_dicom(path: Path) -> Iterator[None]:
    """The boundary of :mod:`tskd.data.reading` for DICOM."""
    with reading(path, _explain, what="DICOM file"):
        yield


def _explain(error: BaseException) -> str | None:
    if isinstance(error, InvalidDicomError):
        return "is not a DICOM file. Copy it again from the source or remove it."
    return None


def _begins_with_an_element(start: bytes) -> bool:
    """Tell whether bytes are the first element of a data set without preamble: group 2 or 8, with a plausible length.

    PS3.10 7.1 demands the preamble; files without one are written all the same, by older archives above all.
    """
    if len(start) < 16:
        return False
    group, element = struct.unpack("<HH", start[:4])
    if group not in (2, 8) or element > 0x18:
        return False
    if start[4:6] in (b"UL", b"UI", b"CS", b"SH", b"LO", b"DA", b"OB"):
        return True
    length = int(struct.unpack("<L", start[4:8])[0])
    return (element == 0 and length == 4) or (element > 0 and group == 8 and 0 < length <= 64 and length % 2 == 0)


@keeping(8)  # frames of one file are read one after another
def _head(path: Path, modified_ns: int, size: int) -> Head:
    with open_dicom(path) as file:
        _require_elements(file)
        in_memory = isinstance(file, io.BytesIO)
        data = read_partial(
            file, stop_when=_Until(), defer_size=None if in_memory else size_in_bytes(_DEFERRED), force=True
        )
        _require_plausible(data)
        element = _pixel_element(file, data)
        total = file.seek(0, io.SEEK_END)
        frames = _frames(data)
        if element is not None and all(data.get(keyword) not in (None, "") for keyword in _OF_PIXELS[:4]):
            _require_sizes(path, data, frames)
            _require_content(path, data, element, frames, file, total)
    return Head(path, data, element, frames, _syntax(data))


def _require_elements(file: BinaryIO) -> None:
    """Refuse what is all zeros behind the preamble and group 2: pydicom reads it to its end, 8 bytes at a time."""
    read_preamble(file, force=True)
    _read_file_meta_info(file)
    if file.read(8) == bytes(8):
        raise InvalidDicomError
    file.seek(0)


class _Until:
    """Tells pydicom where to stop: at the pixels, at a group that no file holds, or after more elements than any has.

    Zeros are read as elements of group 0 without end, 8 bytes each.
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        self.count += 1
        return tag in _PIXEL_KEYWORDS or tag >> 16 == 0 or self.count > _MAX_ELEMENTS


def _require_plausible(data: pydicom.Dataset) -> None:
    """Refuse what was read by force and is no DICOM: it has no element of group 8 or 0x28 among its first ones."""
    groups = {tag.group for tag in data.keys()}  # noqa: SIM118 (a Dataset iterates over elements)
    if not groups & {0x0004, 0x0008, 0x0010, 0x0028}:
        raise InvalidDicomError


def _pixel_element(file: BinaryIO, data: pydicom.Dataset) -> PixelElement | None:
    """Return the element at which reading stopped; None where it came to the end."""
    implicit, little = data.original_encoding
    order = "<" if little else ">"
    start = file.read(8)
    if len(start) < 8:
        return None
    group, element = struct.unpack(f"{order}HH", start[:4])
    keyword = _PIXEL_KEYWORDS.get(group << 16 | element)
    if keyword is None:
        return None
    if implicit:
        vr, length = "OW", struct.unpack(f"{order}L", start[4:])[0]
    else:
        vr, length = start[4:6].decode("ascii", "replace"), struct.unpack(f"{order}L", file.read(4))[0]
    return PixelElement(keyword, vr, file.tell(), None if length == _UNDEFINED_LENGTH else length)


def _syntax(data: pydicom.Dataset) -> UID:
    stated = data.file_meta.get("TransferSyntaxUID")
    if stated:
        return UID(str(stated))
    implicit, little = data.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _frames(data: pydicom.Dataset) -> int:
    frames = number(data, "NumberOfFrames") or 1
    if frames < 1 or frames != int(frames):
        raise ValueError("NumberOfFrames")
    return int(frames)


def _require_sizes(path: Path, data: pydicom.Dataset, frames: int) -> None:
    rows, columns = int(data.Rows), int(data.Columns)
    require_size(rows, columns, path)
    if frames > MAX_FRAMES or frames * rows * columns > MAX_VOXELS:
        raise UserError(
            f"{path}: states {frames} frames of {rows} x {columns}; at most {MAX_FRAMES} frames and "
            f"{MAX_VOXELS // 1_000_000} million pixels of one file are read. Split it into files of fewer frames."
        )


def _require_content(
    path: Path, data: pydicom.Dataset, element: PixelElement, frames: int, file: BinaryIO, total: int
) -> None:
    """Raise :class:`UserError` where the file cannot hold as many frames as it states."""
    if element.length is None:
        held = 1 if frames == 1 else _fragments(file, element)
        if held < frames:
            raise UserError(
                f"{path}: states {frames} frames and holds {held} at most: it is cut short or damaged. "
                "Copy it again from the source, or remove it."
            )
        return
    needed = frames * _frame_bits(data) // 8
    held = min(element.length, total - element.start)
    if held < needed:
        raise UserError(
            f"{path}: states {frames} frame(s) of {int(data.Rows)} x {int(data.Columns)}, which need {needed} bytes, "
            f"and holds {held}: it is cut short or damaged. Copy it again from the source, or remove it."
        )


def _frame_bits(data: pydicom.Dataset) -> int:
    bits = int(data.Rows) * int(data.Columns) * int(data.get("SamplesPerPixel") or 1) * int(data.BitsAllocated)
    return bits * 2 // 3 if data.get("PhotometricInterpretation") == "YBR_FULL_422" else bits


def _fragments(file: BinaryIO, element: PixelElement) -> int:
    file.seek(element.start)
    parse_basic_offsets(file)
    return int(parse_fragments(file)[0])


def _is_deflated(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(_MAGIC_OFFSET + 4)[_MAGIC_OFFSET:] != b"DICM":
            return False
        if DeflatedExplicitVRLittleEndian.encode() not in file.read(1024):
            return False
    return bool(_meta_information(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian)


def _meta_information(path: Path) -> pydicom.Dataset:
    """Return group 2 of a file with a preamble; pydicom's own reader takes a name on the disk alone."""
    with path.open("rb") as file:
        read_preamble(file, force=False)
        return _read_file_meta_info(file)


@lru_cache(maxsize=1)
def _inflated(path: Path, modified_ns: int, size: int) -> bytes:
    return _inflate(path)


def _inflate(path: Path) -> bytes:
    """Return a deflated file as one in plain explicit little endian, PS3.5 A.5."""
    group_length: Any = _meta_information(path).FileMetaInformationGroupLength
    syntax = ExplicitVRLittleEndian.encode() + b"\0"
    plain = io.BytesIO()
    plain.write(bytes(_MAGIC_OFFSET) + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    with path.open("rb") as file:
        file.seek(_MAGIC_OFFSET + 4 + 12 + int(group_length))
        while not inflater.eof and (part := inflater.unconsumed_tail or file.read(_PART)):
            plain.write(inflater.decompress(part, _PART))
            if plain.tell() > MAX_INFLATED:
                raise UserError(
                    f"{path}: is deflated and holds more than {MAX_INFLATED // 2**20} MiB when inflated. "
                    "Save it without compression, or with one for images such as JPEG 2000."
                )
    if not inflater.eof:
        raise EOFError("the compressed data end too early")
    return plain.getvalue()
