"""Compressed DICOM pixels are those that GDCM decodes, bit for bit, without GDCM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless

from tests.dicoms import save
from tests.lossless_jpeg import encode_lossless
from tskd.data import dicom, dicom_jpeg
from tskd.data.dicom_pixels import decode_file
from tskd.errors import UserError

OWN = [
    "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm", "SC_rgb_jpeg_gdcm.dcm",
    "SC_jpeg_no_color_transform.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_small_odd_jpeg.dcm",
    "MR_small_jp2klossless.dcm", "GDCMJ2K_TextGBR.dcm", "JPEG2000.dcm",
]  # fmt: skip
"""Files of pydicom's, each made by another program."""


def own_file(name: str) -> Path:
    return Path(pydicom.data.get_testdata_file(name, download=False))


def by_gdcm(path: Path) -> np.ndarray:
    dataset = pydicom.dcmread(path)
    return get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, index=0, decoding_plugin="gdcm")[0]


def pack(path: Path, frame: bytes, syntax: str, **tags: object) -> Path:
    """Put a compressed frame, and what the header should say of it, into a file with plain pixels."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    return path


def drawn(bits: int, *shape: int) -> np.ndarray:
    values = np.random.default_rng(bits).integers(0, 2**bits, shape)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


@pytest.mark.parametrize("name", OWN)
def test_files_of_many_programs_equal_gdcm(name: str) -> None:
    """Red where colours are converted twice or not, planes mixed up, or a sign is lost."""
    found, expected = decode_file(own_file(name), 0), by_gdcm(own_file(name))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", [
    *({"predictor": one} for one in range(1, 8)), {"transform": 2}, {"rows": 1}, {"rows": 4, "predictor": 7},
    {"interleaved": False},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("colours", [(), (3,)])
def test_lossless_jpeg_of_every_form_gives_back_what_was_packed(
    colours: tuple[int, ...], bits: int, form: dict[str, Any], tmp_path: Path
) -> None:
    """Process 14 with all predictors, a point transform, restarts and planes one by one, as T.81 annex H has them."""
    values = drawn(bits, 9, 6, *colours)
    syntax = JPEGLosslessSV1 if form.get("predictor", 1) == 1 else JPEGLossless
    path = save(values, tmp_path / "a.dcm", BitsStored=bits, HighBit=bits - 1)
    pack(path, encode_lossless(values, bits, **form), syntax)
    low = form.get("transform", 0)
    np.testing.assert_array_equal(decode_file(path, 0), values >> low << low)
    np.testing.assert_array_equal(by_gdcm(path), values >> low << low)


def test_signed_lossless_values_keep_their_sign(tmp_path: Path) -> None:
    """12 bits of two's complement in 16: red where they come out as 0 to 4095."""
    values = np.random.default_rng(0).integers(-2048, 2048, (16, 24), np.int16)
    frame = encode_lossless(values & 0xFFF, 12)
    path = pack(save(values, tmp_path / "a.dcm", BitsStored=12, HighBit=11), frame, JPEGLosslessSV1)
    np.testing.assert_array_equal(decode_file(path, 0), values)
    np.testing.assert_array_equal(by_gdcm(path), values)


@pytest.mark.parametrize("marker", [b"", b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"])
def test_lossless_colours_are_those_that_the_header_names(marker: bytes, tmp_path: Path) -> None:
    """YBR_FULL becomes RGB once, by the header, also where JPEG's own marker says YCbCr."""
    values = drawn(8, 12, 10, 3)
    frame = encode_lossless(values, 8)
    marked = frame[:2] + marker + frame[2:]
    path = save(values, tmp_path / "a.dcm")
    pack(path, marked, JPEGLosslessSV1, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_array_equal(decode_file(path, 0), by_gdcm(path))
    assert not np.array_equal(decode_file(path, 0), values)


def lossless_frame() -> tuple[np.ndarray, bytes]:
    values = drawn(12, 64, 72)
    return values, encode_lossless(values, 12)


def jpeg_ls_frame() -> tuple[np.ndarray, bytes]:
    values = drawn(12, 64, 72)
    return values, imagecodecs.jpegls_encode(values)


def extended_frame() -> tuple[np.ndarray, bytes]:
    dataset = pydicom.dcmread(own_file("JPGExtended.dcm"))
    return np.zeros((1024, 256), np.uint16), next(generate_frames(dataset.PixelData, number_of_frames=1))


@pytest.mark.parametrize(
    ("make", "syntax"),
    [(lossless_frame, JPEGLosslessSV1), (jpeg_ls_frame, JPEGLSLossless), (extended_frame, JPEGExtended12Bit)],
)
@pytest.mark.parametrize("damage", ["cut", "noise", "no scan"])
def test_damaged_frames_are_refused(
    make: Callable[[], tuple[np.ndarray, bytes]], syntax: str, damage: str, tmp_path: Path
) -> None:
    """libjpeg itself fills up what is missing with grey: such a picture must not be predicted."""
    values, frame = make()
    half = len(frame) // 2
    noise = np.random.default_rng(0).integers(0, 256, half // 2, np.uint8).tobytes()
    damaged = {
        "cut": frame[:half],
        "noise": frame[:half] + noise + frame[half + len(noise) :],
        "no scan": frame[:12],
    }[damage]
    path = pack(save(values, tmp_path / "a.dcm", BitsStored=12, HighBit=11), damaged, syntax)
    with pytest.raises(UserError, match=r"a\.dcm"):
        dicom.read_stored(path)


@pytest.mark.parametrize("padding", [b"\0\0", b"\xff\xff"])
def test_a_frame_may_be_padded_to_an_even_length(padding: bytes, tmp_path: Path) -> None:
    """PS3.5 A.4: the last fragment may end with fill bytes; red where the mark of the end has to be last."""
    values, frame = lossless_frame()
    path = pack(save(values, tmp_path / "a.dcm", BitsStored=12, HighBit=11), frame + padding, JPEGLosslessSV1)
    np.testing.assert_array_equal(dicom.read_stored(path), values)


def test_every_syntax_has_a_decoder_without_gdcm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where one of them is read by GDCM alone, which the light part does not install."""
    for syntax, label in dicom_jpeg.PLUGINS.items():
        assert label != "gdcm"
        assert dicom_jpeg.is_decoded(syntax)
        monkeypatch.setattr(get_decoder(syntax), "_available", {"gdcm": None})
        assert not dicom_jpeg.is_decoded(syntax)
