"""DICOM frames as images and masks: grey levels by the standard's formulas, colours, and no tag in any message."""

from __future__ import annotations

from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, RLELossless

from tests.dicoms import save
from tskd.data import dicom
from tskd.data.images import IntensityWindow, read_image, read_mask_indices
from tskd.errors import UserError

VALUES = np.array([[0, 100, 200], [300, 400, 1000]], np.uint16)


def grey(path: Path, **options: object) -> np.ndarray:
    return read_image(path, **options)[..., 0]  # type: ignore[arg-type]


def test_given_window_is_in_rescaled_units(tmp_path: Path) -> None:
    path = save(VALUES, tmp_path / "a.dcm", Modality="CT", RescaleSlope=2, RescaleIntercept=-1000)
    image = grey(path, intensity=IntensityWindow(-1000, -200))
    assert image.tolist() == [[0, 64, 128], [191, 255, 255]]


def test_own_window_follows_the_standard(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.2.1: y = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255, the first of several windows."""
    path = save(VALUES, tmp_path / "a.dcm", Modality="CT", WindowCenter=[250, 40], WindowWidth=[301, 400])
    expected = np.clip(((VALUES.astype(float) - 249.5) / 300 + 0.5) * 255, 0, 255)
    assert np.abs(grey(path).astype(float) - expected).max() <= 0.5
    assert "WindowCenter" in dicom.grey_rule(dicom.read_head(path), None).told


def test_a_window_that_is_called_exact_ends_where_it_says(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.3.2: centre and width without the half and the one that are taken off otherwise."""
    path = save(VALUES, tmp_path / "a.dcm", WindowCenter=250, WindowWidth=300, VOILUTFunction="LINEAR_EXACT")
    assert dicom.grey_rule(dicom.read_head(path), None).window == IntensityWindow(100, 400)


def test_ct_without_a_window_gets_the_stated_default(tmp_path: Path) -> None:
    path = save(np.array([[-200, -160, 40, 240]], np.int16), tmp_path / "a.dcm", Modality="CT")
    assert grey(path).tolist() == [[0, 0, 128, 255]]
    assert "default for CT" in dicom.grey_rule(dicom.read_head(path), None).told


def test_eight_bits_stay_as_they_are(tmp_path: Path) -> None:
    eight_bit = save(np.array([[0, 7, 90]], np.uint8), tmp_path / "b.dcm", Modality="US")
    assert grey(eight_bit).tolist() == [[0, 7, 90]]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = save(np.array([[0, 7, 255]], np.uint8), tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1")
    assert grey(path).tolist() == [[255, 248, 0]]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_equals_plain(syntax: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (64, 72), np.uint16)
    window = IntensityWindow(0, 4000)
    plain = read_image(save(values, tmp_path / "a.dcm"), intensity=window)
    packed = save(values, tmp_path / "b.dcm", compress=syntax)
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_image(packed, intensity=window), plain)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless"])
def test_lossless_jpeg_packed_by_gdcm_equals_plain(syntax: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (64, 72), np.uint16)
    plain = save(values, tmp_path / "a.dcm")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "b.dcm"))
    assert writer.Write()
    assert pydicom.dcmread(tmp_path / "b.dcm").file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_mask_indices(tmp_path / "b.dcm"), values)


def test_colour_stays_colour(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    np.testing.assert_array_equal(read_image(save(values, tmp_path / "a.dcm", Modality="US")), values)


def test_magic_bytes_suffice(tmp_path: Path) -> None:
    assert read_image(save(np.zeros((2, 3), np.uint8), tmp_path / "IM000001")).shape == (2, 3, 3)


def test_frames_need_an_index(tmp_path: Path) -> None:
    path = save(np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 4), np.uint8), tmp_path / "a.dcm")
    with pytest.raises(UserError, match="3 frames"):
        read_image(path)
    assert read_mask_indices(path, index=2).tolist() == [[2] * 4] * 2
    with pytest.raises(UserError, match="frame 3 asked for"):
        read_image(path, index=3)
    assert [item.index for item in dicom.list_series([path]).slices] == [0, 1, 2]


