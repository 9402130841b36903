"""What becomes of damaged and hostile files: mutated files of every format, each predicted in a process that may die.

    python benchmarks/fuzz.py --minutes 30 --seed 0 --keep FOLDER

Each input is a small good file of one format with some bytes changed, cut out, doubled, moved in from another file or
replaced by numbers at the edge of their type. It goes the whole way of `tskd predict` but for the network, whose answer
is blank; a SEG or RTSTRUCT goes the way of `tskd check`, as the label of a good series. Allowed are a mask, and a
message that names the file. Everything else is counted: another exception (crash), a process that dies, an answer that
takes longer than ``LIMIT`` seconds (hang), a patient's number on stderr (leak). Each image is read as a label too. The
peak is the memory of the process, libraries included; its address space is bounded, so that a hostile size cannot take
the machine down.
"""

from __future__ import annotations

import argparse
import gzip
import io
import multiprocessing
import os
import random
import resource
import shutil
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, cast

import nibabel
import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom.sr.codedict import codes
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
    RTStructureSetStorage,
    generate_uid,
)

from tskd.data.check import inspect
from tskd.data.images import read_mask_indices
from tskd.deploy.bundle import Bundle
from tskd.deploy.predict import predict_paths
from tskd.errors import UserError

LIMIT = 20.0
"""Seconds that one input may take."""
MEMORY = 6 << 30
"""Bytes of address space of the process that reads."""
SIDE = 64
PLANTED = "PLANTED^PATIENT"
"""PatientID of the DICOM files: it must not be printed."""

SLICES = 3
"""Of the series that SEG and RTSTRUCT are drawn on."""
MASKS = "masks"
"""Folder of a data set in which they lie, so that one that does not fit its series has to be named."""

_DRAWN = ("seg_", "contours")
"""How the names of these objects begin."""

Files = Mapping[str, bytes]


def good_files() -> dict[str, bytes]:
    """Return file name -> bytes: one small good file of each kind that is read."""
    grey = (np.add.outer(np.arange(SIDE), np.arange(SIDE)) * 5 % 256).astype(np.uint8)
    colour = np.stack([grey, grey.T, 255 - grey], axis=-1)
    return {**_pictures(grey, colour), **_tiffs(grey, colour), **_volumes(grey), **_dicoms(grey), **_objects(grey)}


def series() -> dict[str, bytes]:
    """Return name in a data set -> bytes of the slices that the SEG and RTSTRUCT of :func:`good_files` label."""
    grey = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.uint8)
    return {f"images/a/{number}.dcm": _bytes(_scan(grey + number, number)) for number in range(SLICES)}


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return ``data`` changed in one to four places; half of them lie in the first 512 bytes, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        end = len(changed) if rng.random() < 0.5 else min(512, len(changed))
        place = rng.randrange(max(end, 1))
        rng.choice(_CHANGES)(changed, place, other, rng)
    return bytes(changed)


def _flip(changed: bytearray, place: int, other: bytes, rng: random.Random) -> None:
    if changed:
        changed[place] ^= 1 << rng.randrange(8)


