"""What files say of themselves: kinds that are not scans, sizes that cannot be, and what must not be shown."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from tests.dicoms import SECRETS, deflated, save
from tskd.data import dicom
from tskd.data.images import read_image
from tskd.errors import UserError

STORAGE = "1.2.840.10008.5.1.4.1.1"
VALUES = np.arange(3 * 64, dtype=np.uint16).reshape(3, 8, 8)


def problem(path: Path) -> str:
    ((named, message),) = dicom.list_series([path]).failures
    assert named == path
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize(
    ("uid", "pixels", "kind"),
    [
        (f"{STORAGE}.481.3", False, "RTSTRUCT"),
        (f"{STORAGE}.481.5", False, "RTPLAN"), (f"{STORAGE}.481.2", True, "RTDOSE"),
        (f"{STORAGE}.88.33", False, "SR"), (f"{STORAGE}.88.59", False, "KOS"),
        (f"{STORAGE}.11.1", False, "presentation state"),
        (f"{STORAGE}.66.4", True, "SEG"), (f"{STORAGE}.66", False, "raw data"), (f"{STORAGE}.9.1.1", False, "waveform"),
        (f"{STORAGE}.104.1", False, "encapsulated document"), ("1.3.12.2.1107.5.9.1", False, "private object"),
        ("1.2.840.10008.5.1.4.34.7", False, "RT Beams Delivery Instruction"),
        ("1.2.840.10008.1.3.10", False, "DICOMDIR"),
        (f"{STORAGE}.481.1", True, None), (f"{STORAGE}.2", True, None), ("1.3.12.2.1107.5.9.1", True, None),
    ],
)  # fmt: skip
def test_objects_that_are_no_scans_are_named_by_kind(uid: str, pixels: bool, kind: str | None, tmp_path: Path) -> None:
    path = save(VALUES[0], tmp_path / "a.dcm", SOPClassUID=uid)
    if not pixels:
        data = pydicom.dcmread(path)
        for name in ("Rows", "Columns", "PixelData", "BitsAllocated", "BitsStored", "HighBit"):
            delattr(data, name)
        data.save_as(path)
    listing = dicom.list_series([path])
    assert not listing.failures
    assert [kind is not None and kind in said for _, said in listing.others] == ([True] if kind else [])
    assert len(listing.slices) == (kind is None)


def test_an_image_without_rows_is_damaged_and_no_other_kind_of_object(tmp_path: Path) -> None:
    path = save(VALUES[0], tmp_path / "a.dcm")
    data = pydicom.dcmread(path)
    del data.PixelData, data.Rows
    data.save_as(path)
    assert not dicom.list_series([path]).others
    with pytest.raises(UserError, match=r"a\.dcm: states no image"):
        read_image(path)


@pytest.mark.parametrize("is_empty", [False, True])
@pytest.mark.parametrize(
    "keyword",
    ["Rows", "BitsAllocated", "PhotometricInterpretation", "SamplesPerPixel", "BitsStored", "PixelRepresentation"],
)
def test_what_a_file_lacks_to_read_its_pixels_by_is_named(keyword: str, is_empty: bool, tmp_path: Path) -> None:
    """It is not damaged, and copying it again would not help."""
    path = save(VALUES[0], tmp_path / "a.dcm")
    data = pydicom.dcmread(path)
    if is_empty:
        data[keyword].value = None
    else:
        delattr(data, keyword)
    data.save_as(path)
    with pytest.raises(UserError, match=rf"a\.dcm: states no {keyword}, without which"):
        read_image(path)


@pytest.mark.parametrize("frames", [10**6, 2**31 - 1])
@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_more_frames_than_the_file_can_hold_are_refused_at_once(
    frames: int, syntax: str | None, tmp_path: Path
) -> None:
    path = save(VALUES, tmp_path / "a.dcm", compress=syntax)
    data = pydicom.dcmread(path)
    for stated in (frames, 5):
        data.NumberOfFrames = stated
        data.save_as(path)
        began = time.monotonic()
        assert f"{stated} frame" in problem(path)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 0}, "x0 pixels"), ({"Rows": 60000, "Columns": 60000}, "64 million pixels"),
        ({"Rows": 7000, "Columns": 7000}, "need 98000000 bytes"), ({"NumberOfFrames": -3}, "damaged"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(tags: dict[str, object], message: str, tmp_path: Path) -> None:
    assert message in problem(save(VALUES[0], tmp_path / "a.dcm", **tags))


def test_no_frames_mean_one(tmp_path: Path) -> None:
    assert read_image(save(VALUES[0], tmp_path / "a.dcm", NumberOfFrames=0)).shape == (8, 8, 3)


def test_a_deflated_file_is_read_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = deflated(save(VALUES[0], tmp_path / "a.dcm"))
    np.testing.assert_array_equal(dicom.read_stored(path), VALUES[0])
    path.write_bytes(path.read_bytes()[:-30])
    assert "cut short" in problem(path)
    monkeypatch.setattr("tskd.data.dicom_files.MAX_INFLATED", 4 * 2**20)
    assert "holds more than 4 MiB when inflated" in problem(
        deflated(save(VALUES[0], tmp_path / "b.dcm"), extra=8 * 2**20)
    )


def test_a_sparse_file_of_zeros_ends_at_once(tmp_path: Path) -> None:
    """8 GB that take no room: elements of group 0, and a private element that nobody has to read."""
    path = save(VALUES[0], tmp_path / "a.dcm")
    content = path.read_bytes()
    head = content[: content.index(struct.pack("<HH", 0x7FE0, 0x10) + b"OW")]
    path.write_bytes(head + struct.pack("<HH2sHL", 0x29, 0x1010, b"OB", 0, 2**31))
    os.truncate(path, 8 * 2**30)
    began = time.monotonic()
    with pytest.raises(UserError, match="states no image"):
        read_image(path)
    for start in (b"", bytes(128) + b"DICM", content[:132] + content[132:][: 12 + 8]):
        path.write_bytes(start)
        os.truncate(path, 8 * 2**30)
        assert dicom.list_series([path]).failures
    path.write_bytes(b"")
    os.truncate(path, 2**30)
    assert "is not a DICOM file" in problem(path)
    assert time.monotonic() - began < 5


def test_reading_damaged_tags_writes_nothing_of_them(tmp_path: Path) -> None:
    """In a process of its own: pydicom warns by ``warnings`` and by ``logging``, and pytest changes both."""
    path = save(np.arange(64, dtype=np.uint16).reshape(8, 8), tmp_path / "a.dcm",
                SeriesInstanceUID="1.2.3.4",
                Modality="MR", InstanceNumber=1, PatientBirthDate="19700101",
                SpecificCharacterSet="ISO_IR 100")  # fmt: skip
    content = path.read_bytes().replace(b"1.2.3.4\0", b"SECRET-7").replace(b"19700101", b"Doe^Jane")
    path.write_bytes(content.replace(b"ISO_IR 100", b"SECRET-7  "))
    code = "import sys; from pathlib import Path; from tskd.data import dicom; p = Path(sys.argv[1]); "
    code += "print(dicom.list_series([p])); print(dicom.read_frame(p).shape)"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "(8, 8)" in done.stdout
    assert done.stderr == ""
    assert not any(secret in done.stdout for secret in SECRETS)
