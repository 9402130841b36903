"""Preparing a data set: what stops it, what is warned of, and that a mask is kept as it belongs to its image."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tskd.artifacts import Store
from tskd.data.exif import ORIENTATION
from tskd.data.layouts import Dataset
from tskd.data.prepared import PARTS, Prepared, squeeze_mask
from tskd.errors import UserError
from tskd.recipe.schema import DataConfig
from tskd.stages.prepare import build, prepare
from tskd.stages.readings import Reading, Readings
from tskd.stages.source_data import open_data
from tskd.types import Record

STORED = (16, 24)


def write(root: Path, values: list[int], *, orientation: int = 1) -> Path:
    """Write an image a value, with a rectangle of it in its mask; the last two are the test."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number, value in enumerate(values):
        mask = np.zeros(STORED, np.uint8)
        mask[2:6, 3:20] = value
        pixels = rng.integers(0, 256, (*STORED, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"images/{number}.png", exif=exif)
        Image.fromarray(mask).save(root / f"masks/{number}.png")
    split = [f"{number},{'test' if number >= len(values) - 2 else 'train'}" for number in range(len(values))]
    (root / "split.csv").write_text("id,split\n" + "\n".join(split))
    return root


def prepared(root: Path, folder: Path, **settings: object) -> Prepared:
    folder.mkdir()
    config = DataConfig(root=str(root), image_size=32, **settings)
    prepare(config, Reading(open_data(config, root), config.image_size, folder), folder)
    return Prepared(folder)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image has been decoded."""
    counts, read_image = Counter[str](), Dataset.read_image

    def counted(dataset: Dataset, record: Record) -> np.ndarray:
        counts[record.id] += 1
        return read_image(dataset, record)

    monkeypatch.setattr(Dataset, "read_image", counted)
    return counts


@pytest.mark.parametrize("values", [[0] * 8, [0] * 6 + [1, 1]])
def test_nothing_to_learn_stops_a_run(values: list[int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is nothing to learn"):
        prepared(write(tmp_path / "data", values), tmp_path / "out", classes=["cyst"])


def test_a_small_budget_without_foreground_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A comparison over budgets goes on: the label that was drawn happens to show nothing."""
    prepared(write(tmp_path / "data", [0] * 6 + [1, 1]), tmp_path / "out", classes=["cyst"], labels=2)
    assert "warning: no training image holds any foreground" in capsys.readouterr().err


def test_a_test_with_nothing_to_find_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(write(tmp_path / "data", [1] * 6 + [0, 0]), tmp_path / "out", classes=["cyst"])
    assert "warning: nothing to find in the test images" in capsys.readouterr().err


def test_masks_are_turned_with_their_photographs_and_that_is_kept(tmp_path: Path) -> None:
    """Red where training sees masks as stored and photographs as shown."""
    data = prepared(write(tmp_path / "data", [1] * 8, orientation=6), tmp_path / "out", classes=["cyst"])
    row = int(data.rows("test")[0])
    expected = np.zeros(STORED, np.uint8)
    expected[2:6, 3:20] = 1
    np.testing.assert_array_equal(data.native_mask(row), np.rot90(expected, -1))
    assert data.native_image(row).shape[:2] == STORED[::-1]
    assert any(note.startswith("EXIF: 8 masks") for note in data.dataset["notes"])


def test_masks_of_which_exif_does_not_tell_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(write(tmp_path / "data", [1] * 8, orientation=3), tmp_path / "out", classes=["cyst"])
    said = [line for line in capsys.readouterr().err.splitlines() if "EXIF" in line]
    assert len(said) == 8
    assert all(line.startswith("warning: ") and "/masks/" in line for line in said)


def test_a_broken_volume_is_named_once_not_once_a_slice(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for case in range(4):
        values = np.full((8, 8, 5), 9.0 + case, np.float32)
        mask = np.zeros((8, 8, 5), np.uint8)
        values[case, case, :] = np.nan if case == 3 else 0
        mask[2:4, 2:4] = 1
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"data/images/p{case}.nii")
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / f"data/labels/p{case}.nii")
    with pytest.raises(UserError, match=r"^1 files cannot be used") as caught:
        prepared(tmp_path / "data", tmp_path / "out", window=(0, 10))
    assert str(caught.value).count("p3.nii") == 1


@pytest.mark.parametrize(("room", "times"), [(10**9, 1), (0, 2)])
def test_a_test_image_is_decoded_once_where_there_is_room_to_hold_it(
    room: int, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: Counter[str]
) -> None:
    monkeypatch.setattr("tskd.stages.readings.HELD_BYTES", room)
    data = prepared(write(tmp_path / "data", [1] * 8), tmp_path / "out", classes=["cyst"])
    assert decoded == {str(number): times if number > 5 else 1 for number in range(8)}
    (row, _) = data.rows("test")
    with Image.open(tmp_path / "data/images" / f"{data.records[row].id}.png") as image:
        assert np.array_equal(data.native_image(row), np.asarray(image))
    assert data.native_mask(row)[2:6, 3:20].all()