def _edge(changed: bytearray, place: int, other: bytes, rng: random.Random) -> None:
    """Write a number at the edge of its type."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    top = 1 << (8 * size)
    value = rng.choice((0, 1, top - 1, top // 2, top // 2 - 1, top // 256))
    changed[place : place + size] = value.to_bytes(size, cast(Any, order))


def _text(changed: bytearray, place: int, other: bytes, rng: random.Random) -> None:
    """Write what decimal strings and texts must not hold."""
    changed[place : place + 3] = rng.choice((b"inf", b"nan", b"-1 ", b"9e9", b"\xff\xfe\x00", b"\\\\\\"))


def _cut(changed: bytearray, place: int, other: bytes, rng: random.Random) -> None:
    del changed[place:]


def _remove(changed: bytearray, place: int, other: bytes, rng: random.Random) -> None:
    del changed[place : place + rng.randrange(1, 64)]


def _double(changed: bytearray, place: int, other: bytes, rng: random.Random) -> None:
    changed[place:place] = changed[place : place + rng.randrange(1, 64)]


def _splice(changed: bytearray, place: int, other: bytes, rng: random.Random) -> None:
    begin = rng.randrange(max(len(other), 1))
    changed[place : place + 32] = other[begin : begin + 32]


_CHANGES: tuple[Callable[[bytearray, int, bytes, random.Random], None], ...] = (
    _flip, _flip, _edge, _edge, _edge, _text, _cut, _remove, _double, _splice,
)  # fmt: skip


def _pictures(grey: np.ndarray, colour: np.ndarray) -> Files:
    palette = Image.fromarray(colour).convert("P")
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "grey.png": _saved(grey, "PNG"),
        "deep.png": _saved(grey.astype(np.uint16) * 200, "PNG"),
        "alpha.png": _saved(np.dstack([colour, grey]), "PNG"),
        "palette.png": _saved(palette, "PNG"),
        "bilevel.png": _saved(Image.fromarray(grey).convert("1"), "PNG"),
        "photo.jpg": _saved(colour, "JPEG", exif=turned),
        "progressive.jpg": _saved(colour, "JPEG", progressive=True),
        "grey.gif": _saved(grey, "GIF"),
        "colour.bmp": _saved(colour, "BMP"),
        "colour.webp": _saved(colour, "WEBP", lossless=True),
    }


def _saved(values: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(content, kind, **options)
    return content.getvalue()


def _tiffs(grey: np.ndarray, colour: np.ndarray) -> Files:
    kinds: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "plain.tif": (grey, {}),
        "deflate.tif": (grey, {"compression": "zlib"}),
        "white_is_zero.tif": (grey, {"photometric": "miniswhite"}),
        "deep.tif": (grey.astype(np.uint16) * 99, {"tile": (16, 16)}),
        "deep_colour.tif": (colour.astype(np.uint16) * 99, {"photometric": "rgb"}),
        "float.tif": (grey.astype(np.float32) / 255, {}),
        "big.tif": (grey, {"bigtiff": True}),
    }
    files = {"lzw.tif": _saved(grey, "TIFF", compression="tiff_lzw")}
    for name, (values, options) in kinds.items():
        content = io.BytesIO()
        tifffile.imwrite(content, values, **options)
        files[name] = content.getvalue()
    return files


def _volumes(grey: np.ndarray) -> Files:
    affine = np.diag([-0.9, 0.9, 3.0, 1.0])
    voxels = np.stack([grey, grey.T, 255 - grey], axis=-1).astype(np.int16)
    volume = nibabel.Nifti1Image(voxels, affine)
    volume.header.set_xyzt_units("mm")
    frames = nibabel.Nifti1Image(np.stack([voxels, voxels], axis=-1), affine)
    second = nibabel.Nifti2Image(voxels, affine)
    return {
        "plain.nii": volume.to_bytes(),
        "packed.nii.gz": gzip.compress(volume.to_bytes(), mtime=0),
        "frames.nii": frames.to_bytes(),
        "second.nii": second.to_bytes(),
        "second.nii.gz": gzip.compress(second.to_bytes(), mtime=0),
    }


def _dicoms(grey: np.ndarray) -> Files:
    plain = _dicom(grey, ExplicitVRLittleEndian)
    files = {"plain.dcm": plain}
    files["implicit.dcm"] = _dicom(grey, ImplicitVRLittleEndian)
    files["big_endian.dcm"] = _dicom(grey, ExplicitVRBigEndian)
    files["deflated.dcm"] = _dicom(grey, DeflatedExplicitVRLittleEndian)
    files["frames.dcm"] = _dicom(np.stack([grey, grey.T, grey]), ExplicitVRLittleEndian)
    for name, syntax in (("rle", RLELossless), ("jpeg2000", JPEG2000Lossless)):
        dataset = pydicom.dcmread(io.BytesIO(plain))
        dataset.compress(syntax)
        files[f"{name}.dcm"] = _bytes(dataset)
    return files


def _dicom(values: np.ndarray, syntax: pydicom.uid.UID) -> bytes:
    return _bytes(_image(values, syntax))


def _image(values: np.ndarray, syntax: pydicom.uid.UID) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["instance"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    dataset.Modality, dataset.PatientID, dataset.InstanceNumber = "MR", PLANTED, 1
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.8], 5
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -100
    dataset.WindowCenter, dataset.WindowWidth = 600, 1200
    stored = values.astype(np.uint16) * 5
    if values.ndim == 3:
        dataset.NumberOfFrames = len(values)
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    big = syntax == ExplicitVRBigEndian
    dataset.add_new("PixelData", "OW", stored.astype(">u2" if big else "<u2").tobytes())
    return dataset


def _scan(values: np.ndarray, number: int) -> pydicom.Dataset:
    """Return one slice of a series, with what objects copy from the scans that they are drawn on."""
    dataset = _image(values, ExplicitVRLittleEndian)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    dataset.InstanceNumber, dataset.ImagePositionPatient = number + 1, [0, 0, 5 * number]
    for name in ("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"):
        setattr(dataset, name, "")
    dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = PLANTED, "", ""
    return dataset


def _objects(grey: np.ndarray) -> Files:
    """Return SEG of each kind and an RTSTRUCT on :func:`series`."""
    scans = [pydicom.dcmread(io.BytesIO(data)) for data in series().values()]
    inside = np.stack([grey > 128] * SLICES).astype(np.uint8)
    kinds: dict[str, tuple[np.ndarray, str, dict[str, Any]]] = {
        "seg_binary.dcm": (inside, "BINARY", {}),
        "seg_fractional.dcm": (inside.astype(np.float32), "FRACTIONAL", {}),
        "seg_labels.dcm": (inside, "LABELMAP", {}),
        "seg_rle.dcm": (inside, "LABELMAP", {"transfer_syntax_uid": RLELossless}),
    }
    files = {name: _bytes(_segmentation(scans, *rest)) for name, rest in kinds.items()}
    return files | {"contours.dcm": _bytes(_contours(scans))}


def _segmentation(
    scans: Sequence[pydicom.Dataset], pixels: np.ndarray, kind: str, options: Mapping[str, Any]
) -> pydicom.Dataset:
    import highdicom  # not above: the process that reads would import it with its peak of memory

    manual = highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
    segment = highdicom.seg.SegmentDescription(1, "lesion", codes.SCT.Organ, codes.SCT.Liver, manual)
    uids = [generate_uid(entropy_srcs=[kind, which]) for which in ("seg series", "seg instance")]
    return highdicom.seg.Segmentation(
        scans, pixels, kind, [segment], uids[0], 9, uids[1], 1, "made", "up", "1", "1", **options
    )


def _contours(scans: Sequence[pydicom.Dataset]) -> pydicom.Dataset:
    square = [(4, 4), (30, 4), (30, 30), (4, 30)]
    drawn = [
        _item(
            ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=len(square),
            ContourData=[f"{value}" for x, y in square for value in (x, y, 5 * number)],
        )
        for number in range(SLICES)
    ]  # fmt: skip
    frame = scans[0].FrameOfReferenceUID
    images = [_item(ReferencedSOPClassUID=MRImageStorage, ReferencedSOPInstanceUID=one.SOPInstanceUID) for one in scans]
    referred = _item(SeriesInstanceUID=scans[0].SeriesInstanceUID, ContourImageSequence=images)
    study = _item(RTReferencedSeriesSequence=[referred])
    dataset = _item(
        SOPClassUID=RTStructureSetStorage, SOPInstanceUID=generate_uid(entropy_srcs=["contours"]),
        Modality="RTSTRUCT", PatientID=PLANTED,
        ReferencedFrameOfReferenceSequence=[_item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])],
        StructureSetROISequence=[_item(ROINumber=1, ROIName="lesion", ReferencedFrameOfReferenceUID=frame)],
        ROIContourSequence=[_item(ReferencedROINumber=1, ContourSequence=drawn)],
    )  # fmt: skip
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _item(**tags: object) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def _bytes(dataset: pydicom.Dataset) -> bytes:
    content = io.BytesIO()
    pydicom.dcmwrite(content, dataset, enforce_file_format=True)
    return content.getvalue()


class _Blank:
    """A network that answers background everywhere."""

    def run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        height, width = feed["image"].shape[:2]
        probabilities = np.zeros((2, height, width), np.float32)
        probabilities[0] = 1
        return [np.zeros((height, width), np.uint8), probabilities]


@dataclass(frozen=True)
class _BlankBundle(Bundle):
    """A bundle of one class without a file."""

    description: dict[str, Any] = field(default_factory=lambda: {"classes": ["lesion"], "input": {"window": None}})

    def session(self, threads: int | None = None) -> Any:
        return _Blank()


def outcome(path: Path, out: Path) -> str:
    """Read one file as label and predict it; return ``mask``, ``named``, ``unnamed``, or where a crash came from."""
    try:
        if path.parent.name == MASKS:
            return _as_label(path)
        with suppress(UserError):
            read_mask_indices(path, index=0)
        done = predict_paths(_BlankBundle(Path()), [path], out)
    except UserError as error:
        return "named" if path.name in str(error) else f"unnamed: {error}"
    except BaseException as error:  # noqa: BLE001 (the point of it)
        where = traceback.extract_tb(error.__traceback__)
        ours = next((one for one in reversed(where) if "/tskd/" in one.filename), where[-1])
        return f"crash: {type(error).__name__} at {Path(ours.filename).name}:{ours.lineno}"
    unnamed = [one.problem for one in done.failures if path.name not in one.problem]
    if unnamed:
        return f"unnamed: {unnamed[0]}"
    return "mask" if done.predictions else "named"


def _as_label(path: Path) -> str:
    """Look at the data set whose only label the file is."""
    report = inspect(path.parents[1], "dicom", workers=1)
    if report.presence or any(problem.path.name == path.name for problem in report.problems):
        return "mask" if report.presence else "named"
    return f"unnamed: {[problem.message for problem in report.problems]}"


def _serve(connection: Connection) -> None:
    """Answer paths with (outcome, peak memory in MB) until the other end closes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with TemporaryFile() as said:
        os.dup2(said.fileno(), 2)  # libraries in C and Rust print past Python
        while True:
            try:
                path, out = connection.recv()
            except EOFError:
                return
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            said.truncate(0)
            answer = outcome(path, out)
            sys.stderr.flush()
            said.seek(0)
            told = PLANTED.encode() in said.read()
            connection.send((f"leak: {answer}" if told else answer, _peak_mb()))


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class _Reader:
    """The process that reads; started anew when it dies or hangs."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def ask(self, path: Path, out: Path) -> tuple[str, float]:
        try:
            self.connection.send((path, out))
            if self.connection.poll(LIMIT + (30 if self.fresh else 0)):
                return cast("tuple[str, float]", self.connection.recv())
            answer = "hang"
        except (EOFError, ConnectionError):
            self.process.join(5)
            answer = f"died: exit code {self.process.exitcode}"
        self.stop()
        self._start()
        return answer, 0.0

    @property
    def fresh(self) -> bool:
        """Whether it may still be importing."""
        began = Path(f"/proc/{self.process.pid}")
        return not began.exists() or time.time() - began.stat().st_mtime < 60

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def fuzz(seconds: float, seed: int, keep: Path | None) -> list[dict[str, Any]]:
    """Predict mutated files for so many seconds; return a row a format. What fails is kept with its outcome."""
    files, scans = good_files(), series()
    names = list(files)
    tallies: dict[str, Counter[str]] = defaultdict(Counter)
    failures: Counter[str] = Counter()
    peaks: dict[str, float] = defaultdict(float)
    reader = _Reader()
    end = time.monotonic() + seconds
    number = 0
    with TemporaryDirectory() as folder:
        while time.monotonic() < end:
            rng = random.Random(f"{seed} {number}")
            name = names[number % len(names)]
            data = mutate(files[name], files[rng.choice(names)], rng) if number >= len(names) else files[name]
            root = Path(folder) / f"{number}"
            path = _lay(root, {f"{MASKS}/{name}": data, **scans} if name.startswith(_DRAWN) else {name: data})
            answer, peak = reader.ask(path, root / "out")
            shutil.rmtree(root)
            kind = answer.partition(":")[0]
            if number < len(names) and kind != "mask":
                raise SystemExit(f"the good file {name} gave {answer}")
            tallies[name][kind] += 1
            peaks[name] = max(peaks[name], peak)
            if kind not in ("mask", "named"):
                failures[f"{name}: {answer}"] += 1
                _keep(keep, f"{number}_{name}", data)
            number += 1
    reader.stop()
    for failure, count in failures.most_common():
        print(f"{count} x {failure}", file=sys.stderr)
    return [_row(name, tallies[name], peaks[name]) for name in names] + [
        _row("all", sum(tallies.values(), Counter()), max(peaks.values()))
    ]


def _lay(root: Path, files: Files) -> Path:
    """Write files under a folder of their own, so that nothing that is kept of another input answers for them."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root / next(iter(files))


def _keep(folder: Path | None, name: str, data: bytes) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _row(name: str, tally: Counter[str], peak: float) -> dict[str, Any]:
    counted = {kind: tally[kind] for kind in ("mask", "named", "unnamed", "leak", "crash", "hang", "died")}
    return {"format": name, "inputs": tally.total(), **counted, "peak MB": round(peak)}


def main() -> None:
    """Fuzz and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that failed")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from measure import print_results  # not above: the process that reads would import torch with it

    print_results(fuzz(60 * arguments.minutes, arguments.seed, arguments.keep), as_json=arguments.json, threads=1)


if __name__ == "__main__":
    main()
