"""What a client sent, as files in memory: recognised by content, unpacked within limits, its names forgotten."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from tskd.data import dicom, nifti
from tskd.data.files import is_hidden
from tskd.data.images import IMAGE_SUFFIXES, image_size
from tskd.data.memory_files import MemoryFile, MemoryFolder
from tskd.deploy.inputs import Failure, Item, NoScan, Remark, in_files
from tskd.errors import UserError
from tskd.serve.limits import Limits, Refused, without_paths

TYPES = "PNG, JPEG, TIFF, GIF, BMP, WebP, DICOM, NIfTI, or a ZIP file with one DICOM series"
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM")
_ZIP, _GZIP = (b"PK\x03\x04", b"PK\x05\x06"), b"\x1f\x8b"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SUFFIXES = (*IMAGE_SUFFIXES, ".dcm", ".dicom", ".nii")
_BLOCK = 2**20
_BESIDE = 100  # files of a ZIP that may lie beside the slices


def receive(name: str, content: bytes, limits: Limits) -> MemoryFolder:
    """Return the files of an upload; raises Refused for what is empty, of no known type, damaged or too large."""
    _require_plain(name)
    if not content:
        raise Refused(400, "The file is empty (0 bytes); send it again.")
    if content.startswith(_ZIP):
        return MemoryFolder.of(_unzipped(content, limits))
    suffix = _suffix(name)
    if content.startswith(_GZIP):  # names lie: packed files are called .nii, plain ones .nii.gz
        if suffix != ".nii":
            raise Refused(415, f"The file is packed with gzip and not called .nii.gz; allowed: {TYPES}.")
        content = _unpacked(content, limits.unpacked, limits)
    folder = MemoryFolder.of({f"upload{suffix}": content})
    if not _is_known(folder.files[0]):
        folder.close()
        raise Refused(415, f"The file is of no type that is read here; allowed: {TYPES}.")
    return folder


def find_item(folder: MemoryFolder, axis: int, limits: Limits) -> tuple[Item, list[str]]:
    """Return the one image, volume or series of an upload and remarks on it, its sizes held against the limits."""
    found = list(in_files(folder.files, folder, axis))
    items = [one for one in found if isinstance(one, Item)]
    if failure := next((one for one in found if isinstance(one, Failure)), None):
        raise Refused(422, without_paths(failure.problem, folder))
    remarks = [without_paths(one.text, folder) for one in found if isinstance(one, Remark)]
    if not items:
        kind = next((one.kind for one in found if isinstance(one, NoScan)), None)
        raise Refused(422, f"The file is not a scan but a {kind}." if kind else "There is no image in the ZIP file.")
    if len(items) > 1 and len({frame.path for one in items for frame in one.frames}) == 1:
        raise Refused(
            422,
            f"The file holds {len(items)} frames that form no volume; send them one by one (`tskd predict` takes all).",
        )
    if len(items) > 1:
        raise Refused(422, " ".join([f"The upload holds {len(items)} images or volumes; send one.", *remarks[:1]]))
    _require_size(items[0], axis, limits)
    return items[0], remarks


def _require_plain(name: str) -> None:
    if not name.strip(" .") or any(mark in name for mark in "/\\\0") or ":" in name[:2]:
        raise Refused(400, "The file's name is empty or holds a path; send it under its bare name.")


def _is_known(path: MemoryFile) -> bool:
    start = path.content[:12]
    picture = start.startswith(_PICTURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
    return picture or nifti.is_nifti(path) or dicom.is_dicom(path)


def _unpacked(content: bytes, room: int, limits: Limits) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            plain = file.read(room + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(422, "The file is damaged or cut short: it cannot be unpacked.") from error
    if len(plain) > room:
        raise _too_large(limits)
    if plain.startswith(_GZIP):  # its reader would unpack it once more, by limits of its own
        raise Refused(422, "The file is packed twice; unpack it once and send it again.")
    return plain


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"The file has more than {limits.unpacked // 2**20} MB when unpacked.")


def _unzipped(content: bytes, limits: Limits) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return dict(_contents(archive, list(_members(archive, limits)), limits))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, IndexError, NotImplementedError) as error:
        raise Refused(422, "The ZIP file is damaged or cut short.") from error


def _contents(
    archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo], limits: Limits
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files, packed NIfTI unpacked; all together have room for what may be unpacked."""
    room = limits.unpacked
    for number, one in enumerate(members, 1):
        suffix = _suffix(one.filename)
        with archive.open(one) as file:  # archive.read unpacks all there is before it cuts to the stated size
            content = file.read(one.file_size)
        if suffix == ".nii" and content.startswith(_GZIP):
            content = _unpacked(content, room, limits)
        room -= len(content)
        if room < 0:
            raise _too_large(limits)
        yield f"{number:05d}{suffix}", content