def budgets(root: Path, **settings: Any) -> list[DataConfig]:
    """Return two budgets of two draws each."""
    chosen = [{"labels": labels, "budget_seed": seed} for labels in (3, 5) for seed in (0, 1)]
    common = {"root": str(root), "image_size": 32, "classes": ["cyst"], "val_share": 0.0, **settings}
    return [DataConfig(**common, **one) for one in chosen]


def test_budgets_of_the_same_images_read_them_once_and_are_what_each_is_alone(
    tmp_path: Path, decoded: Counter[str]
) -> None:
    """Red where pixels of one budget end in rows of another, too: the split orders them."""
    configs = budgets(write(tmp_path / "data", [1] * 10))
    readings, shared = Readings(), Store(tmp_path / "shared")
    together = [build(shared, config, readings) for config in configs]
    assert decoded == {str(number): 1 for number in range(10)}
    alone = [build(Store(tmp_path / "alone"), config) for config in configs]
    assert [one.path.name for one in together] == [one.path.name for one in alone]
    assert [one.digest for one in together] == [one.digest for one in alone]
    assert len({one.digest for one in together}) == 4
    assert not [path for path in (tmp_path / "shared").iterdir() if path.suffix == ".partial"]


def test_images_that_look_otherwise_are_read_anew(tmp_path: Path, decoded: Counter[str]) -> None:
    root, readings, store = write(tmp_path / "data", [1] * 10), Readings(), Store(tmp_path / "out")
    for config in (*budgets(root), *budgets(root, image_size=48)):
        build(store, config, readings)
    assert set(decoded.values()) == {2}
    Image.new("RGB", STORED[::-1]).save(root / "images/0.png")
    again = build(store, budgets(root)[0], readings)
    assert Prepared(again.path).images.min(axis=(1, 2, 3)).min() == 0
    assert not Prepared(again.path).images[Prepared(again.path).row_of("0")].any()


def test_files_that_cannot_be_used_are_not_read_again_for_every_budget(tmp_path: Path, decoded: Counter[str]) -> None:
    root, readings = write(tmp_path / "data", [1] * 10), Readings()
    (root / "images/4.png").write_bytes((root / "images/4.png").read_bytes()[:300])
    for config in budgets(root):
        with pytest.raises(UserError, match=r"1 files cannot be used.*\n.*4\.png"):
            build(Store(tmp_path / "out"), config, readings)
    assert decoded["1"] == 1
    assert not list((tmp_path / "out").glob("*.partial")), "a refusal leaves nothing half-written"


@pytest.mark.parametrize("tested", [("0", "1"), ("6", "7")], ids=["the first of a pair", "the second"])
def test_an_image_in_training_and_test_is_refused_unless_accepted(tested: tuple[str, str], tmp_path: Path) -> None:
    root = write(tmp_path / "data", [1] * 8)
    shutil.copy(root / "images/7.png", root / "images/0.png")
    split = [f"{number},{'test' if str(number) in tested else 'train'}" for number in range(8)]
    (root / "split.csv").write_text("id,split\n" + "\n".join(split))
    with pytest.raises(UserError, match=r"1 images are in both training and test.*\n  0 = 7\n.*allow_duplicates"):
        prepared(root, tmp_path / "refused")
    assert prepared(root, tmp_path / "accepted", allow_duplicates=True).count("test") == 2


def test_the_split_is_drawn_as_the_settings_say(tmp_path: Path) -> None:
    root = write(tmp_path / "data", [1] * 20)
    (root / "split.csv").unlink()

    def drawn(name: str, **settings: object) -> dict[str, set[str]]:
        found = prepared(root, tmp_path / name, **settings)
        return {part: found.cases(part) for part in PARTS}

    usual, shares = drawn("usual", labels=10), drawn("shares", labels=10, test_share=0.5, val_share=0.5)
    assert [len(usual[part]) for part in PARTS] == [8, 2, 5, 5]
    assert [len(shares[part]) for part in PARTS] == [5, 5, 0, 10]
    labels = drawn("labels", labels=10, budget_seed=1)
    assert labels["test"] == usual["test"]
    assert labels["train"] != usual["train"]
    assert drawn("seed", labels=10, split_seed=1)["test"] != usual["test"]


def test_a_mask_that_is_squeezed_has_no_class_in_between() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 11:] = 2
    assert set(np.unique(squeeze_mask(mask, 7))) == {0, 2}
