"""NIfTI slices come out the same however the volume is stored, with the spacing of their plane and between them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tskd.data import nifti
from tskd.data.images import IntensityWindow, read_image
from tskd.errors import UserError

SHAPE = (5, 4, 3)
RAS = np.diag([2.0, 3.0, 4.0, 1.0])
STORED_AS = ["RAS", "LPS", "PIR", "SAL", "ALS", "IRP"]


def save(values: np.ndarray, path: Path, affine: np.ndarray = RAS) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def stored(values: np.ndarray, path: Path, codes: str) -> Path:
    """Write a canonical volume in another axis order and direction."""
    canonical = nibabel.Nifti1Image(values, RAS)
    wanted = nibabel.orientations.axcodes2ornt(codes)
    moved = nibabel.orientations.ornt_transform(nibabel.io_orientation(RAS), wanted)
    nibabel.save(canonical.as_reoriented(moved), path)
    assert "".join(nibabel.aff2axcodes(nibabel.load(path).affine)) == codes
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", STORED_AS)
def test_slices_do_not_depend_on_storage(codes: str, suffix: str, tmp_path: Path) -> None:
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    path = stored(values, tmp_path / f"a{suffix}", codes)
    expected = {  # rows from the top, columns from the left: right hand of the patient left, front or head at the top
        2: values[:, :, 1].T[::-1, ::-1],
        1: values[:, 1, :].T[::-1, ::-1],
        0: values[1, :, :].T[::-1, ::-1],
    }
    for axis, plane in expected.items():
        np.testing.assert_array_equal(nifti.read_label_slice(path, 1, axis=axis), plane)
        assert nifti.slice_count(path, axis=axis) == SHAPE[axis]
    assert [nifti.slice_spacing(path, axis=axis) for axis in range(3)] == [(4, 3, 2), (4, 2, 3), (3, 2, 4)]
    shape, affine = nifti.canonical_grid(path)
    assert shape == SHAPE
    np.testing.assert_allclose(affine, RAS, atol=1e-5)


def test_scaling_is_the_window_the_volumes_percentiles_or_the_bytes(tmp_path: Path) -> None:
    values = np.linspace(-500, 500, 60, dtype=np.float32).reshape(SHAPE)
    path = save(values, tmp_path / "a.nii.gz")
    windowed = read_image(path, index=0, intensity=IntensityWindow(-500, 500))
    np.testing.assert_array_equal(windowed[..., 0], np.rint((values[:, :, 0].T[::-1, ::-1] + 500) * 0.255))
    low, high = np.percentile(values, nifti.PERCENTILES)
    window = nifti.volume_window(path)
    assert (window.low, window.high) == pytest.approx((low, high))
    whole = np.stack([nifti.read_slice(path, index) for index in range(SHAPE[2])])
    assert (whole.min(), whole.max()) == (0, 255)
    plain = save(np.full(SHAPE, 7, np.uint8), tmp_path / "b.nii")
    assert (nifti.read_slice(plain, 0) == 7).all()


def test_uncompressed_slices_are_read_without_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(np.zeros(SHAPE, np.int16), tmp_path / "a.nii")
    monkeypatch.setattr(nifti, "_stored", lambda path: pytest.fail("the whole volume was read"))
    assert nifti.read_label_slice(path, 0).shape == (4, 5)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = save(np.zeros(SHAPE, np.int16), tmp_path / "a.nii.gz")
    assert nifti.read_label_slice(path, 0).max() == 0
    save(np.ones(SHAPE, np.int16), path)
    assert nifti.read_label_slice(path, 0).max() == 1


def test_two_axes_are_one_slice_and_five_are_refused(tmp_path: Path) -> None:
    flat = save(np.ones((5, 4), np.uint8), tmp_path / "a.nii")
    assert nifti.read_label_slice(flat, 0).shape == (4, 5)
    assert (nifti.slice_count(flat), nifti.frame_count(flat)) == (1, 1)
    with pytest.raises(UserError, match="a volume has three, and a fourth where it has frames"):
        nifti.slice_count(save(np.zeros((*SHAPE, 1, 2), np.uint8), tmp_path / "b.nii"))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_run_through_the_frames_one_after_the_other(suffix: str, tmp_path: Path) -> None:
    frames = [np.arange(60, dtype=np.int16).reshape(SHAPE) + 100 * number for number in range(3)]
    several = save(np.stack(frames, axis=3), tmp_path / f"a{suffix}")
    assert nifti.frame_count(several) == 3
    assert nifti.canonical_grid(several)[0] == SHAPE
    for axis in range(3):
        for number, values in enumerate(frames):
            alone = save(values, tmp_path / f"{number}{suffix}")
            for place in range(SHAPE[axis]):
                found = nifti.read_label_slice(several, number * SHAPE[axis] + place, axis=axis)
                np.testing.assert_array_equal(found, nifti.read_label_slice(alone, place, axis=axis))
    with pytest.raises(UserError, match="has 3 along axis 2 in each of 3 frames"):
        nifti.read_label_slice(several, 9)


@pytest.mark.parametrize(
    ("values", "message"), [(np.full(SHAPE, 0.5, np.float32), "fractions"), (np.full(SHAPE, np.nan, np.float32), "NaN")]
)
def test_labels_are_whole_numbers(values: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        nifti.read_label_slice(save(values, tmp_path / "a.nii"), 0)


def test_wrong_slices_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = save(np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="slice 20 asked for"):
        nifti.read_slice(path, 20)
    with pytest.raises(UserError, match="holds a volume"):
        read_image(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"a\.nii\.gz.*cut short"):
        nifti.read_slice(path, 0)
