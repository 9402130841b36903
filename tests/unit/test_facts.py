"""What a data set offers: the class that is thin, structures by number and not by area, budgets in cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tskd.data.layouts import open_dataset
from tskd.data.splits import make_split
from tskd.errors import UserError
from tskd.experiment.facts import LOOKED_AT, Facts, look, thickness
from tskd.recipe.schema import DataConfig, EngineConfig

SIDE = 256


def disc(mask: np.ndarray, row: int, column: int, radius: int, value: int = 1) -> None:
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    mask[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = value


def looked_at(folder: Path, masks: list[np.ndarray], **data: object) -> Facts:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, mask in enumerate(masks):
        grey = np.random.default_rng(number).integers(0, 256, mask.shape, np.uint8)
        Image.fromarray(grey).save(folder / f"images/{number:03d}.png")
        Image.fromarray(mask).save(folder / f"masks/{number:03d}.png")
    config = DataConfig(root=str(folder), **data)
    return look(open_dataset(folder), config, EngineConfig(accelerator="cpu"))


def empty() -> np.ndarray:
    return np.zeros((SIDE, SIDE), np.uint8)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_a_line_is_as_thick_as_it_is_wide(width: int) -> None:
    shown = np.zeros((40, 60), bool)
    shown[10 : 10 + width, 5:55] = True
    assert thickness(shown) == width
    assert thickness(shown.T) == width


def test_a_disc_is_two_thirds_of_its_diameter_thick() -> None:
    mask = empty()
    disc(mask, 128, 128, 50)
    assert thickness(mask == 1) / 100 == pytest.approx(2 / 3, abs=0.03)


def test_a_large_structure_hides_no_small_ones() -> None:
    """Microaneurysms beside a haemorrhage: by area there is the haemorrhage alone."""
    mask = empty()
    disc(mask, 60, 60, 50)
    for place in range(10):
        disc(mask, 200, 20 + 22 * place, 2)
    assert thickness(mask == 1) < 6


def test_slips_of_the_pen_are_no_structures() -> None:
    mask = empty()
    disc(mask, 128, 128, 60)
    alone = thickness(mask == 1)
    mask[5, 5] = mask[250, 250] = mask[5, 250] = 1
    assert thickness(mask == 1) == alone
    specks = empty()
    specks[5, 5] = 1
    assert thickness(specks == 1) == 2, "where there is nothing larger they are what is to be found"


def test_the_thin_class_counts_however_many_are_thick(tmp_path: Path) -> None:
    """Of all pairs of image and class a fifth was thin, which a quartile does not see; and it is told which it is."""
    mask = empty()
    for number, (row, column) in enumerate([(40, 40), (40, 200), (200, 40), (200, 200)], start=1):
        disc(mask, row, column, 30, number)
    mask[126:130, :] = 5
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset.yaml").write_text("classes: [one, two, three, four, vessel]\n")
    found = looked_at(tmp_path / "data", [mask] * 8)
    assert (found.thinnest, found.pixels, found.thickness) == ("vessel", 4, 4 / SIDE)


def test_masks_that_are_not_looked_at_are_where_the_others_show_nothing(tmp_path: Path) -> None:
    masks = [empty() for _ in range(2 * LOOKED_AT)]
    masks[1][100:108, :] = 1
    found = looked_at(tmp_path / "data", masks)
    assert found.pixels == 8
    masks[1][:] = 0
    with pytest.raises(UserError, match=f"no mask of {len(masks)} holds any foreground"):
        looked_at(tmp_path / "none", masks)


@pytest.mark.parametrize(("budget", "labelled"), [
    ({}, 6), ({"labels": 3}, 3), ({"labels": 30}, 6), ({"label_cases": 2}, 2), ({"label_cases": 100}, 6),
])  # fmt: skip
def test_labels_are_those_of_the_budget(budget: dict[str, int], labelled: int, tmp_path: Path) -> None:
    """Of eight images a quarter is for the test; here each is a case of its own."""
    mask = empty()
    disc(mask, 128, 128, 40)
    found = looked_at(tmp_path / "data", [mask] * 8, test_share=0.25, **budget)
    assert (found.labelled, found.tested) == (labelled, 2)


def test_slices_of_a_volume_are_one_case(tmp_path: Path) -> None:
    mask = empty()
    disc(mask, 128, 128, 40)
    (tmp_path / "data").mkdir()
    lines = [f"{number:03d},,p{number // 4}" for number in range(24)]
    (tmp_path / "data/split.csv").write_text("\n".join(["id,split,case", *lines]) + "\n")
    found = looked_at(tmp_path / "data", [mask] * 24, test_share=0.25)
    assert (found.labelled, found.cases) == (18, 4)
    drawn = open_dataset(tmp_path / "data")
    few = look(drawn, DataConfig(label_cases=2), EngineConfig(accelerator="cpu"))
    assert (few.cases, few.labelled) == (2, 9)


@pytest.mark.parametrize(("stated", "labelled", "tested"), [
    (["test"] * 2, 5, 3),  # of the six others, of which none is said to train, a quarter is tested too
    (["test"] * 2 + ["train"] * 6, 6, 2),
    (["val"] * 4, 3, 1),  # of the four that are not there to validate
])  # fmt: skip
def test_parts_are_those_of_the_split(stated: list[str], labelled: int, tested: int, tmp_path: Path) -> None:
    mask = empty()
    disc(mask, 128, 128, 40)
    (tmp_path / "data").mkdir()
    lines = [f"{number:03d},{part}" for number, part in enumerate(stated)]
    (tmp_path / "data/split.csv").write_text("\n".join(["id,split", *lines]) + "\n")
    found = looked_at(tmp_path / "data", [mask] * 8, test_share=0.2)
    assert (found.labelled, found.tested) == (labelled, tested)
    records = open_dataset(tmp_path / "data").records
    presence = {record.id: frozenset({1}) for record in records}
    drawn = make_split(records, presence=presence, test_share=0.2, val_share=0)
    assert (len(drawn.train), len(drawn.test)) == (labelled, tested)


def test_a_share_that_leaves_nothing_to_train_is_left_to_the_run(tmp_path: Path) -> None:
    mask = empty()
    disc(mask, 128, 128, 40)
    assert looked_at(tmp_path / "data", [mask] * 4, test_share=0.9, label_cases=2).labelled == 1


def test_masks_that_cannot_be_read_are_not_called_empty(tmp_path: Path) -> None:
    mask = empty()
    disc(mask, 128, 128, 40)
    with pytest.raises(UserError, match="no mask of 3 holds any foreground"):
        looked_at(tmp_path / "data", [empty()] * 3)
    (tmp_path / "data/masks/000.png").write_bytes(b"no image")
    assert look(open_dataset(tmp_path / "data"), DataConfig(), EngineConfig(accelerator="cpu")).thickness is None
