from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tskd.data.phantoms import FAMILIES, draw_phantom, fundus, write_phantoms
from tskd.data.phantoms.family import ABSENT_SHARE
from tskd.data.phantoms.fundus import RED_FREE_SHARE
from tskd.data.phantoms.noise import smooth_field, speckle
from tskd.data.phantoms.shapes import Curve, View, stroke_distance
from tskd.data.phantoms.write import locate
from tskd.errors import UserError

ALL = pytest.mark.parametrize("family", sorted(FAMILIES))


def draw_masks(family: str, count: int, size: int, seed: int = 3) -> NDArray[np.uint8]:
    return np.stack([draw_phantom(family, number, size=size, seed=seed).mask for number in range(count)])


@ALL
def test_a_phantom_is_the_same_whatever_was_drawn_before(family: str) -> None:
    alone = draw_phantom(family, 7, size=48, seed=5)
    for number in (9, 0, 8):
        draw_phantom(family, number, size=64, seed=5)
    again = draw_phantom(family, 7, size=48, seed=5)
    other = draw_phantom(family, 7, size=48, seed=6)
    np.testing.assert_array_equal(alone.image, again.image)
    np.testing.assert_array_equal(alone.mask, again.mask)
    assert (alone.image != other.image).any()


@ALL
def test_image_and_mask_have_the_promised_form(family: str) -> None:
    phantom = draw_phantom(family, 0, size=50, seed=0)
    assert phantom.image.shape == (50, 50, 3)
    assert phantom.mask.shape == (50, 50)
    assert phantom.image.dtype == phantom.mask.dtype == np.uint8
    assert phantom.image.std() > 10, "a picture, not a flat field"


@ALL
def test_every_class_occurs_and_no_other(family: str) -> None:
    assert set(np.unique(draw_masks(family, 12, 48))) == set(range(len(FAMILIES[family].classes) + 1))


@ALL
def test_one_phantom_looks_alike_at_every_size(family: str) -> None:
    small, large = draw_masks(family, 4, 96), draw_masks(family, 4, 256)
    shrunk = np.stack([ndimage.zoom(mask > 0, 96 / 256, order=0, grid_mode=True, mode="nearest") for mask in large])
    if family == "fundus":  # vessels are relatively wider in a small image: all that is left of them must be covered
        assert ndimage.binary_dilation(small > 0, np.ones((1, 3, 3)))[shrunk].mean() > 0.95
        return
    assert np.mean((small > 0) == shrunk) > 0.985
    for value in range(1, len(FAMILIES[family].classes) + 1):
        assert np.mean(small == value) == pytest.approx(np.mean(large == value), rel=0.1)


@pytest.mark.parametrize("size", [96, 256, 512])
def test_vessels_are_one_to_five_pixels_wide(size: int) -> None:
    mask = draw_masks("fundus", 2, size) > 0
    assert mask.any(axis=(1, 2)).all()
    wide = ndimage.binary_opening(mask, np.ones((1, 7, 7)))
    assert wide.sum() < 0.04 * mask.sum(), "only where vessels cross or meet on the disc"
    assert (mask & ~ndimage.binary_opening(mask, np.ones((1, 2, 2)))).any(), "vessels of one pixel"
    if size == 512:
        assert ndimage.binary_opening(mask, np.ones((1, 3, 3))).sum() > 0.3 * mask.sum(), "vessels of three and more"


def test_the_stated_share_of_fundus_photographs_is_red_free() -> None:
    grey = np.mean([is_grey(draw_phantom("fundus", number, size=32, seed=3).image) for number in range(150)])
    assert RED_FREE_SHARE / 2 < grey < RED_FREE_SHARE * 2


def is_grey(image: NDArray[np.uint8]) -> bool:
    return bool((image == image[..., :1]).all())