def _members(archive: zipfile.ZipFile, limits: Limits) -> Iterator[zipfile.ZipInfo]:
    """Yield the files of a ZIP that may be slices; nothing is unpacked before all of them are known to fit."""
    named = [one for one in archive.infolist() if PurePosixPath(one.filename).parts]  # not "" and ".", made by hand
    members = [one for one in named if not one.is_dir()]
    if len(members) > limits.slices + _BESIDE:
        raise Refused(413, f"The ZIP file holds {len(members)} files, more than {limits.slices} slices.")
    if sum(one.file_size for one in members) > limits.unpacked:
        raise Refused(413, f"The ZIP file has more than {limits.unpacked // 2**20} MB when unpacked.")
    if any(_leaves(one.filename) for one in members):
        raise Refused(400, "The ZIP file holds a name that leads out of it; pack the folder anew.")
    if any(one.flag_bits & 1 or one.compress_type not in _METHODS for one in members):
        raise Refused(422, "The ZIP file is encrypted or packed in a way that is not read; pack it plainly.")
    for one in members:
        parts = PurePosixPath(one.filename).parts
        if not any(map(is_hidden, parts)) and parts[-1] != "DICOMDIR" and _is_slice(archive, one):
            yield one


def _is_slice(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    name = f"start{_suffix(member.filename)}"
    with archive.open(member) as file, MemoryFolder.of({name: file.read(_BLOCK)}) as start:
        return _is_known(start.files[0])


def _suffix(name: str) -> str:
    """Return how a file ends here: ``.nii`` of a NIfTI, packed or not; nothing where it tells nothing of the type."""
    plain = name.lower()
    suffix = PurePosixPath(plain.removesuffix(".gz") if plain.endswith(".nii.gz") else plain).suffix
    return suffix if suffix in _SUFFIXES else ""


def _leaves(name: str) -> bool:
    plain = name.replace("\\", "/")
    return plain.startswith("/") or ":" in plain[:2] or ".." in plain.split("/")


def _require_size(item: Item, axis: int, limits: Limits) -> None:
    if len(item.frames) > limits.slices:
        raise Refused(413, f"The volume has {len(item.frames)} slices; at most {limits.slices} are taken.")
    sizes = _sizes(item, axis)
    if any(height * width > limits.pixels for height, width in sizes):
        raise Refused(413, f"An image or slice has more than {limits.pixels / 1e6:g} million pixels.")
    if sizes[0][0] * sizes[0][1] * len(item.frames) > limits.unpacked:
        raise Refused(413, f"The volume has more than {limits.unpacked // 2**20} million voxels.")


def _sizes(item: Item, axis: int) -> Sequence[tuple[int, int]]:
    """Return the sizes of an item's slices without decoding one; raises Refused where a file does not state its own."""
    path = item.frames[0].path
    if item.kind == "nifti":
        height, width = (side for number, side in enumerate(nifti.canonical_grid(path)[0]) if number != axis)
        return [(height, width)]
    try:
        if dicom.is_dicom(path):
            return [dicom.read_head(frame.path).size for frame in item.frames]
        return [image_size(path)]
    except UserError as error:
        folder = path.parent
        assert isinstance(folder, MemoryFolder)
        raise Refused(422, without_paths(str(error), folder)) from error
