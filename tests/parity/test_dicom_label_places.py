"""SEG objects written by highdicom and structure sets: voxel for voxel on the series that they were drawn on."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from matplotlib.path import Path as Outline
from pydicom import dcmread

from tests.dicoms import STUDY, save_contours, save_seg, save_series
from tskd.data.dicom_contours import fill
from tskd.data.layouts import open_dataset

SIZE = (6, 4)  # rows, columns, as save_series writes
TURNS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "axial, both axes reversed": ((-1, 0, 0), (0, -1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "oblique": ((0.8, 0.6, 0), (-0.36, 0.48, 0.8)),
}


def scans(root: Path, turn: str, *, backwards: bool = False, count: int = 4) -> list[Path]:
    """Write a series in images/a, file names in or against the order of positions."""
    row, column = (np.array(one, float) for one in TURNS[turn])
    normal = np.cross(row, column)
    origins = [np.array([-30.0, 12.5, 7.0]) + 3 * place * normal for place in range(count)]
    tags = STUDY | {"ImageOrientationPatient": [*row, *column]}
    return save_series(root / "images/a", origins[::-1] if backwards else origins, **tags)


def labels(count: int = 4) -> np.ndarray:
    """Return (file, row, column) labels 0..2 that no turn and no exchange of axes leaves as they are."""
    made = np.zeros((count, *SIZE), np.uint8)
    made[1, 1:4, 2] = made[1, 1, 1] = 1
    made[2, 0, 0:2] = 2
    made[2, 5, 3] = 1
    return made


def read(root: Path, series: list[Path]) -> np.ndarray:
    """Return the masks of a data set, (file, row, column)."""
    dataset = open_dataset(root, "dicom")
    by_file = {record.image: record for record in dataset.records}
    assert len(by_file) == len(series)
    return np.stack([dataset.read_mask(by_file[path]) for path in series])


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("turn", TURNS)
def test_a_seg_lies_voxel_for_voxel_on_its_series(tmp_path: Path, turn: str, backwards: bool) -> None:
    series = scans(tmp_path, turn, backwards=backwards)
    truth = labels()
    both = np.stack([truth == 1, truth == 2], axis=-1).astype(np.uint8)
    shuffled = [2, 0, 3, 1]
    save_seg(tmp_path / "images/a/seg", [series[k] for k in shuffled], both[shuffled], "BINARY", ["Liver", "Spleen"])
    assert np.array_equal(read(tmp_path, series), truth)


@pytest.mark.parametrize("turn", ["axial", "oblique"])
def test_a_seg_of_other_axes_is_laid_over_by_its_coordinates(tmp_path: Path, turn: str) -> None:
    """Other programs write frames flipped or transposed against the scans."""
    series = scans(tmp_path, turn)
    volume = hd.get_volume_from_series([dcmread(path) for path in series])
    order = [series.index(path) for path in sorted(series)]
    first = np.allclose(volume.get_plane_position(0)[0].ImagePositionPatient, dcmread(series[0]).ImagePositionPatient)
    truth = labels()[order]
    drawn = volume.with_array(truth if first else truth[::-1])
    turned = drawn.flip_spatial([0, 1]).permute_spatial_axes([0, 2, 1])
    save_seg(tmp_path / "images/a/seg", series, turned, "LABELMAP", ["Liver", "Spleen"])
    assert np.array_equal(read(tmp_path, series), labels())


@pytest.mark.parametrize(
    ("kind", "share"), [("BINARY", 1.0), ("FRACTIONAL", 0.6), ("FRACTIONAL", 0.4), ("LABELMAP", 1)]
)
def test_every_type_of_segmentation_is_read(tmp_path: Path, kind: str, share: float) -> None:
    series = scans(tmp_path, "axial")
    truth = labels()
    pixels = truth if kind == "LABELMAP" else np.stack([truth == 1, truth == 2], axis=-1)
    save_seg(tmp_path / "masks/a.dcm", series, pixels * share if kind == "FRACTIONAL" else pixels, kind, ["L", "S"])
    assert np.array_equal(read(tmp_path, series), truth if share >= 0.5 else 0 * truth)


def test_frames_whose_pixels_are_no_whole_bytes_are_told_apart(tmp_path: Path) -> None:
    """Frames of 5 x 7 bits begin within a byte."""
    pixels = np.random.default_rng(0).integers(0, 2, (3, 5, 7)).astype(np.uint8)
    series = []
    for number in range(3):
        (path,) = save_series(
            tmp_path / "images/a", [(0, 0, 3 * number)], name=f"S{number}", **STUDY, SeriesInstanceUID="1.9"
        )
        scan = dcmread(path)
        scan.Rows, scan.Columns, scan.PixelData = 5, 7, bytes(70)
        scan.save_as(path)
        series.append(path)
    save_seg(tmp_path / "images/a/seg", series, pixels, "BINARY", ["L"])
    assert np.array_equal(read(tmp_path, series), pixels)


def outline(scan: Path, corners: list[tuple[float, float]]) -> np.ndarray:
    """Return the (column, row) corners on a slice in millimetres, by PS3.3 C.7.6.2.1.1 spelt out."""
    data = dcmread(scan)
    row, column = (np.array(data.ImageOrientationPatient[part], float) for part in (slice(3), slice(3, 6)))
    between_rows, between_columns = data.PixelSpacing
    origin = np.array(data.ImagePositionPatient, float)
    return np.array([origin + row * between_columns * c + column * between_rows * r for c, r in corners])


@pytest.mark.parametrize("turn", TURNS)
def test_contours_are_filled_on_their_slices_with_holes(tmp_path: Path, turn: str) -> None:
    series = scans(tmp_path, turn)
    outer = [(-0.4, 0.6), (3.4, 0.6), (3.4, 4.4), (-0.4, 4.4)]  # columns 0 to 3, rows 1 to 4
    hole = [(0.6, 1.6), (1.4, 1.6), (1.4, 3.4), (0.6, 3.4)]  # column 1, rows 2 and 3
    corner = [(1.8, -0.3), (3.2, -0.3), (3.2, 0.3), (1.8, 0.3)]  # columns 2 and 3, row 0
    regions = {
        "Liver": [outline(series[1], outer), outline(series[1], hole)],
        "Spleen": [outline(series[3], corner)],
    }
    save_contours(tmp_path / "images/a/structures", series, regions)
    truth = np.zeros((4, *SIZE), np.uint8)
    truth[1, 1:5, 0:4] = 1
    truth[1, 2:4, 1] = 0
    truth[3, 0, 2:4] = 2
    assert np.array_equal(read(tmp_path, series), truth)


def test_filling_agrees_with_another_implementation() -> None:
    random = np.random.default_rng(1)
    rows, columns = np.indices((20, 30))
    centres = np.column_stack([columns.ravel(), rows.ravel()])
    for corners in (3, 4, 7, 12):
        angles = np.sort(random.uniform(0, 2 * np.pi, corners))
        radii = random.uniform(2, 14, corners)
        points = np.column_stack([14 + radii * np.cos(angles), 9 + radii * np.sin(angles)])
        expected = Outline(np.vstack([points, points[:1]]), closed=True).contains_points(centres).reshape(20, 30)
        assert expected.any()
        assert np.array_equal(fill([points], (20, 30)), expected)


def test_a_centre_on_an_outline_belongs_to_one_side_alone() -> None:
    left = np.array([(0, 0), (2, 0), (2, 3), (0, 3)], float)
    right = left + np.array([2.0, 0.0])
    first, second = fill([left], (3, 4)), fill([right], (3, 4))
    assert np.array_equal(first, np.array([[1, 1, 0, 0]] * 3, bool))
    assert np.array_equal(second, ~first)


def test_contours_beyond_the_image_are_cut_at_its_edge() -> None:
    assert fill([np.array([(-9, -9), (40, -9), (40, 40), (-9, 40)], float)], (3, 4)).all()
    assert not fill([np.array([(-9, 0), (-2, 0), (-2, 3), (-9, 3)], float)], (3, 4)).any()