def test_enhanced_frames_carry_their_own_position_spacing_and_rescaling(tmp_path: Path) -> None:
    shared, frames = Dataset(), [Dataset(), Dataset()]
    shared.PixelMeasuresSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.8]
    shared.PlaneOrientationSequence = Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for frame, z, intercept in zip(frames, (3.0, 0.0), (0, 100)):
        frame.PlanePositionSequence = Sequence([Dataset()])
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, z]
        frame.PixelValueTransformationSequence = Sequence([Dataset()])
        frame.PixelValueTransformationSequence[0].RescaleSlope = 1
        frame.PixelValueTransformationSequence[0].RescaleIntercept = intercept
    path = save(
        np.zeros((2, 2, 2), np.uint16), tmp_path / "a.dcm",
        SharedFunctionalGroupsSequence=Sequence([shared]), PerFrameFunctionalGroupsSequence=Sequence(frames),
    )  # fmt: skip
    slices = dicom.list_series([path]).slices
    assert [(item.index, item.position, item.spacing) for item in slices] == [
        (1, 0.0, (0.5, 0.8, 3.0)),
        (0, 3.0, (0.5, 0.8, 3.0)),
    ]
    assert [int(grey(path, index=k, intensity=IntensityWindow(0, 100))[0, 0]) for k in (0, 1)] == [0, 255]


def test_errors_and_slices_show_no_tag(tmp_path: Path) -> None:
    path = save(VALUES, tmp_path / "a.dcm", SeriesInstanceUID="1.2.3.4")
    assert not {"Doe", "SECRET", "1.2.3.4"} & set(str(dicom.list_series([path]).slices).replace("'", " ").split())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"a\.dcm.*cut short") as caught:
        read_image(path)
    assert caught.value.__cause__ is None  # pydicom's own text may quote values
    assert not any(secret in str(caught.value) for secret in ("Doe", "SECRET", "1.2.3.4"))


def test_colours_of_palettes_at_both_depths(tmp_path: Path) -> None:
    """Tables of 16 bits hold 16, or, against the standard and in common use, 8: neither may come out black."""
    for name, kind, scale in (("8", np.uint8, 1), ("16", np.uint16, 256), ("8 in 16", np.uint16, 1)):
        table = (np.array([0, 60, 120, 255]) * scale).astype(kind)
        tags: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
        for colour, entries in (("Red", table), ("Green", table[::-1]), ("Blue", table * 0)):
            tags[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, table.itemsize * 8]
            tags[f"{colour}PaletteColorLookupTableData"] = entries.tobytes()
        path = save(np.array([[0, 1], [2, 3]], np.uint8), tmp_path / f"{name}.dcm", **tags)
        assert read_image(path)[..., 0].tolist() == [[0, 60], [120, 255]], name
        assert read_image(path)[..., 1].tolist() == [[255, 120], [60, 0]], name


def test_bits_above_and_below_those_stored_are_no_values(tmp_path: Path) -> None:
    values = np.array([[5, 4095]], np.uint16)
    overlaid = save(values | 0xF000, tmp_path / "a.dcm", BitsStored=12, HighBit=11)
    assert read_mask_indices(overlaid).tolist() == values.tolist()
    shifted = save(values << 4 | 0xF, tmp_path / "b.dcm", BitsStored=12, HighBit=15)
    assert read_mask_indices(shifted).tolist() == values.tolist()
    signed = save(np.array([[0x0FFF, 0x07FF]], np.int16), tmp_path / "c.dcm", BitsStored=12, HighBit=11)
    assert read_mask_indices(signed).tolist() == [[-1, 2047]]


@pytest.mark.parametrize("name", ["a.dcm", "IM000001"])
@pytest.mark.parametrize("meta", [True, False], ids=["with group 2", "data set alone"])
def test_a_file_without_preamble_is_read(meta: bool, name: str, tmp_path: Path) -> None:
    whole = save(VALUES, tmp_path / "whole.dcm")
    group_2 = pydicom.filereader.read_file_meta_info(whole).FileMetaInformationGroupLength + 12
    content = whole.read_bytes()[132:]
    (tmp_path / "bare").mkdir()
    path = tmp_path / "bare" / name
    path.write_bytes(content if meta else content[group_2:])
    assert dicom.is_dicom(path)
    np.testing.assert_array_equal(read_mask_indices(path), VALUES)
    path.write_bytes(b"not DICOM at all, whatever it is called " * 9)
    assert [message for _, message in dicom.list_series([path]).failures if "is not a DICOM file" in message]
