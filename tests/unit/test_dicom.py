"""DICOM grey levels by the standard's formulas, order by geometry, and no tag in any message."""

from __future__ import annotations

from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from tskd.data import dicom
from tskd.data.images import IntensityWindow, read_image, read_mask_indices
from tskd.errors import UserError

VALUES = np.array([[0, 100, 200], [300, 400, 1000]], np.uint16)


def save(values: np.ndarray, path: Path, *, compress: str | None = None, **tags: object) -> Path:
    """Write one file; the first axis of a 3-axis array is frames, unless the last is colour."""
    colour = values.ndim > 2 and values.shape[-1] == 3
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "SECRET-7"
    dataset.Rows, dataset.Columns = values.shape[:2] if colour else values.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = values.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    if colour:
        dataset.PlanarConfiguration = 0
    elif values.ndim == 3:
        dataset.NumberOfFrames = len(values)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    if compress is not None:
        dataset.compress(compress)
    dataset.save_as(path, enforce_file_format=True)
    return path


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
    assert "own Window" in dicom.grey_window(dicom.read_header(path), None)[1]


def test_ct_without_a_window_gets_the_stated_default(tmp_path: Path) -> None:
    path = save(np.array([[-200, -160, 40, 240]], np.int16), tmp_path / "a.dcm", Modality="CT")
    assert grey(path).tolist() == [[0, 0, 128, 255]]
    assert "-160 to 240 HU" in dicom.grey_window(dicom.read_header(path), None)[1]


def test_others_without_a_window_use_the_range_of_bits_stored(tmp_path: Path) -> None:
    path = save(np.array([[0, 2048, 4095]], np.uint16), tmp_path / "a.dcm", Modality="MR", BitsStored=12, HighBit=11)
    assert grey(path).tolist() == [[0, 128, 255]]
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
def test_lossless_jpeg_through_gdcm_equals_plain(syntax: str, tmp_path: Path) -> None:
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
    assert [item.index for item in dicom.list_slices([path])] == [0, 1, 2]


def test_order_follows_the_projected_position_against_names_and_numbers(tmp_path: Path) -> None:
    """Sagittal slices: the normal is the x axis, z says nothing."""
    paths = [
        save(
            np.zeros((2, 2), np.uint8), tmp_path / f"{name}.dcm", SeriesInstanceUID="1.2", InstanceNumber=number,
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1], ImagePositionPatient=[x, 0, z],
        )
        for name, number, x, z in (("a", 1, -5.0, 0), ("b", 2, 5.0, 1), ("c", 3, 0.0, 9))
    ]  # fmt: skip
    ordered = [item.path.stem for item in dicom.list_slices(paths)]
    assert ordered == ["b", "c", "a"]  # the normal (0,1,0) x (0,0,-1) is (-1,0,0)


def test_order_falls_back_to_instance_numbers_never_to_names(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2), np.uint8)
    numbered = [
        save(pixels, tmp_path / f"{name}.dcm", SeriesInstanceUID="1.2", InstanceNumber=number)
        for name, number in (("a", 10), ("b", 9))
    ]
    assert [item.path.stem for item in dicom.list_slices(numbered)] == ["b", "a"]
    nameless = [save(pixels, tmp_path / f"{name}.dcm", SeriesInstanceUID="1.3") for name in "cd"]
    with pytest.raises(UserError, match="order is unknown"):
        dicom.list_slices(nameless)


def placed(folder: Path, *positions: float, **tags: object) -> list[tuple[object, ...]]:
    """Write a series with a file at each position; return volume, place and spacing of each, in the order of files."""
    uid = f"1.5.{len(list(folder.glob('*')))}"
    tags = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.5, 0.8], **tags}
    paths = [
        save(np.zeros((2, 2), np.uint16), folder / f"{uid}-{number}.dcm", SeriesInstanceUID=uid, InstanceNumber=number,
             ImagePositionPatient=[0, 0, z], **tags)
        for number, z in enumerate(positions)
    ]  # fmt: skip
    found = {item.path: item for item in dicom.list_slices(paths)}
    return [(found[path].volume, found[path].place, found[path].spacing) for path in paths]


def test_a_series_is_a_volume_by_its_positions(tmp_path: Path) -> None:
    plane, whole = (0.5, 0.8), (0.5, 0.8, 2.5)
    assert placed(tmp_path, 5.0, 0.0, 2.5) == [(0, 2, whole), (0, 0, whole), (0, 1, whole)]
    assert placed(tmp_path, 0.0, 2.5, 7.5, 10.0) == [(0, place, whole) for place in (0, 1, 3, 4)]  # one is lost
    assert placed(tmp_path, 0.0, 2.5, 5.9) == [(0, place, plane) for place in (0, 1, 2)]  # uneven: order, no distance
    assert placed(tmp_path, 0.0, 2.5, PixelSpacing=None) == [(0, 0, None), (0, 1, None)]
    assert placed(tmp_path, 0.0) == [(None, None, plane)]


def test_positions_that_come_again_are_further_volumes_and_uneven_repeats_are_none(tmp_path: Path) -> None:
    volumes = placed(tmp_path, 0.0, 2.5, 0.0, 2.5)
    assert [(volume, place) for volume, place, _ in volumes] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {spacing for *_, spacing in volumes} == {(0.5, 0.8, 2.5)}
    jittered = placed(tmp_path, 0.001, 10.0, 0.0, 10.001)  # the second time point is a little lower, then higher
    assert [(volume, place) for volume, place, _ in jittered] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {found[0] for found in placed(tmp_path, 0.0, 2.5, 0.0)} == {None}


def test_slices_that_are_not_parallel_are_no_volume(tmp_path: Path) -> None:
    """A localiser: three planes in one series."""
    turns = ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])
    paths = [
        save(np.zeros((2, 2), np.uint16), tmp_path / f"{number}.dcm", ImageOrientationPatient=turn,
             ImagePositionPatient=[number, number, number])
        for number, turn in enumerate(turns)
    ]  # fmt: skip
    assert {item.volume for item in dicom.list_slices(paths)} == {None}


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
    slices = dicom.list_slices([path])
    assert [(item.index, item.position, item.spacing) for item in slices] == [
        (1, 0.0, (0.5, 0.8, 3.0)),
        (0, 3.0, (0.5, 0.8, 3.0)),
    ]
    assert [int(grey(path, index=k, intensity=IntensityWindow(0, 100))[0, 0]) for k in (0, 1)] == [0, 255]


def test_errors_and_slices_show_no_tag(tmp_path: Path) -> None:
    path = save(VALUES, tmp_path / "a.dcm", SeriesInstanceUID="1.2.3.4")
    assert not {"Doe", "SECRET", "1.2.3.4"} & set(str(dicom.list_slices([path])).replace("'", " ").split())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"a\.dcm.*cut short") as caught:
        read_image(path)
    assert caught.value.__cause__ is None  # pydicom's own text may quote values
    assert not any(secret in str(caught.value) for secret in ("Doe", "SECRET", "1.2.3.4"))
