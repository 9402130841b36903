"""A DICOM Segmentation lies where its scan and the NIfTI labels lie, as highdicom, ITK and the standard have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.sr._concepts_dict import concepts

from tests.dicoms import STUDY, enhanced, save_series
from tskd.data.codes import is_snomed
from tskd.data.dicom_drawn import View
from tskd.data.dicom_seg import read_segments
from tskd.deploy.dicom_out import Kind, Model, Source, as_bytes, segmentation
from tskd.deploy.inputs import Item, find_items
from tskd.deploy.label_files import series_volume

MODEL = Model(("liver", "tumour"), {}, "made up", "0" * 64)
TURN = np.array([[0.8, 0.6, 0.0], [-0.36, 0.48, 0.8], [0.48, -0.64, 0.6]])
"""A rotation by hand: 3-4-5 triangles, so no rounding."""
PLANES = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "oblique": (TURN[0], TURN[1]),
    "mirrored left to right": ((-1, 0, 0), (0, 1, 0)),
    "turned by half": ((-1, 0, 0), (0, -1, 0)),
}
Voxels = dict[tuple[float, ...], int]


def write_series(folder: Path, plane: str, *, falling: bool, tilt: float = 0.0) -> Item:
    """Write 4 slices of 6 rows and 4 columns, of 0.5 x 0.8 mm, and return what predict would find."""
    row, column = (np.array(each, float) for each in PLANES[plane])
    step = (2.5 * np.cross(row, column) + tilt * column) * (-1 if falling else 1)
    origins = [tuple((np.array([-20.0, 7, 11]) + k * step).tolist()) for k in range(4)]
    save_series(folder, origins, **{**STUDY, "ImageOrientationPatient": [*row.tolist(), *column.tolist()]})
    found = find_items([folder], results=folder / "out")
    (item,), failures = found.items, found.failures
    assert not failures
    return item


def some_labels(frames: int) -> np.ndarray:
    """Return labels that no mirror, turn or exchange of axes leaves alike; the last frame is empty."""
    labels = np.random.default_rng(3).integers(0, 3, (frames, 6, 4)).astype(np.uint8)
    labels[-1] = 0
    return labels


def written(item: Item, labels: np.ndarray, kind: Kind, path: Path) -> Path:
    sources = [Source(dcmread(one.path, stop_before_pixels=True), one.index) for one in item.slices]
    path.write_bytes(as_bytes(segmentation(sources, labels, MODEL, kind)))
    return path


def voxels_by_the_standard(path: Path) -> Voxels:
    """Return the place (RAS) of every labelled pixel after PS3.3 C.7.6.2.1.1, from the groups of each frame."""
    seg = dcmread(path)
    pixels = seg.pixel_array.reshape(int(seg.NumberOfFrames), seg.Rows, seg.Columns)
    shared, voxels = seg.SharedFunctionalGroupsSequence[0], {}
    row_spacing, column_spacing = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    for frame, own in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            point = origin + cosines[:3] * column_spacing * column + cosines[3:] * row_spacing * row
            segment = int(frame[row, column])
            if seg.SegmentationType == "BINARY":
                segment = int(own.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            key = rounded(point * [-1, -1, 1])
            assert key not in voxels
            voxels[key] = segment
    return voxels


def voxels_of_nifti(item: Item, labels: np.ndarray) -> Voxels:
    volume = series_volume(item, list(labels))
    values = np.asarray(volume.dataobj)
    return {rounded(volume.affine @ [*index, 1]): int(values[tuple(index)]) for index in np.argwhere(values)}


def rounded(point: Sequence[float]) -> tuple[float, ...]:
    return tuple((np.round(np.asarray(point)[:3], 3) + 0.0).tolist())


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("falling", [False, True], ids=["rising", "falling"])
@pytest.mark.parametrize("plane", PLANES)
def test_it_lies_where_the_nifti_and_the_scan_lie(plane: str, falling: bool, kind: Kind, tmp_path: Path) -> None:
    item, labels = write_series(tmp_path / "s", plane, falling=falling), some_labels(4)
    path = written(item, labels, kind, tmp_path / "seg.dcm")
    voxels = voxels_by_the_standard(path)
    assert voxels == voxels_of_nifti(item, labels)
    seg = hd.seg.segread(path)
    uids = [str(dcmread(one.path).SOPInstanceUID) for one in item.slices]
    read = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(read, labels)
    volume = seg.get_volume(combine_segments=True)
    indices = np.argwhere(volume.array)
    points = volume.map_indices_to_reference(indices) * [-1, -1, 1]
    assert {rounded(p): int(volume.array[tuple(i)]) for p, i in zip(points, indices, strict=True)} == voxels
    drawn = read_segments(path)  # as labels of a training
    for one, expected in zip(item.slices, labels, strict=True):
        view = View.of(one)
        assert view is not None
        masks = drawn.masks(view)
        for number in (1, 2):
            np.testing.assert_array_equal(masks.get(number, np.zeros((6, 4), bool)), expected == number)


def test_itk_reads_the_pixels_upright(tmp_path: Path) -> None:
    """ITK 5 reads the frames of a SEG without their places: each must be there, neither mirrored nor turned."""
    item, labels = write_series(tmp_path / "s", "axial", falling=False), some_labels(4)
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(written(item, labels, "binary", tmp_path / "a.dcm"))))
    expected = [(plane == number).tobytes() for number in (1, 2) for plane in labels[:3]]
    assert sorted(frame.tobytes() for frame in frames > 0) == sorted(expected)


def test_frames_of_a_tilted_gantry_lie_on_their_slices(tmp_path: Path) -> None:
    item, labels = write_series(tmp_path / "s", "axial", falling=False, tilt=0.7), some_labels(4)
    voxels = voxels_by_the_standard(written(item, labels, "binary", tmp_path / "seg.dcm"))
    assert voxels == voxels_of_nifti(item, labels)  # the sform knows of the shear


def test_slices_that_form_no_grid_are_refused_one_by_one(tmp_path: Path) -> None:
    """As for the NIfTI: an uneven series is single images, each with its own place."""
    save_series(tmp_path / "s", [(0, 0, 0), (0, 0, 2), (0, 0, 7)], **STUDY)
    items = find_items([tmp_path / "s"], results=tmp_path / "out").items
    assert [item.kind for item in items] == ["image"] * 3
    labels = np.full((1, 6, 4), 1, np.uint8)
    for number, (item, z) in enumerate(zip(items, (0, 2, 7), strict=True)):
        voxels = voxels_by_the_standard(written(item, labels, "binary", tmp_path / f"{number}.dcm"))
        assert {point[2] for point in voxels} == {z}


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_frames_of_an_enhanced_file_are_referred_to_by_number(kind: Kind, tmp_path: Path) -> None:
    heights = [4.0, 0.0, 6.0, 2.0]
    (item,) = find_items([enhanced(tmp_path / "e.dcm", heights)], results=tmp_path / "out").items
    labels = some_labels(4)
    path = written(item, labels, kind, tmp_path / "seg.dcm")
    assert voxels_by_the_standard(path) == voxels_of_nifti(item, labels)
    seg = dcmread(path)
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    for own in seg.PerFrameFunctionalGroupsSequence:
        source = own.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == dcmread(tmp_path / "e.dcm").SOPInstanceUID
        assert heights[source.ReferencedFrameNumber - 1] == own.PlanePositionSequence[0].ImagePositionPatient[2]


def test_the_check_digit_is_that_of_snomed() -> None:
    """pydicom lists the codes that DICOM uses; one of them fails the check."""
    listed = {code for names in concepts["SCT"].values() for code in names}
    wrong = {code for code in listed if not is_snomed(code)}
    assert len(listed) > 8000
    assert wrong == {"115347700"}
    code = "10200004"
    changed = {code[:i] + digit + code[i + 1 :] for i in range(8) for digit in "0123456789"} - {code}
    assert not any(map(is_snomed, changed))