def test_the_choroids_vessels_are_seen_and_are_not_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them the masks are the same and the images of most eyes are not: dark lines are gone."""
    drawn = [draw_phantom("fundus", number, size=96, seed=3) for number in range(20)]
    monkeypatch.setattr(fundus, "CHOROID", np.zeros(3, np.float32))
    bare = [draw_phantom("fundus", number, size=96, seed=3) for number in range(20)]
    for one, other in zip(drawn, bare, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
    changed = [(one.image < other.image.astype(int) - 8).any(axis=2) for one, other in zip(drawn, bare, strict=True)]
    covered = [area[phantom.mask == 0].mean() for area, phantom in zip(changed, drawn, strict=True)]
    assert 0.4 < np.mean([share > 0.05 for share in covered]) < 0.95


@pytest.mark.parametrize("family", ["kidney_us", "oral_ulcer", "dermoscopy"])
def test_the_stated_share_of_images_is_empty(family: str) -> None:
    empty = np.mean([not mask.any() for mask in draw_masks(family, 150, 32)])
    assert ABSENT_SHARE / 3 < empty < ABSENT_SHARE * 2.5


def test_organs_are_missing_from_some_slices() -> None:
    masks = draw_masks("abdomen", 100, 32)
    for value in range(1, 5):
        missing = np.mean(~(masks == value).any(axis=(1, 2)))
        assert 0.02 < missing < 0.6


@ALL
def test_a_case_shares_anatomy_and_appearance_but_not_the_image(family: str) -> None:
    cases = defaultdict(list)
    for number in range(20):
        phantom = draw_phantom(family, number, size=48, seed=1)
        cases[phantom.case].append(phantom.image.astype(float))
    sizes = [len(images) for images in cases.values()]
    assert sorted(sizes) == sorted([1, 2, 3, 4] * 2)
    colours = {case: [image.mean(axis=(0, 1)) for image in images] for case, images in cases.items()}
    within = np.mean([np.std(values, axis=0).mean() for values in colours.values() if len(values) > 1])
    between = np.std([values[0] for values in colours.values()], axis=0).mean()
    assert within < 0.8 * between
    for images in cases.values():
        assert all(np.abs(images[0] - other).mean() > 3 for other in images[1:])


def test_blocks_of_ten_hold_whole_cases() -> None:
    places = [locate(number, seed=4) for number in range(30)]
    assert len(set(places)) == 30
    assert [case for case, _ in places] == sorted(case for case, _ in places)
    for start in (0, 10, 20):
        assert places[start][1] == 0


def read_split(folder: Path) -> list[dict[str, str]]:
    with (folder / "split.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_written_folder_holds_what_split_and_description_say(tmp_path: Path) -> None:
    folder = write_phantoms("abdomen", tmp_path / "new" / "abdomen", count=14, size=40, seed=2, test=3)
    rows = read_split(folder)
    description = yaml.safe_load((folder / "dataset.yaml").read_text(encoding="utf-8"))
    assert description["classes"] == ["liver", "right_kidney", "left_kidney", "spleen"]
    assert len(rows) == 14
    for number, row in enumerate(rows):
        phantom = draw_phantom("abdomen", number, size=40, seed=2)
        assert (row["id"], row["case"]) == (phantom.id, phantom.case)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "images" / f"{row['id']}.png")), phantom.image)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "masks" / f"{row['id']}.png")), phantom.mask)
    assert [path.name for path in folder.parent.iterdir()] == ["abdomen"], "no temporary folder stays"


@pytest.mark.parametrize("test", range(1, 12))
def test_the_split_never_cuts_a_case(tmp_path: Path, test: int) -> None:
    rows = read_split(write_phantoms("kidney_us", tmp_path / "p", count=18, size=32, seed=8, test=test))
    cases = {split: {row["case"] for row in rows if row["split"] == split} for split in ("train", "test")}
    assert not cases["train"] & cases["test"]
    assert test <= sum(row["split"] == "test" for row in rows) < test + 4


def test_the_test_split_stays_when_the_count_grows(tmp_path: Path) -> None:
    few = read_split(write_phantoms("kidney_us", tmp_path / "few", count=12, size=32, seed=0, test=5))
    many = read_split(write_phantoms("kidney_us", tmp_path / "many", count=25, size=32, seed=0, test=5))
    assert many[:12] == few


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms("fundus", tmp_path / "out", count=12, size=32, seed=0, test=0)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_told_plainly(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'heart'.*kidney_us"):
        draw_phantom("heart", 0, size=64, seed=0)
    with pytest.raises(UserError, match="16 pixels"):
        draw_phantom("fundus", 0, size=16, seed=0)
    with pytest.raises(UserError, match="-1"):
        draw_phantom("fundus", -1, size=64, seed=0)
    with pytest.raises(UserError, match="none to train"):
        write_phantoms("fundus", tmp_path / "x", count=10, size=32, seed=0, test=9)
    with pytest.raises(UserError, match="exists"):
        write_phantoms("fundus", tmp_path, count=20, size=32, seed=0, test=5)


def test_smooth_field_is_standardised_and_alike_at_every_size() -> None:
    small, large = (smooth_field(np.random.default_rng(0), size, 40) for size in (160, 320))
    assert large.std() == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(large.reshape(160, 2, 160, 2).mean(axis=(1, 3)), small, atol=0.15)


def test_speckle_is_rayleigh() -> None:
    amplitude = speckle(np.random.default_rng(0), 256, (1.0, 1.0))
    assert amplitude.mean() == pytest.approx(1, abs=1e-4)
    assert amplitude.std() == pytest.approx(np.sqrt(4 / np.pi - 1), rel=0.05), "contrast of a Rayleigh distribution"


def test_a_stroke_is_as_wide_as_it_says() -> None:
    line = Curve(np.array([[0.03, -1.0], [0.03, 1.0]]), np.array([5.0, 5.0]))
    inside = stroke_distance([line], 100) <= 0
    assert set(inside[:, 5:95].sum(axis=0)) == {5}


def test_a_view_projects_points_to_where_its_grid_shows_them() -> None:
    view = View(shift=(0.1, -0.2), rotation=0.5, zoom=1.2)
    rows, columns = view.grid(64)
    point = np.array([[rows[20, 45], columns[20, 45]]], dtype=float)
    np.testing.assert_allclose((view.project(point) + 1) * 32 - 0.5, [[20, 45]], atol=1e-4)
