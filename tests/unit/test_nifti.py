"""NIfTI slices come out the same however the volume is stored, with the spacing of their plane and between them."""

from __future__ import annotations

import errno
import gzip
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tskd.data import nifti
from tskd.data.images import IntensityWindow, read_image
from tskd.errors import UserError

SHAPE = (5, 4, 3)
RAS = np.diag([2.0, 3.0, 4.0, 1.0])
STORED_AS = ["RAS", "LPS", "PIR", "SAL", "ALS", "IRP"]


def save(values: np.ndarray, path: Path, affine: np.ndarray = RAS) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine, dtype=values.dtype), path)
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


def test_bytes_with_a_slope_are_no_grey_levels(tmp_path: Path) -> None:
    """Red where they are shown as they are: twice 200 would be 144."""
    stored = np.arange(60, dtype=np.uint8).reshape(SHAPE) * 4
    image = nibabel.Nifti1Image(stored, RAS)
    image.header.set_slope_inter(2, 10)
    nibabel.save(image, tmp_path / "a.nii")
    values = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj)
    assert values.max() > 255
    low, high = np.percentile(values, nifti.PERCENTILES)
    shown = nifti.read_slice(tmp_path / "a.nii", 1)
    expected = np.clip((values[:, :, 1].T[::-1, ::-1] - low) * 255 / (high - low), 0, 255)
    np.testing.assert_allclose(shown, expected, atol=0.51)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_slice_needs_the_memory_of_a_slice(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where a volume is held to read a slice, along whichever axis, or kept in memory once it is unpacked."""
    monkeypatch.setattr(nifti, "IN_MEMORY", 1)
    path = save(np.zeros((128, 128, 512), np.int16), tmp_path / f"a{suffix}")
    tracemalloc.start()
    for axis in range(3):
        nifti.read_slice(path, 0, axis=axis, window=IntensityWindow(0, 1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 128 * 128 * 512


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("slab", [1, 2 * 4 * 3 * 2, 2**22])
def test_slices_along_the_first_axis_are_the_same_whatever_is_read_at_once(
    slab: int, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red where a slab begins at the wrong plane, is of another frame, or changes with what a caller does to it."""
    monkeypatch.setattr(nifti, "SLAB", slab)
    values = np.arange(120, dtype=np.int16).reshape(*SHAPE, 2)
    path = save(values, tmp_path / f"a{suffix}")
    for _ in range(2):
        for index in range(10):
            found = nifti.read_values(path, index, axis=0)
            np.testing.assert_array_equal(found, values[index % 5, :, :, index // 5].T[::-1, ::-1])
            found[:] = -1


def test_slices_along_the_first_axis_do_not_each_read_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(np.zeros((16, 8, 32), np.int16), tmp_path / "a.nii")
    reads = []
    whole = nifti.ArrayProxy.__getitem__
    monkeypatch.setattr(nifti.ArrayProxy, "__getitem__", lambda self, key: reads.append(key) or whole(self, key))
    for axis in (0, 1):
        for index in range(8):
            nifti.read_values(path, index, axis=axis)
    assert len(reads) == 32 + 8  # once for all along the first axis, once for each along the second


def test_percentiles_of_a_large_volume_are_those_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where memory grows with the volume, or the sample is of some planes or columns alone."""
    values = np.random.default_rng(0).permutation(np.arange(32 * 32 * 32, dtype=np.int32)).reshape(32, 32, 32)
    path = save(values, tmp_path / "a.nii")
    exact = nifti.volume_window(path)
    monkeypatch.setattr(nifti, "SAMPLED", 2**12)
    again = save(values, tmp_path / "b.nii")
    sampled = nifti.volume_window(again)
    assert sampled != exact
    assert (sampled.low, sampled.high) == pytest.approx((exact.low, exact.high), abs=0.01 * values.size)


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
    ("values", "message"),
    [
        (np.full(SHAPE, 0.5, np.float32), r"fractions such as 0\.5\. Round"),
        (np.full(SHAPE, 0.998, np.float32), r"fractions such as 0\.998"),
        (np.full(SHAPE, np.nan, np.float32), "NaN"),
        (np.full(SHAPE, 2**33, np.int64), "too large"),
        (np.full(SHAPE, 2**33, np.uint64), "too large"),
        (np.full(SHAPE, 1e30, np.float32), "too large"),
        (np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours"),
        (np.zeros(SHAPE, np.complex64), "complex"),
    ],
)
def test_labels_are_whole_numbers(values: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        nifti.read_label_slice(save(values, tmp_path / "a.nii"), 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_label_may_be_off_by_a_rounding(dtype: type, tmp_path: Path) -> None:
    """Red where what a program resampled or scaled, 0.9999 for 1, is called no label."""
    path = save(np.full(SHAPE, 0.9999, dtype), tmp_path / "a.nii")
    assert (nifti.read_label_slice(path, 0) == 1).all()
    assert (nifti.read_label_volume(path)[0] == 1).all()
    assert nifti.label_values(path) == {1}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.int64, np.uint64, np.float64])
@pytest.mark.parametrize("endian", "<>")
def test_every_type_of_number_is_read_as_it_is(dtype: type, endian: str, tmp_path: Path) -> None:
    """Red where a type is refused, its bytes are swapped, or float32 cuts a large label."""
    largest = min(np.iinfo(dtype).max, 2**31 - 1) if np.dtype(dtype).kind in "iu" else 2**31 - 1
    values = np.full(SHAPE, largest, np.dtype(dtype).newbyteorder(endian))
    nibabel.save(nibabel.Nifti1Image(values, RAS, dtype=dtype), tmp_path / "a.nii")
    assert (nifti.read_label_slice(tmp_path / "a.nii", 0) == largest).all()


def test_a_volume_in_colour_is_read_in_colour(tmp_path: Path) -> None:
    """Red where RGB voxels are called damaged, or lose their colours."""
    colours = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
    packed = colours.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    path = save(packed, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_image(path, index=1), colours[:, :, 1].transpose(1, 0, 2)[::-1, ::-1])


@pytest.mark.parametrize(("written", "named"), [("a.nii.gz", "b.nii"), ("a.nii", "b.nii.gz"), ("a.nii", "B.NII.GZ")])
def test_files_are_read_by_their_content_not_by_their_name(written: str, named: str, tmp_path: Path) -> None:
    """Red where a good file is called damaged because someone renamed it."""
    values = np.arange(60, dtype=np.int16).reshape(SHAPE)
    path = save(values, tmp_path / written).rename(tmp_path / named)
    np.testing.assert_array_equal(nifti.read_label_slice(path, 1), values[:, :, 1].T[::-1, ::-1])
    assert nifti.read_label_volume(path)[0].shape == SHAPE


def test_every_flipped_bit_of_a_packed_volume_is_noticed(tmp_path: Path) -> None:
    """Red where reading stops before the checksum, as nibabel does."""
    values = np.random.default_rng(0).integers(0, 4, SHAPE, np.uint8)
    whole = gzip.compress(save(values, tmp_path / "a.nii").read_bytes(), mtime=0)
    refused = 0
    for place in range(10, len(whole)):  # before it, the time and the system of the archive
        for bit in (0, 3, 7):
            path = tmp_path / f"{place}_{bit}.nii.gz"
            path.write_bytes(flipped(whole, place, bit))
            try:  # a few bits say nothing, such as those between the last code and the next whole byte
                np.testing.assert_array_equal(nifti.read_label_volume(path)[0], values)
            except UserError:
                refused += 1
    assert refused > 0.95 * 3 * (len(whole) - 10)


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


@pytest.mark.parametrize("cut", [1, 4, 8, 12, 100])
def test_a_packed_volume_that_is_cut_short_is_noticed(cut: int, tmp_path: Path) -> None:
    """Red where a missing checksum or a missing end passes."""
    path = save(np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8), tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match="cut short"):
        nifti.read_label_slice(path, 0)


def lie(path: Path, *, kind: type = nibabel.Nifti1Image, packed: bool = False, **fields: object) -> Path:
    """Write a small volume whose header states something else."""
    header = kind.header_class()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header["vox_offset"] = header.single_vox_offset
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock.ljust(header.single_vox_offset, b"\0") + bytes(120)
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (nibabel.Nifti2Image, {"dim": [3, 5, 4, 10_000_000, 1, 1, 1, 1]}, "cut short, or its header is wrong"),
        (nibabel.Nifti2Image, {"dim": [4, 2**62, 2**62, 2**62, 2**62, 1, 1, 1]}, "header is wrong"),
        (nibabel.Nifti2Image, {"vox_offset": 2**60}, "header is wrong"),
        (nibabel.Nifti1Image, {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "header is wrong"),
        (nibabel.Nifti1Image, {"vox_offset": 1e9}, "header is wrong"),
        (nibabel.Nifti1Image, {"vox_offset": np.inf}, "damaged"),
        (nibabel.Nifti1Image, {"vox_offset": np.nan}, "damaged"),
        (nibabel.Nifti1Image, {"dim": [3, 5, 4, 0, 1, 1, 1, 1]}, "no voxel"),
        (nibabel.Nifti1Image, {"dim": [3, 5, -4, 3, 1, 1, 1, 1]}, "no voxel"),
        (nibabel.Nifti1Image, {"dim": [0, 5, 4, 3, 1, 1, 1, 1]}, "no voxel"),
        (nibabel.Nifti1Image, {"datatype": 1}, "no reader knows"),
        (nibabel.Nifti1Image, {"datatype": 999}, "no reader knows"),
        (nibabel.Nifti1Image, {"scl_slope": 2, "scl_inter": np.inf}, "damaged"),
        (nibabel.Nifti1Image, {"magic": b"ni1"}, r"\.img"),
        (nibabel.Nifti1Image, {"magic": b"xyz"}, "damaged"),
    ],
)
def test_lies_in_a_header_are_found_before_anything_is_read(
    kind: type, fields: dict[str, object], message: str, packed: bool, tmp_path: Path
) -> None:
    """Red where a stated size is believed (memory, or millions of slices), or a lie is a traceback."""
    path = lie(tmp_path / "a.nii", kind=kind, packed=packed, **fields)
    tracemalloc.start()
    for reader in (nifti.slice_count, nifti.slice_spacing, lambda path: nifti.read_slice(path, 0)):
        with pytest.raises(UserError, match=rf"a\.nii: .*{message}"):
            reader(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23


@pytest.mark.parametrize("value", [0, -5, 1e30, -1e30])
def test_a_volume_of_one_value_has_a_window(value: float, tmp_path: Path) -> None:
    """Red where black and white are the same number, also where adding 1 to it changes nothing."""
    window = nifti.volume_window(save(np.full(SHAPE, value, np.float32), tmp_path / "a.nii"))
    assert window.low < window.high


@given(changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(changes=[(76 + k, 255) for k in range(32)])  # NaN for every size of a voxel
def test_no_header_is_a_traceback(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    """Red where an odd header raises anything but a message, or a mask cannot be laid on what could be read."""
    content = bytearray(lie(tmp_path / "a.nii").read_bytes())
    for place, value in changes:
        content[place] = value
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.nii"
    path.write_bytes(content)
    try:
        nifti.slice_spacing(path)
        shape = nifti.read_slice(path, 0).shape[:2]
        count = nifti.slice_count(path) * nifti.frame_count(path)
    except UserError:
        return
    assert nifti.labels_like(path, np.zeros((count, *shape), np.uint8))


def test_limits_are_stated_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where zeros in a small archive fill disk or memory, or a file of too many slices hangs what follows."""
    bomb = lie(tmp_path / "a.nii.gz")
    bomb.write_bytes(gzip.compress(bomb.read_bytes() + bytes(2**25)))
    with pytest.raises(UserError, match=r"unpacks to more than the 472 bytes"):
        nifti.read_slice(bomb, 0)
    path = save(np.zeros(SHAPE, np.uint8), tmp_path / "b.nii")
    for name, limit, message in [
        ("MAX_VOXELS", 59, "million voxels"), ("MAX_SLICES", 4, "more than 4 slices"), ("MAX_PIXELS", 19, "pixels"),
    ]:  # fmt: skip
        with monkeypatch.context() as patched:
            patched.setattr(nifti, name, limit)
            os.utime(path, ns=(0, limit))  # a changed file: what was read of it is forgotten
            with pytest.raises(UserError, match=message):
                nifti.slice_count(path)


def test_a_full_folder_for_temporary_files_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where a user is told to copy a good file again."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = save(np.zeros(SHAPE, np.uint8), tmp_path / "a.nii.gz")
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", full)
    with pytest.raises(UserError, match=r"a\.nii\.gz: there is no room.*TMPDIR"):
        nifti.read_slice(path, 0)


def test_many_threads_unpack_a_volume_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where every thread of a pool holds a copy of its own, or threads disturb each other's reading."""
    values = np.random.default_rng(0).integers(0, 255, (40, 30, 50), np.uint8)
    path = save(values, tmp_path / "a.nii.gz")
    opened = []
    really = gzip.open
    monkeypatch.setattr("gzip.open", lambda *given: opened.append(given) or really(*given))
    with ThreadPoolExecutor(8) as pool:
        slices = list(pool.map(lambda index: nifti.read_slice(path, index), range(50)))
    assert len(opened) == 1
    for index, plane in enumerate(slices):
        np.testing.assert_array_equal(plane, values[:, :, index].T[::-1, ::-1])


def test_wrong_slices_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = save(np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="slice 20 asked for"):
        nifti.read_slice(path, 20)
    with pytest.raises(UserError, match="holds a volume"):
        read_image(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"a\.nii\.gz.*cut short"):
        nifti.read_slice(path, 0)


@pytest.mark.filterwarnings("error")
def test_values_beyond_single_precision_are_white_and_black_and_say_nothing(tmp_path: Path) -> None:
    """Red where numpy's warning of the cast reaches the terminal, with a path of ours and no file's name."""
    values = np.linspace(0, 90, 8 * 8 * 3).reshape(8, 8, 3)
    values[0, 0, 0], values[7, 7, 0] = 1e300, -1e300
    grey = read_image(save(values, tmp_path / "some.nii"), index=0)[..., 0]
    assert {grey.min(), grey.max()} == {0, 255}
    with pytest.raises(UserError, match="no value that is finite in 32 bits"):
        read_image(save(np.full((4, 4, 2), 1e300), tmp_path / "all.nii"), index=0)
