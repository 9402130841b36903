"""One rule of grey levels for each kind of DICOM image, the same for all slices of a series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ParametricMapStorage

from tests.dicoms import AXIAL, save, save_series
from tskd.data import dicom
from tskd.data.grey_levels import LevelUse, level_use
from tskd.data.images import IntensityWindow, read_image
from tskd.errors import UserError

RNG = np.random.default_rng(0)


def grey(path: Path, window: IntensityWindow | None = None) -> np.ndarray:
    return read_image(path, intensity=window)[..., 0]


def told(path: Path) -> str:
    return dicom.grey_rule(dicom.read_head(path), None).told


def write_map(path: Path, values: np.ndarray, **tags: object) -> Path:
    """Write a parametric map, whose Float Pixel Data go without BitsStored (PS3.3 C.7.6.24)."""
    save(np.zeros(values.shape, np.int16), path, SOPClassUID=ParametricMapStorage, Modality="MR", **tags)
    data = pydicom.dcmread(path)
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(data, name)
    data.BitsAllocated, data.FloatPixelData = 32, values.astype("<f4").tobytes()
    data.save_as(path)
    return path


def test_without_a_window_the_series_decides_and_one_value_has_one_grey(tmp_path: Path) -> None:
    """Signed MR in a sliver of 16 bits: the range of the type would leave 3 levels, each slice alone other greys."""
    stored = [RNG.integers(18 + 100 * k, 400 + 100 * k, (20, 30)).astype(np.int16) for k in range(3)]
    paths = [
        save(values, tmp_path / f"{k}.dcm", Modality="MR", SeriesInstanceUID="1.5") for k, values in enumerate(stored)
    ]
    save(np.full((20, 30), 30000, np.int16), tmp_path / "other.dcm", Modality="MR", SeriesInstanceUID="1.6")
    low, high = np.percentile(np.stack(stored), (0.5, 99.5))
    levels: dict[int, int] = {}
    for path, values in zip(paths, stored):
        shown = grey(path)
        assert np.abs(shown - np.clip((values - low) * 255.0 / (high - low), 0, 255)).max() <= 0.51
        assert np.unique(shown).size >= 64
        for value, level in zip(values.ravel().tolist(), shown.ravel().tolist()):
            assert levels.setdefault(value, level) == level
    assert told(paths[0]) == "percentiles 0.5 and 99.5 of each series"


def test_a_series_that_grows_is_looked_through_anew(tmp_path: Path) -> None:
    first = save(
        np.arange(600, dtype=np.uint16).reshape(20, 30), tmp_path / "a.dcm", Modality="MR", SeriesInstanceUID="1.5"
    )
    before = grey(first).max()
    save(np.full((20, 30), 6000, np.uint16), tmp_path / "b.dcm", Modality="MR", SeriesInstanceUID="1.5")
    assert grey(first).max() < before == 255


def test_what_editors_leave_behind_does_not_count_for_the_series(tmp_path: Path) -> None:
    """Red where a backup copy with other values, which is no data, moves the grey levels of the slices."""
    save_series(tmp_path, [(0, 0, z) for z in range(3)], Modality="MR")
    alone = grey(tmp_path / "IM0000.dcm")
    save(np.full((6, 4), 9000, np.int16), tmp_path / "IM0000.dcm~", Modality="MR", SeriesInstanceUID="1.2.2")
    np.testing.assert_array_equal(grey(tmp_path / "IM0000.dcm"), alone)


def test_slopes_of_each_slice_are_compared_after_rescaling(tmp_path: Path) -> None:
    """PET: the same activity, stored with two slopes, is the same grey."""
    activity = np.linspace(0, 1000, 600).reshape(20, 30)
    paths = [
        save((activity / slope).astype(np.uint16), tmp_path / f"{slope}.dcm", Modality="PT", RescaleSlope=slope,
             RescaleIntercept=0, SeriesInstanceUID="1.5")
        for slope in (0.5, 0.02)
    ]  # fmt: skip
    assert np.abs(grey(paths[0]).astype(int) - grey(paths[1])).max() <= 1
    small = save(RNG.integers(0, 255, (20, 30)).astype(np.uint8), tmp_path / "c.dcm", Modality="PT", RescaleSlope=4.0)
    assert "percentiles" in told(small), "8 bits with a slope are no grey levels as they are"


@pytest.mark.parametrize(("planes", "same"), [(True, True), (False, False)], ids=["slices", "radiographs"])
def test_windows_that_differ_within_a_series_become_one_for_slices(planes: bool, same: bool, tmp_path: Path) -> None:
    values = np.arange(600, dtype=np.int16).reshape(20, 30)
    tags: dict[str, object] = {"ImageOrientationPatient": list(AXIAL)} if planes else {}
    paths = [
        save(
            values,
            tmp_path / f"{k}.dcm",
            Modality="MR",
            SeriesInstanceUID="1.5",
            WindowCenter=centre,
            WindowWidth=400,
            **tags,
        )
        for k, centre in enumerate((200, 220, 300))
    ]
    assert np.array_equal(grey(paths[0]), grey(paths[2])) is same
    if same:  # the medians
        assert dicom.grey_rule(dicom.read_head(paths[0]), None).window == IntensityWindow(20, 419)


def test_padding_does_not_count(tmp_path: Path) -> None:
    values = np.full((20, 30), -2000, np.int16)
    values[5:15] = RNG.integers(100, 200, (10, 30))
    path = save(values, tmp_path / "a.dcm", Modality="MR", PixelPaddingValue=-2000)
    assert dicom.grey_rule(dicom.read_head(path), None).window.low >= 100


def test_padding_may_be_a_range_and_what_lies_on_either_side_counts(tmp_path: Path) -> None:
    values = np.tile(np.array([-3000, -2000, -1700, -1500, 100, 200], np.int16), (20, 5))
    path = save(values, tmp_path / "a.dcm", Modality="MR", PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1500)
    window = dicom.grey_rule(dicom.read_head(path), None).window
    assert (window.low, window.high) == pytest.approx((-3000, 200))
    values[values == -3000] = -1800
    again = save(values, tmp_path / "b.dcm", Modality="MR", PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1500,
                 SeriesInstanceUID="1.7")  # fmt: skip
    assert dicom.grey_rule(dicom.read_head(again), None).window.low == pytest.approx(100)


def test_signed_bytes_are_shown_by_their_full_range(tmp_path: Path) -> None:
    path = save(np.array([[-128, 0, 127]], np.int8), tmp_path / "a.dcm", Modality="MR")
    assert grey(path).tolist() == [[0, 128, 255]]


def test_each_frame_has_its_own_window(tmp_path: Path) -> None:
    frames = []
    for centre in (50, 150):
        frame, window = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = centre, 101
        frame.FrameVOILUTSequence = Sequence([window])
        frames.append(frame)
    path = save(np.full((2, 4, 5), 100, np.uint16), tmp_path / "a.dcm", Modality="MR",
                PerFrameFunctionalGroupsSequence=Sequence(frames))  # fmt: skip
    head = dicom.read_head(path)
    found = [dicom.grey_rule(head, None, index).window for index in (0, 1)]
    assert found == [IntensityWindow(-0.5, 99.5), IntensityWindow(99.5, 199.5)]


def test_floating_point_from_0_to_1_and_beyond(tmp_path: Path) -> None:
    values = RNG.random((20, 30)).astype(np.float32)
    np.testing.assert_array_equal(grey(write_map(tmp_path / "a.dcm", values)), np.rint(values * 255))
    beyond = write_map(tmp_path / "b.dcm", values * 3000, SeriesInstanceUID="1.9")
    assert "percentiles" in told(beyond)
    assert np.unique(grey(beyond)).size > 200
    assert "percentiles" in told(write_map(tmp_path / "below.dcm", values - 0.5, SeriesInstanceUID="1.8"))
    values[0, 0] = np.nan
    with pytest.raises(UserError, match=r"c\.dcm: 1 of 600 values of an image or slice are NaN"):
        grey(write_map(tmp_path / "c.dcm", values, SeriesInstanceUID="1.10"))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.uint32])
def test_monochrome1_is_the_negative_at_every_depth(kind: type, tmp_path: Path) -> None:
    values = np.linspace(0, np.iinfo(kind).max, 600).astype(kind).reshape(20, 30)
    plain = save(values, tmp_path / "a.dcm", Modality="CR", SeriesInstanceUID="1.5")
    negative = save(
        values, tmp_path / "b.dcm", Modality="CR", SeriesInstanceUID="1.6", PhotometricInterpretation="MONOCHROME1"
    )
    np.testing.assert_array_equal(grey(negative), 255 - grey(plain))
    assert np.unique(grey(plain)).size > 200


def test_a_voi_table_is_followed_where_there_is_no_window(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 10, 16], np.array([0, 0x4000, 0xC000, 0xFFFF], np.uint16).tobytes()
    table["LUTDescriptor"].VR = "US"
    path = save(np.array([[9, 10, 11, 12, 13, 99]], np.uint16), tmp_path / "a.dcm", VOILUTSequence=Sequence([table]))
    assert grey(path).tolist() == [[0, 0, 64, 191, 255, 255]]
    assert "VOI LUT" in told(path)


def test_eight_bits_of_ct_are_pictures_and_no_hounsfield_units(tmp_path: Path) -> None:
    path = save(np.arange(256, dtype=np.uint8).reshape(16, 16), tmp_path / "a.dcm", Modality="CT")
    assert grey(path).ravel().tolist() == list(range(256))


@pytest.mark.parametrize("slope", [b"nan ", b"inf ", b"0 ", b"1,5 "])
def test_a_slope_that_is_no_number_is_never_taken_for_1(slope: bytes, tmp_path: Path) -> None:
    path = save(np.arange(600, dtype=np.int16).reshape(20, 30), tmp_path / "a.dcm", Modality="CT", RescaleSlope="1.25")
    path.write_bytes(path.read_bytes().replace(b"1.25", slope.ljust(4)))
    with pytest.raises(UserError, match=r"a\.dcm"):
        grey(path)


def test_too_few_levels_are_told_with_the_window_in_use(tmp_path: Path) -> None:
    path = save(
        np.arange(600, dtype=np.uint16).reshape(20, 30),
        tmp_path / "a.dcm",
        Modality="MR",
        WindowCenter=32768,
        WindowWidth=65536,
        RescaleSlope=1,
        RescaleIntercept=-100,
    )

    def use(path: Path, window: IntensityWindow | None) -> LevelUse:
        return level_use(read_image(path, intensity=window), path, index=None, axis=2, window=window)

    lost = use(path, None)
    assert lost.is_lossy
    assert "only 3 grey levels" in lost.describe()
    assert lost.advise() == "data.window=[-100,499]", "in the unit that windows are stated in, after rescaling"
    assert not use(path, IntensityWindow(-100, 499)).is_lossy
    two = save(np.tile(np.array([[0, 1]], np.uint16), (20, 15)), tmp_path / "b.dcm", Modality="MR")
    assert not use(two, IntensityWindow(0, 60000)).is_lossy, "there were only two"


def test_large_images_are_windowed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(RNG.integers(0, 4000, (20, 30)).astype(np.uint16), tmp_path / "a.dcm", Modality="MR")
    whole = grey(path)
    monkeypatch.setattr("tskd.data.dicom_grey.AT_ONCE", 70)
    np.testing.assert_array_equal(grey(path), whole)
