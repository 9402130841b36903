"""Lost grey levels are told, with the window that keeps them, and drawings of few levels lose none."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from tskd.data import check
from tskd.data.grey_levels import LevelUse, level_use
from tskd.data.images import IntensityWindow, read_image

NOISE = np.random.default_rng(0).integers(48, 3969, (32, 32)).astype(np.uint16)
WINDOW = IntensityWindow(48, 3968)


def use(path: Path, *, index: int | None = None, window: IntensityWindow | None = None) -> LevelUse:
    image = read_image(path, index=index, intensity=window)
    return level_use(image, path, index=index, axis=2, window=window)


def write(path: Path, values: np.ndarray) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, values)
    elif path.suffix == ".nii":
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    elif path.suffix == ".dcm":
        write_dicom(path, values)
    else:
        Image.fromarray(values).save(path)
    return path


def write_dicom(path: Path, values: np.ndarray) -> None:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = MRImageStorage, pydicom.uid.generate_uid(), "MR"
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.WindowCenter, data.WindowWidth = 32768, 65536
    data.PixelData = values.tobytes()
    data.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.dcm"])
def test_twelve_bits_in_sixteen_are_told(name: str, tmp_path: Path) -> None:
    """Red where 16 of 3900 levels are left, and nothing is said."""
    found = use(write(tmp_path / name, NOISE))
    assert found.is_lossy
    text = f"only {len(found.levels)} grey levels reach the network: the values {NOISE.min()} to {NOISE.max()}"
    assert found.describe().startswith(text)
    assert found.advise() == f"data.window=[{NOISE.min()},{NOISE.max()}]"
    assert not use(write(tmp_path / name, NOISE), window=WINDOW).is_lossy


def test_a_window_may_lose_levels_too(tmp_path: Path) -> None:
    """Red where only the rule without a window is looked at: a model of 12 bits is asked about 8."""
    found = use(write(tmp_path / "a.png", np.arange(256, dtype=np.uint8)[None]), window=IntensityWindow(0, 4095))
    assert found.is_lossy
    assert found.describe().endswith("the values 0 to 255 are in use, of the window 0 to 4095")


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((32, 32), np.uint16),
        np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369,
        (NOISE > 2000).astype(np.uint8) * 255,
        (NOISE // 100).astype(np.uint8),
        NOISE * 16,
    ],
    ids=["constant", "few levels", "drawing", "dark 8 bit", "full range"],
)
def test_no_false_alarm(values: np.ndarray, tmp_path: Path) -> None:
    """Red where images that have few levels by nature are complained about."""
    assert not use(write(tmp_path / "a.png", values)).is_lossy


def test_slices_of_a_volume_are_judged_together(tmp_path: Path) -> None:
    """Red where an edge slice of little contrast raises an alarm about a good volume."""
    volume = np.stack([NOISE // 60, NOISE], axis=2).astype(np.int16)
    path = write(tmp_path / "a.nii", volume)
    edge, middle = (use(path, index=index) for index in range(2))
    assert edge.is_lossy
    assert not (edge | middle).is_lossy


def test_check_says_the_rule_the_loss_and_the_remedy_once(tmp_path: Path) -> None:
    """Red where the folder's report is silent, or says it for every image."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        write(tmp_path / "images" / f"{number}.png", np.roll(NOISE, number * 7))
        write(tmp_path / "masks" / f"{number}.png", (np.roll(NOISE, number * 7) > 2000).astype(np.uint8))
    report = check.inspect(tmp_path)
    (problem,) = [one for one in report.problems if "grey levels" in one.message]
    assert problem.message.startswith("in 4 of 4 images or volumes only 16 grey levels reach the network")
    assert "of 65535" in problem.message
    assert f"data.window=[{NOISE.min()},{NOISE.max()}]" in problem.remedy
    assert any(note.startswith("intensities: 8-bit images as they are") for note in report.notes)
    kept = check.inspect(tmp_path, options=check.LayoutOptions(window=(0, 4095)))
    assert not [one for one in kept.problems if "grey levels" in one.message]
    assert any(note.startswith("intensities: 0 becomes black, 4095 white") for note in kept.notes)


def test_levels_that_few_pixels_show_are_found_all_the_same(tmp_path: Path) -> None:
    """Red where an image is judged by the pixels that are looked at first: they are black here."""
    values = np.zeros((64, 64), np.uint16)
    values[1::8, :] = np.linspace(0, 65535, 64).astype(np.uint16)
    values[2::8, :] = np.linspace(500, 65035, 64).astype(np.uint16)
    found = use(write(tmp_path / "lines.png", values))
    assert len(found.levels) >= 64
    assert not found.is_lossy
