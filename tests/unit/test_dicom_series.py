"""Order by geometry, volumes and grids, and what is said of series that are not a regular grid."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.dicoms import AXIAL, save, save_series
from tskd.data import dicom


def test_order_follows_the_projected_position_against_names_and_numbers(tmp_path: Path) -> None:
    """Sagittal slices: the normal is the x axis, z says nothing."""
    paths = [
        save(
            np.zeros((2, 2), np.uint8), tmp_path / f"{name}.dcm", SeriesInstanceUID="1.2", InstanceNumber=number,
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1], ImagePositionPatient=[x, 0, z],
        )
        for name, number, x, z in (("a", 1, -5.0, 0), ("b", 2, 5.0, 1), ("c", 3, 0.0, 9))
    ]  # fmt: skip
    ordered = [item.path.stem for item in dicom.list_series(paths).slices]
    assert ordered == ["b", "c", "a"]  # the normal (0,1,0) x (0,0,-1) is (-1,0,0)


def test_order_falls_back_to_instance_numbers_never_to_names(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2), np.uint8)
    numbered = [
        save(pixels, tmp_path / f"{name}.dcm", SeriesInstanceUID="1.2", InstanceNumber=number)
        for name, number in (("a", 10), ("b", 9))
    ]
    assert [item.path.stem for item in dicom.list_series(numbered).slices] == ["b", "a"]
    nameless = [save(pixels, tmp_path / f"{name}.dcm", SeriesInstanceUID="1.3", Modality="MR") for name in "cd"]
    listing = dicom.list_series(nameless)
    assert [item.volume for item in listing.slices] == [None, None]
    assert "order is unknown" in listing.remarks[0]


def placed(folder: Path, *positions: float, **tags: object) -> list[tuple[object, ...]]:
    """Write a series with a file at each position; return volume, place and spacing of each, in the order of files."""
    uid = f"1.5.{len(list(folder.glob('*')))}"
    tags = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.5, 0.8], **tags}
    paths = [
        save(np.full((2, 2), number, np.uint16), folder / f"{uid}-{number}.dcm", SeriesInstanceUID=uid,
             InstanceNumber=number,
             ImagePositionPatient=[0, 0, z], **tags)
        for number, z in enumerate(positions)
    ]  # fmt: skip
    found = {item.path: item for item in dicom.list_series(paths).slices}
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
    assert {item.volume for item in dicom.list_series(paths).slices} == {None}


def grids(listing: dicom.Listing) -> list[list[str]]:
    """Return the names of the files of each grid, in order."""
    found: dict[int, list[str]] = {}
    for item in listing.slices:
        if item.grid is not None:
            found.setdefault(item.grid, []).append(item.path.name)
    return list(found.values())


def axial(*heights: float) -> list[tuple[float, float, float]]:
    return [(-20, -20, height) for height in heights]


def remark(folder: Path) -> str:
    (text,) = dicom.list_series(sorted(folder.iterdir())).remarks
    assert str(folder) in text
    return text


def test_a_regular_series_is_one_grid_without_a_remark(tmp_path: Path) -> None:
    listing = dicom.list_series(save_series(tmp_path / "s", axial(10, 5, 0)))
    assert grids(listing) == [["IM0002.dcm", "IM0001.dcm", "IM0000.dcm"]]
    assert listing.remarks == []


def test_a_missing_slice_parts_the_grid_and_is_told_with_both_distances(tmp_path: Path) -> None:
    listing = dicom.list_series(save_series(tmp_path / "s", axial(0, 5, 10, 20, 25)))
    assert [len(names) for names in grids(listing)] == [3, 2]
    assert [item.place for item in listing.slices] == [0, 1, 2, 4, 5]
    text = remark(tmp_path / "s")
    assert "missing" in text
    assert "5 mm, but 10 mm between IM0002.dcm and IM0003.dcm" in text


def test_a_lone_slice_beyond_a_gap_is_in_no_grid(tmp_path: Path) -> None:
    listing = dicom.list_series(save_series(tmp_path / "s", axial(0, 5, 10, 30)))
    assert [item.grid is None for item in listing.slices] == [False, False, False, True]


def test_uneven_distances_are_no_grid_and_are_told(tmp_path: Path) -> None:
    listing = dicom.list_series(save_series(tmp_path / "s", axial(0, 2.5, 5.9, 8)))
    assert grids(listing) == []
    assert "varies from 2.1 to 3.4 mm" in remark(tmp_path / "s")


def test_small_differences_that_add_up_are_no_grid(tmp_path: Path) -> None:
    """Each gap is within 4 % of the mean, but the middle slice is 0.8 mm off an even grid."""
    heights = np.concatenate([np.arange(10) * 4.8, 10 * 4.8 + np.arange(10) * 5.0])
    assert grids(dicom.list_series(save_series(tmp_path / "s", axial(*heights)))) == []


def test_rounded_positions_are_a_grid(tmp_path: Path) -> None:
    heights = [round(k * 0.625, 1) for k in range(12)]
    assert [len(names) for names in grids(dicom.list_series(save_series(tmp_path / "s", axial(*heights))))] == [12]


def test_slices_shifted_sideways_are_no_grid(tmp_path: Path) -> None:
    listing = dicom.list_series(save_series(tmp_path / "s", [(0, 0, 0), (3, 0, 5), (0, 0, 10)]))
    assert grids(listing) == []
    assert "shifted against each other" in remark(tmp_path / "s")


def test_a_tilted_gantry_is_told_and_keeps_its_grid(tmp_path: Path) -> None:
    turned = [1, 0, 0, 0, float(np.cos(np.radians(15))), float(-np.sin(np.radians(15)))]
    paths = save_series(tmp_path / "s", axial(0, 5, 10), ImageOrientationPatient=turned)
    listing = dicom.list_series(paths)
    assert [len(names) for names in grids(listing)] == [3]
    assert "tilted by 15.0 degrees" in remark(tmp_path / "s")
    assert listing.slices[0].spacing == pytest.approx((0.5, 0.8, 5 * np.cos(np.radians(15)))), "along the normal"


@pytest.mark.parametrize(
    "odd",
    [
        {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
        {"PixelSpacing": [1.0, 1.0]},
        {"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]},
    ],
    ids=["a localizer", "another spacing", "turned in its plane"],
)
def test_what_does_not_fit_is_kept_apart_and_named(odd: dict[str, object], tmp_path: Path) -> None:
    folder = tmp_path / "s"
    save_series(folder, axial(0, 5, 10))
    stranger = save(np.zeros((6, 4), np.int16), folder / "XX.dcm", SeriesInstanceUID="1.2.2", **{
        "ImageOrientationPatient": list(AXIAL), "PixelSpacing": [0.5, 0.8],
        "ImagePositionPatient": [-20, -20, 5], **odd})  # fmt: skip
    listing = dicom.list_series(sorted(folder.iterdir()))
    assert grids(listing) == [["IM0000.dcm", "IM0001.dcm", "IM0002.dcm"]]
    assert [item.path for item in listing.slices if item.grid is None] == [stranger]
    assert "XX.dcm" in remark(folder)


def test_slices_of_another_size_are_kept_apart(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    save_series(folder, axial(0, 5, 10))
    save(np.zeros((4, 6), np.int16), folder / "XX.dcm", SeriesInstanceUID="1.2.2", ImagePositionPatient=[-20, -20, 15],
         ImageOrientationPatient=list(AXIAL), PixelSpacing=[0.5, 0.8])  # fmt: skip
    assert [len(names) for names in grids(dicom.list_series(sorted(folder.iterdir())))] == [3]


def test_a_copied_file_is_named_and_taken_once(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    paths = save_series(folder, axial(0, 5, 10))
    shutil.copy(paths[1], folder / "IM0001 (1).dcm")  # sorts before IM0001.dcm
    listing = dicom.list_series(sorted(folder.iterdir()))
    assert [item.path for item in listing.slices] == paths
    assert grids(listing) == [[path.name for path in paths]]
    assert "IM0001 (1).dcm: is a copy of IM0001.dcm" in remark(folder)


def test_an_image_saved_again_under_another_uid_is_a_copy_too(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    paths = save_series(folder, axial(0, 5, 10))
    pixels = dicom.read_stored(paths[1])
    save(pixels, folder / "again.dcm", SeriesInstanceUID="1.2.2", ImagePositionPatient=[-20, -20, 5], InstanceNumber=9,
         ImageOrientationPatient=list(AXIAL), PixelSpacing=[0.5, 0.8])  # fmt: skip
    listing = dicom.list_series(sorted(folder.iterdir()))
    assert [len(names) for names in grids(listing)] == [3]
    assert "copy" in remark(folder)


def test_one_uid_for_all_slices_makes_no_copies(tmp_path: Path) -> None:
    """Careless anonymisation."""
    paths = save_series(tmp_path / "s", axial(0, 5, 10), SOPInstanceUID="1.2.3")
    assert len(dicom.list_series(paths).slices) == 3


def test_time_points_are_grids_of_their_own(tmp_path: Path) -> None:
    paths = save_series(tmp_path / "s", axial(0, 5, 10, 0, 5, 10))
    assert grids(dicom.list_series(paths)) == [[path.name for path in paths[:3]], [path.name for path in paths[3:]]]


@pytest.mark.parametrize(
    ("tag", "text"),
    [("InstanceNumber", b"inf "), ("ImagePositionPatient", b"nan\\0\\0 "), ("PixelSpacing", b"0\\nan ")],
)
def test_numbers_that_are_none_cost_no_other_file(tag: str, text: bytes, tmp_path: Path) -> None:
    paths = save_series(tmp_path / "s", axial(0, 5, 10))
    data = pydicom.dcmread(paths[2])
    element = data[tag]
    data._dict[element.tag] = pydicom.dataelem.RawDataElement(element.tag, element.VR, len(text), text, 0, False, True)  # noqa: SLF001 (as read)
    data.save_as(paths[2])
    listing = dicom.list_series(paths)
    assert {item.path for item in listing.slices} | {path for path, _ in listing.failures} == set(paths)
    assert paths[0] in {item.path for item in listing.slices}


def test_series_and_patients_are_numbered_in_the_order_of_files(tmp_path: Path) -> None:
    """No digest of an identity is shown: that of a short number is found by trying all of them."""
    save_series(tmp_path, axial(0, 5), name="B", SeriesInstanceUID="1.9", PatientID="0001")
    save_series(tmp_path, axial(0, 5), name="A", SeriesInstanceUID="1.8", PatientID="0002")
    save_series(tmp_path, axial(0, 5), name="C", SeriesInstanceUID="1.7", PatientID="0001")
    found = {item.path.name[0]: (item.series, item.patient) for item in dicom.list_series(tmp_path.iterdir()).slices}
    assert found == {"A": (1, 1), "B": (2, 2), "C": (3, 2)}


def ultrasound(*regions: dict[str, float]) -> dict[str, object]:
    sequence = []
    for region in regions:
        sequence.append(pydicom.Dataset())
        for name, value in region.items():
            setattr(sequence[-1], name, value)
    return {"SequenceOfUltrasoundRegions": sequence}


PLANE = {
    "RegionSpatialFormat": 1, "PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3,
    "PhysicalDeltaX": 0.02, "PhysicalDeltaY": -0.05,
}  # fmt: skip


@pytest.mark.parametrize(
    ("regions", "spacing"),
    [
        ([PLANE], (0.5, 0.2)),
        ([PLANE, PLANE], (0.5, 0.2)),
        ([PLANE, {**PLANE, "PhysicalDeltaX": 0.04}], None),
        ([PLANE, {**PLANE, "RegionSpatialFormat": 2}], None),
        ([{**PLANE, "PhysicalUnitsYDirection": 4}], None),
        ([{**PLANE, "PhysicalDeltaX": 0}], None),
        ([], None),
    ],
)
def test_the_scale_of_ultrasound_is_that_of_its_plane_in_centimetres(
    regions: list[dict[str, float]], spacing: tuple[float, float] | None, tmp_path: Path
) -> None:
    """A region beside it may be a curve over time (M mode), whose pixels are seconds."""
    save(np.zeros((4, 4), np.uint8), tmp_path / "us.dcm", **ultrasound(*regions))
    (found,) = dicom.list_series([tmp_path / "us.dcm"]).slices
    assert found.spacing == (None if spacing is None else pytest.approx(spacing))


def test_a_stated_pixel_spacing_comes_before_the_scale_of_ultrasound(tmp_path: Path) -> None:
    save(np.zeros((4, 4), np.uint8), tmp_path / "us.dcm", PixelSpacing=[3, 4], **ultrasound(PLANE))
    (found,) = dicom.list_series([tmp_path / "us.dcm"]).slices
    assert found.spacing == (3, 4)
