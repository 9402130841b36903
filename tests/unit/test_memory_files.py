"""A file in memory reads as the same file on the disk, never leads there, and is gone when its folder is closed."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless

from tests.dicoms import deflated, save, save_series
from tskd.data import dicom, dicom_pixels, nifti
from tskd.data.files import find_files
from tskd.data.images import image_size, read_image
from tskd.data.memory_files import MemoryFile, MemoryFolder
from tskd.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (72, 64, 3), dtype=np.uint8)


def write(path: Path) -> Path:
    name = path.name
    if name == "deep.png":
        Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257).save(path)
    elif name == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(NOISE).save(path, exif=exif)
    elif name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(NOISE.astype(np.int16), np.diag([-1.0, -1, 2, 1])), path)
    elif name == "packed.dcm":
        save(NOISE, path, compress=JPEG2000Lossless)
    elif name == "frames.dcm":
        save(NOISE.transpose(2, 0, 1).copy(), path, compress=JPEG2000Lossless)
    elif name == "plain.dcm":
        save(NOISE[..., 0].copy(), path)
    else:
        Image.fromarray(NOISE).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "index"),
    [("a.png", None), ("deep.png", None), ("turned.jpg", None), ("a.tif", None), ("a.gif", None), ("a.webp", None),
     ("a.nii", 1), ("a.nii.gz", 2), ("plain.dcm", None), ("packed.dcm", None), ("frames.dcm", 2)],
)  # fmt: skip
def test_every_reader_reads_from_memory_what_it_reads_from_the_disk(
    name: str, index: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / name)
    expected = read_image(path, index=index)
    with MemoryFolder.of({name: path.read_bytes()}) as folder:
        path.unlink()
        monkeypatch.chdir(tmp_path)
        np.testing.assert_array_equal(read_image(folder.file(name), index=index), expected)
        if name == "turned.jpg":
            assert image_size(folder.file(name)) == expected.shape[:2]


def test_the_grey_levels_of_a_series_come_from_all_of_its_files_in_memory(tmp_path: Path) -> None:
    """Without a window the percentiles are those of the series: red where a file in memory stands alone."""
    paths = save_series(tmp_path / "in", [(0, 0, z) for z in range(3)], Modality="MR")
    with MemoryFolder.of({path.name: path.read_bytes() for path in paths}) as folder:
        ours, theirs = dicom.list_series(folder.files), dicom.list_series(paths)
        assert [one.position for one in ours.slices] == [one.position for one in theirs.slices]
        assert {one.grid for one in ours.slices} == {0}
        for one, other in zip(ours.slices, theirs.slices, strict=True):
            np.testing.assert_array_equal(read_image(one.path), read_image(other.path))


def test_a_deflated_file_is_read_from_memory(tmp_path: Path) -> None:
    path = deflated(save(NOISE[..., 0].copy(), tmp_path / "a.dcm"))
    with MemoryFolder.of({"a.dcm": path.read_bytes()}) as folder:
        np.testing.assert_array_equal(read_image(folder.file("a.dcm")), read_image(path))


@pytest.mark.parametrize("name", ["plain.dcm", "packed.dcm", "a.nii"])
def test_what_was_read_of_a_closed_folder_is_kept_nowhere(name: str, tmp_path: Path) -> None:
    """Heads hold names of patients; the process that decodes was sent the whole file."""
    content = write(tmp_path / name).read_bytes()
    with MemoryFolder.of({name: content}) as folder:
        read_image(folder.file(name), index=1 if name == "a.nii" else None)
        made = [weakref.ref(dicom.read_head(folder.file(name)))] if name != "a.nii" else []
        kept = dict(folder.kept)
        assert kept
        held = [worker for worker in dicom_pixels.POOL.idle if worker.held]
        assert bool(held) == (name == "packed.dcm")
    assert folder.kept == {}
    del kept
    gc.collect()
    assert [one() for one in made] == [None] * len(made)
    assert [worker for worker in dicom_pixels.POOL.idle if worker.held] == []


def test_a_copy_in_memory_is_left_out_of_its_series(tmp_path: Path) -> None:
    paths = save_series(tmp_path / "in", [(0, 0, z) for z in range(3)])
    contents = {path.name: path.read_bytes() for path in paths}
    with MemoryFolder.of({**contents, "seen_twice.dcm": contents[paths[1].name]}) as folder:
        listing = dicom.list_series(folder.files)
    assert (len(listing.slices), [path.name for path in listing.copies]) == (3, ["seen_twice.dcm"])


def test_two_files_of_one_name_are_two_files() -> None:
    """Caches go by path, time and size: red where a second upload is answered with the first one's pixels."""
    affine = np.eye(4)
    seen = []
    for value in (0, 9):
        content = nibabel.Nifti1Image(np.full((4, 5, 2), value, np.uint8), affine).to_bytes()
        with MemoryFolder.of({"a.nii": content}) as folder:
            seen.append(int(nifti.read_slice(folder.file("a.nii"), 0).max()))
    assert seen == [0, 9]


def test_a_closed_folder_leaves_nothing_and_no_path_leads_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = MemoryFolder.of({"a.png": write(tmp_path / "a.png").read_bytes()})
    path = folder.file("a.png")
    assert find_files(folder, lambda one: one.suffix == ".png").files == (path,)
    assert (path.parent, path.is_file(), folder.is_dir()) == (folder, True, True)
    with pytest.raises(TypeError, match="no place on the disk"):
        Image.open(path)
    with pytest.raises(ValueError, match="opened with 'rb'"):
        path.open("wb")
    folder.close()
    with pytest.raises(FileNotFoundError):
        path.open("rb")
    with pytest.raises(UserError):
        read_image(path)
    with pytest.raises(FileNotFoundError):
        MemoryFile("a.png").open("rb")
