"""SEG and RTSTRUCT as labels: which series they belong to, and what is said where that, or their parts, are unclear."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from tests.dicoms import AXIAL, SECRETS, STUDY, save, save_contours, save_seg, save_series
from tskd.data.check import CheckReport, inspect
from tskd.data.layouts import open_dataset, survey
from tskd.errors import UserError

HEIGHTS = [(0, 0, 3 * place) for place in range(4)]


def scans(root: Path, case: str = "a", **tags: object) -> list[Path]:
    return save_series(
        root / "images" / case, HEIGHTS, name=case, **(STUDY | {"SeriesInstanceUID": f"1.3.{ord(case)}"} | tags)
    )


def square(*places: int, shift: int = 0) -> np.ndarray:
    """Return (file, row, column) with a square on some slices."""
    mask = np.zeros((4, 6, 4), np.uint8)
    for place in places:
        mask[place, 1 + shift : 3 + shift, 1:3] = 1
    return mask


def classes(root: Path, *names: str, **more: object) -> None:
    rest = "".join(f"{key}: {value}\n" for key, value in more.items())
    (root / "dataset.yaml").write_text(f"classes: [{', '.join(names)}]\n{rest}", encoding="utf-8")


def told(root: Path) -> dict[str, list[str]]:
    """Return what ``check`` says, by the name of the file."""
    said: dict[str, list[str]] = {}
    for problem in inspect(root, "dicom").problems:
        said.setdefault(problem.path.name, []).append(f"{problem.severity}: {problem.message} {problem.remedy}")
    return said


def labelled(root: Path) -> set[str]:
    return {record.id for record in survey(root, "dicom")[0].records if record.mask is not None}


def note(report: CheckReport, word: str) -> str:
    (found,) = [text for text in report.notes if word in text]
    return found


def test_check_counts_masks_by_kind_and_names_the_classes(tmp_path: Path) -> None:
    """What is no label stays among the files passed over; slices that a SEG leaves out are background."""
    first, second = scans(tmp_path, "a"), scans(tmp_path, "b", FrameOfReferenceUID="1.7")
    both = np.stack([square(1), square(2, shift=2)], axis=-1)
    save_seg(tmp_path / "images/a/study/seg.dcm", first, both, "BINARY", ["Liver", "Left kidney"])
    save_contours(tmp_path / "images/b/rt.dcm", second, {"liver ": [np.array([[0, 0, 3], [2, 0, 3], [2, 2, 3]])]})
    elsewhere = scans(tmp_path / "elsewhere", "z", FrameOfReferenceUID="1.8")
    save_seg(tmp_path / "images/b/other.dcm", elsewhere, square(0), "BINARY", ["Liver"])
    report = inspect(tmp_path, "dicom")
    assert [one.name for one in report.classes] == ["background", "Liver", "Left kidney"]
    assert [one.images for one in report.classes[1:]] == [2, 1]  # of one name are one class, whatever its number
    notes = "\n".join(report.notes)
    assert "masks: 4 from 1 RT structure set (RTSTRUCT)" in notes
    assert "masks: 4 from 1 segmentation (SEG)" in notes
    assert "passed over, since they are not scans: 1 segmentation (SEG)" in notes
    assert len(report.presence) == 8
    assert not any(secret in repr(report.to_json()) for secret in SECRETS)


def test_a_seg_in_masks_labels_the_series_it_refers_to_whatever_its_name(tmp_path: Path) -> None:
    scans(tmp_path, "a")
    series = scans(tmp_path, "b")
    save_seg(tmp_path / "masks/anything.dcm", series, square(1), "BINARY", ["Liver"])
    assert labelled(tmp_path) == {f"b/{place:04d}" for place in range(4)}


def test_images_that_a_seg_does_not_refer_to_are_unlabelled(tmp_path: Path) -> None:
    series = scans(tmp_path)
    save_seg(tmp_path / "images/a/seg.dcm", series[:2], square(1)[:2], "BINARY", ["Liver"])
    assert labelled(tmp_path) == {"a/0000", "a/0001"}


def test_without_its_series_a_seg_labels_one_of_the_same_frame_where_all_of_it_lies(tmp_path: Path) -> None:
    """As after new UIDs for the scans: slices that it draws on are labelled, the others may not have been looked at."""
    original = scans(tmp_path / "elsewhere", "z")
    scans(tmp_path, "a")
    save_seg(tmp_path / "images/a/seg.dcm", original, square(1, 3), "BINARY", ["Liver"])
    assert labelled(tmp_path) == {"a/0001", "a/0003"}
    for path in sorted((tmp_path / "images/a").glob("a*3.dcm")):
        path.unlink()  # a slice that it draws on
    assert labelled(tmp_path) == set()
    assert told(tmp_path).get("seg.dcm") is None


def test_two_objects_for_a_series_are_an_error_that_names_both(tmp_path: Path) -> None:
    series = scans(tmp_path)
    save_seg(tmp_path / "images/a/one.dcm", series, square(1), "BINARY", ["Liver"])
    save_contours(tmp_path / "images/a/two.dcm", series, {"Liver": [np.array([[0, 0, 3], [2, 0, 3], [2, 2, 3]])]})
    assert labelled(tmp_path) == set()
    (text,) = told(tmp_path)["one.dcm"]
    assert text.startswith("error: labels 4 slices that are labelled by two.dcm as well. Keep one of them")
    with pytest.raises(UserError, match=r"one\.dcm: labels 4 slices .* two\.dcm"):
        open_dataset(tmp_path, "dicom")


def test_masks_of_its_own_come_before_a_seg_beside_the_scans(tmp_path: Path) -> None:
    series = scans(tmp_path)
    save_seg(tmp_path / "images/a/seg.dcm", series, square(1), "BINARY", ["foreground"])
    (tmp_path / "masks/a").mkdir(parents=True)
    Image.fromarray(square(0)[0] * 255).save(tmp_path / "masks/a/a0000.png")
    dataset = open_dataset(tmp_path, "dicom")
    assert [int(dataset.read_mask(record).sum()) for record in dataset.records] == [4, 4, 0, 0]
    assert "masks: 3 from 1 segmentation (SEG)" in dataset.notes


def test_a_seg_of_another_grid_is_named_and_passed_over(tmp_path: Path) -> None:
    series = scans(tmp_path)
    path = save_seg(tmp_path / "images/a/seg.dcm", series, square(1), "BINARY", ["Liver"])
    seg = dcmread(path)
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.7, 0.8]
    seg.save_as(path)
    (text,) = told(tmp_path)["seg.dcm"]
    assert text.startswith("warning: refers to a series here and lies on none of its slices")
    assert "Resample it" in text
    assert labelled(tmp_path) == set()
    path.rename(tmp_path / "images/seg.dcm")
    (tmp_path / "masks").mkdir()
    (tmp_path / "images/seg.dcm").rename(tmp_path / "masks/seg.dcm")
    assert told(tmp_path)["seg.dcm"][0].startswith("error: refers to a series here")


def test_frames_on_no_slice_are_counted_and_the_others_used(tmp_path: Path) -> None:
    series = scans(tmp_path)
    save_seg(tmp_path / "images/a/seg.dcm", series, square(0, 2, 3), "BINARY", ["Liver"])
    series[3].unlink()
    (text,) = told(tmp_path)["seg.dcm"]
    assert text.startswith("warning: 1 of its 3 frames or contours lie on no slice of the series")
    assert labelled(tmp_path) == {"a/0000", "a/0001", "a/0002"}


def test_an_object_in_masks_that_belongs_to_no_series_is_an_error(tmp_path: Path) -> None:
    scans(tmp_path)
    other = scans(tmp_path / "elsewhere", "z", FrameOfReferenceUID="1.8")
    save_seg(tmp_path / "masks/a.dcm", other, square(1), "BINARY", ["Liver"])
    (text,) = told(tmp_path)["a.dcm"]
    assert text.startswith("error: was drawn on no series here that lacks a mask.")


def test_segments_that_are_no_classes_are_named_and_background(tmp_path: Path) -> None:
    series = scans(tmp_path)
    both = np.stack([square(1), square(2)], axis=-1)
    save_seg(tmp_path / "images/a/seg.dcm", series, both, "BINARY", ["LIVER", "Couch\n\x1b[31m"])
    classes(tmp_path, "liver", "spleen")
    said = told(tmp_path)
    (text,) = said["seg.dcm"]
    assert text.startswith(r"warning: holds what is none of the classes (liver, spleen) and counts as background: ")
    assert r"Couch\n\x1b[31m (2)" in text
    assert any("no mask holds the class spleen" in one for one in said[""])
    dataset = open_dataset(tmp_path, "dicom")
    assert [int(dataset.read_mask(record).max()) for record in dataset.records] == [0, 1, 0, 0]


def test_a_label_map_of_dataset_yaml_speaks_of_the_segments_numbers(tmp_path: Path) -> None:
    series = scans(tmp_path)
    both = np.stack([square(1), square(2)], axis=-1)
    save_seg(tmp_path / "images/a/seg.dcm", series, both, "BINARY", ["Segment_1", "Segment_2"])
    classes(tmp_path, "lesion", labels="{1: 0, 2: 1}")
    dataset = open_dataset(tmp_path, "dicom")
    assert [int(dataset.read_mask(record).max()) for record in dataset.records] == [0, 0, 1, 0]
    assert "seg.dcm" not in told(tmp_path)
    classes(tmp_path, "lesion", labels="{2: 5}")
    assert any("label map: class 5" in one for one in told(tmp_path)["seg.dcm"])


def test_where_classes_overlap_the_later_one_is_kept_and_check_says_so(tmp_path: Path) -> None:
    series = scans(tmp_path)
    both = np.stack([square(1), square(1, shift=1)], axis=-1)
    save_seg(tmp_path / "images/a/seg.dcm", series, both, "BINARY", ["Liver", "Lesion"])
    truth = square(1)[1] + 2 * (square(1, shift=1)[1] & ~square(1)[1] & 1) + square(1, shift=1)[1] * square(1)[1]
    record = survey(tmp_path, "dicom")[0].records[1]
    assert np.array_equal(open_dataset(tmp_path, "dicom").read_mask(record), truth)
    classes(tmp_path, "lesion", "liver")
    assert np.array_equal(open_dataset(tmp_path, "dicom").read_mask(record) == 2, square(1)[1])
    assert "in 1 masks classes lie over one another" in note(inspect(tmp_path, "dicom"), "overlap")


def test_segments_of_one_name_are_one_class_and_do_not_overlap(tmp_path: Path) -> None:
    series = scans(tmp_path)
    both = np.stack([square(1), square(1, shift=1)], axis=-1)
    save_seg(tmp_path / "images/a/seg.dcm", series, both, "BINARY", ["Lesion", "Lesion"])
    report = inspect(tmp_path, "dicom")
    assert [one.name for one in report.classes] == ["background", "Lesion"]
    assert not any("overlap" in text for text in report.notes)


def test_the_threshold_of_fractional_segments_is_told(tmp_path: Path) -> None:
    series = scans(tmp_path)
    save_seg(tmp_path / "images/a/seg.dcm", series, square(1)[..., None] * 0.7, "FRACTIONAL", ["Liver"])
    assert "50% and more of the greatest value count" in note(inspect(tmp_path, "dicom"), "fractional")


@pytest.mark.parametrize("lost", ["SegmentSequence", "SegmentationType", "SharedFunctionalGroupsSequence"])
def test_a_seg_without_what_the_standard_demands_is_named_not_called_damaged(tmp_path: Path, lost: str) -> None:
    path = save_seg(tmp_path / "images/a/seg.dcm", scans(tmp_path), square(1), "BINARY", ["Liver"])
    seg = dcmread(path)
    del seg[lost]
    seg.save_as(path)
    (text,) = told(tmp_path)["seg.dcm"]
    assert text.startswith("warning: is a segmentation (SEG) that lacks what the standard demands")
    assert "damaged" not in text


def test_open_contours_and_points_are_counted_not_filled(tmp_path: Path) -> None:
    series = scans(tmp_path)
    corners = np.array([[-1, -1, 3], [9, -1, 3], [9, 9, 3], [-1, 9, 3]])
    path = save_contours(tmp_path / "images/a/rt.dcm", series, {"Liver": [corners, corners + np.array([0, 0, 3])]})
    structures = dcmread(path)
    structures.ROIContourSequence[0].ContourSequence[1].ContourGeometricType = "OPEN_PLANAR"
    structures.save_as(path)
    assert "1 points and open or broken contours are not filled" in note(inspect(tmp_path, "dicom"), "not filled")
    dataset = open_dataset(tmp_path, "dicom")
    assert [int(dataset.read_mask(record).sum()) for record in dataset.records] == [0, 24, 0, 0]


def test_contours_between_the_slices_are_left_out_and_counted(tmp_path: Path) -> None:
    series = scans(tmp_path)
    corners = np.array([[-1, -1, 3], [9, -1, 3], [9, 9, 3]])
    save_contours(tmp_path / "images/a/rt.dcm", series, {"Liver": [corners, corners + np.array([0, 0, 1])]})
    (text,) = told(tmp_path)["rt.dcm"]
    assert text.startswith("warning: 1 of its 2 frames or contours lie on no slice")


def test_a_structure_set_without_contours_labels_nothing_and_says_so(tmp_path: Path) -> None:
    save_contours(tmp_path / "images/a/rt.dcm", scans(tmp_path), {"Liver": []})
    assert told(tmp_path)["rt.dcm"][0].startswith("warning: draws nothing")
    assert labelled(tmp_path) == set()


@pytest.mark.parametrize("severity", ["error", "warning"])
def test_the_mask_of_a_scan_that_is_left_out_as_a_copy_is_called_that(tmp_path: Path, severity: str) -> None:
    """It was called a mask without an image, and its image lay there."""
    series = scans(tmp_path)
    shutil.copy(series[1], series[1].with_name("a0001 (2).dcm"))
    (tmp_path / "masks/a").mkdir(parents=True)
    for name in ("a0001 (2)",) if severity == "error" else ("a0001 (2)", "a0001"):
        Image.fromarray(square(1)[1] * 255).save(tmp_path / f"masks/a/{name}.png")
    (text,) = told(tmp_path)["a0001 (2).png"]
    assert text.startswith(f"{severity}: is the mask of a0001 (2).dcm, which is left out as a copy of a0001.dcm")


def save_enhanced(path: Path) -> Path:
    """Write one multi-frame file with a frame at each of ``HEIGHTS``."""
    study: dict[str, Any] = STUDY
    shared, frames = Dataset(), [Dataset() for _ in HEIGHTS]
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.8], 3
    orientation.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    for frame, origin in zip(frames, HEIGHTS, strict=True):
        place = Dataset()
        place.ImagePositionPatient = list(origin)
        frame.PlanePositionSequence = [place]
    return save(
        np.arange(96, dtype=np.uint16).reshape(4, 6, 4), path, SeriesInstanceUID="1.3.9", Modality="CT",
        SOPClassUID=EnhancedCTImageStorage, SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames, **study,
    )  # fmt: skip


def test_a_seg_on_an_enhanced_multi_frame_scan_labels_its_frames(tmp_path: Path) -> None:
    """Red where frames are found by files alone: one file holds all slices, and the SEG refers to frames of it."""
    (tmp_path / "images/a").mkdir(parents=True)
    scan = save_enhanced(tmp_path / "images/a/scan.dcm")
    save_seg(tmp_path / "masks/seg.dcm", [scan], square(1, 2), "BINARY", ["Liver"])
    report = inspect(tmp_path, "dicom")
    assert not [problem for problem in report.problems if "Too few" not in problem.message]
    assert sorted(map(len, report.presence.values())) == [0, 0, 1, 1]
    assert [one.images for one in report.classes[1:]] == [2]
    assert round(report.classes[1].share * 4 * 24) == 8
