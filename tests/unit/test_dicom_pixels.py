"""Compressed pixels are decoded by a process that may die, hang or refuse, and what it says names the file."""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from tests.dicoms import save
from tskd.data import dicom, dicom_pixels, dicom_worker
from tskd.data.memory_files import MemoryFolder
from tskd.errors import UserError

VALUES = np.random.default_rng(0).integers(0, 4000, (2, 64, 72), np.uint16)


@pytest.fixture(autouse=True)
def _own_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests before may have left several idle workers in the one of the process."""
    pool = dicom_pixels.DecoderPool()
    monkeypatch.setattr(dicom_pixels, "POOL", pool)
    yield
    pool.close()


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return save(VALUES, tmp_path / "a.dcm", compress=RLELossless)


def test_one_worker_answers_frame_after_frame(packed: Path) -> None:
    for index in (1, 0, 1):
        np.testing.assert_array_equal(dicom.read_stored(packed, index=index), VALUES[index])
    (worker,) = dicom_pixels.POOL.idle
    np.testing.assert_array_equal(dicom.read_stored(packed, index=0), VALUES[0])
    assert dicom_pixels.POOL.idle == [worker]


def test_a_module_in_the_folder_at_hand_is_not_the_decoders(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that was sent may hold a numpy.py: red where the child runs it."""
    (packed.parent / "json.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(packed.parent)
    np.testing.assert_array_equal(dicom.read_stored(packed, index=1), VALUES[1])


def test_no_more_workers_than_processors_are_at_work(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where every thread that reads compressed slices starts a decoder of 75 MB of its own."""
    monkeypatch.setattr(dicom_pixels, "cores", lambda: 2)
    monkeypatch.setattr(dicom_pixels, "POOL", dicom_pixels.DecoderPool())
    with ThreadPoolExecutor(6) as threads:
        read = list(threads.map(lambda index: dicom.read_stored(packed, index=index), [0, 1] * 6))
    assert all(np.array_equal(frame, VALUES[number % 2]) for number, frame in enumerate(read))
    assert len(dicom_pixels.POOL.idle) <= 2
    dicom_pixels.POOL.close()


def test_a_decoder_that_died_while_idle_is_not_asked_again(packed: Path) -> None:
    """Its folder is closed when it is dead already: the next file was called damaged."""
    with MemoryFolder.of({"a.dcm": packed.read_bytes()}) as folder:
        dicom.read_stored(folder.file("a.dcm"), index=0)
        (worker,) = dicom_pixels.POOL.idle
        worker.process.kill()
        worker.process.wait()
    assert dicom_pixels.POOL.idle == []
    np.testing.assert_array_equal(dicom.read_stored(packed, index=1), VALUES[1])


def test_a_decoder_that_dies_costs_its_file_alone(packed: Path) -> None:
    dicom.read_stored(packed, index=0)
    (worker,) = dicom_pixels.POOL.idle
    os.kill(worker.process.pid, signal.SIGABRT)
    worker.process.wait()
    with pytest.raises(UserError, match=r"a\.dcm: its compressed pixels .* the decoder ended without an answer"):
        dicom.read_stored(packed, index=0)
    np.testing.assert_array_equal(dicom.read_stored(packed, index=1), VALUES[1])


def test_a_decoder_that_hangs_is_ended(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom.read_stored(packed, index=0)
    (worker,) = dicom_pixels.POOL.idle
    os.kill(worker.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(dicom_pixels, "SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(UserError, match="ended without an answer"):
        dicom.read_stored(packed, index=0)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_damaged_pixels_are_called_damaged(syntax: str, tmp_path: Path) -> None:
    path = save(VALUES[0], tmp_path / "a.dcm", compress=syntax)
    data = pydicom.dcmread(path)
    data.PixelData = data.PixelData[:16] + bytes(len(data.PixelData) - 16)
    data.save_as(path)
    with pytest.raises(UserError, match=r"a\.dcm: its compressed pixels .* are damaged"):
        dicom.read_stored(path)


@pytest.mark.parametrize(
    ("syntax", "name"), [("1.2.840.10008.1.2.4.102", "MPEG-4 AVC"), ("1.2.3.4.5", "an unknown transfer syntax")]
)
def test_pixels_for_which_there_is_no_decoder_are_not_called_damaged(syntax: str, name: str, tmp_path: Path) -> None:
    path = save(VALUES[0], tmp_path / "a.dcm", compress=RLELossless)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path)
    with pytest.raises(UserError, match=rf"a\.dcm: its pixels are stored as {name}.*no decoder.*gdcmconv") as caught:
        dicom.read_stored(path)
    assert "damaged" not in str(caught.value)


def test_a_codec_that_is_not_installed_is_named(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = dicom_pixels.get_decoder(RLELossless)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    monkeypatch.setattr(decoder, "_unavailable", {"pylibjpeg": ("pylibjpeg>=2.0", "pylibjpeg-rle>=2.0")})
    with pytest.raises(UserError, match=r"RLE Lossless, whose decoder is not installed .*pylibjpeg.*tskd doctor"):
        dicom.read_stored(packed, index=0)


def test_what_the_child_answers_holds_no_text_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(bytes(128) + b"DICM" + b"Doe^Jane" * 40)
    head, values = dicom_worker.answer(f'["{path}", 0]'.encode(), dicom_worker.Files(io.BytesIO()))
    assert values is None
    assert "Doe" not in str(head)


def test_jpeg_extended_of_12_bits_is_read(tmp_path: Path) -> None:
    """A file of pydicom's, with the values that its own tests state at these places."""
    path = Path(pydicom.data.get_testdata_file("JPGExtended.dcm", download=False))
    values = dicom.read_stored(path)
    assert (values.shape, values.dtype.itemsize) == ((1024, 256), 2)
    assert [values[420, 140], values[230, 120]] == [244, 95]


def test_a_child_that_does_not_start_calls_no_file_damaged(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_pixels.sys, "executable", shutil.which("true"))
    with pytest.raises(UserError, match=r"a\.dcm: the process that decodes compressed pixels does not start"):
        dicom.read_stored(packed, index=0)
