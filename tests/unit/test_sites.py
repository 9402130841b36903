"""Sites: one phantom under several scanners, and the part of a folder that columns of split.csv name."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tskd.artifacts import Store
from tskd.data.layouts import open_dataset
from tskd.data.phantoms import draw_phantom, write_phantoms
from tskd.data.phantoms.scanner import scan
from tskd.data.prepared import Prepared
from tskd.data.sites import take
from tskd.errors import UserError
from tskd.recipe.schema import NAMING, DataConfig, Recipe, ScannerConfig, build_recipe
from tskd.report.shareable import shareable
from tskd.stages.prepare import build

SCANNERS = {"plain": ScannerConfig(), "poor": ScannerConfig(resolution=0.5, gamma=2.0, gain=0.5, noise=0.1)}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# --- scanners ---


def test_a_scanner_without_settings_changes_nothing() -> None:
    image = rng().integers(0, 256, (32, 32, 3), np.uint8)
    assert np.array_equal(scan(image, ScannerConfig(), rng()), image)


def test_a_scanner_shows_power_then_factor_and_cuts_off() -> None:
    image = np.full((32, 32, 3), 51, np.uint8)  # 0.2
    assert np.unique(scan(image, ScannerConfig(gamma=2.0, gain=3.0), rng())).tolist() == [31]  # 3 * 0.04 * 255 = 30.6
    assert np.unique(scan(image, ScannerConfig(gain=10.0), rng())).tolist() == [255]


def test_a_scanner_of_half_the_resolution_shows_means() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[::2] = 200
    seen = scan(image, ScannerConfig(resolution=0.5), rng())
    assert np.abs(seen[4:-4].astype(int) - 100).max() <= 1


def test_noise_comes_last_is_as_strong_as_stated_and_grey() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    noise = scan(image, ScannerConfig(noise=0.1, gain=0.5, resolution=0.25), rng()).astype(int) - 64
    assert noise.std() == pytest.approx(25.5, rel=0.05), "neither dimmed nor blurred"
    assert np.array_equal(noise[..., 0], noise[..., 2])


def test_phantoms_of_scanners_show_the_same_under_the_same_labels(tmp_path: Path) -> None:
    folder = write_phantoms("dermoscopy", tmp_path / "p", count=20, size=32, seed=4, test=5, scanners=SCANNERS)
    with (folder / "split.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sites = {row["case"]: {other["site"] for other in rows if other["case"] == row["case"]} for row in rows}
    assert all(len(found) == 1 for found in sites.values()), "a patient is seen by one scanner"
    assert {row["site"] for row in rows if row["split"] == "test"} == {"plain", "poor"}
    for number, row in enumerate(rows):
        phantom = draw_phantom("dermoscopy", number, size=32, seed=4)
        image, mask = (np.asarray(Image.open(folder / kind / f"{row['id']}.png")) for kind in ("images", "masks"))
        assert np.array_equal(mask, phantom.mask)
        assert np.array_equal(image, phantom.image) == (row["site"] == "plain")


def test_a_mistake_in_a_scanner_is_told_with_the_keys_that_it_has() -> None:
    with pytest.raises(UserError, match=r"scanners\.a\.nois: unknown key\. Did you mean data\.phantom\.scanners\.a\.n"):
        build_recipe({"data": {"phantom": {"scanners": {"a": {"nois": 1}}}}}, "test")
    with pytest.raises(UserError, match="scanners"):
        build_recipe({"data": {"phantom": {"scanners": {}}}}, "test")


# --- a part of a folder ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight cases: sites 1 and 2, grey and colour in turns of four."""
    root = tmp_path / "data"
    pixels = rng()
    lines = ["id,split,site,kind"]
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(16):
        mask = np.zeros((32, 32), np.uint8)
        mask[4:20, 4:20] = 1
        Image.fromarray(pixels.integers(0, 256, (32, 32, 3), np.uint8)).save(root / f"images/{number:02d}.png")
        Image.fromarray(mask).save(root / f"masks/{number:02d}.png")
        lines.append(f"{number:02d},,{1 + number % 2},{'grey' if number % 8 < 4 else ' colour'}")
    (root / "split.csv").write_text("\n".join(lines))
    return root


def ids(root: Path, where: Any) -> list[int]:
    taken = take(open_dataset(root), DataConfig(root=str(root), where=where).where or {})
    return [int(record.id) for record in taken.records]


def test_images_are_taken_by_the_values_of_columns(folder: Path) -> None:
    assert ids(folder, {"site": 2}) == list(range(1, 16, 2)), "YAML reads 2 as a number"
    assert ids(folder, {"site": ["1", 2], "kind": "grey"}) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert ids(folder, {"kind": "colour", "site": "1"}) == [4, 6, 12, 14], "blanks around a value do not count"


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"sight": "1"}, r"no column 'sight'.*Choose one of: id, split, site, kind"),
        ({"site": "3"}, r"no image has 3 in the column site\. It has: 1 \(8 images\), 2 \(8 images\)"),
        ({"site": ["1", "3"]}, "no image has 3 in the column site"),
        ({"id": "99"}, r"no image has 99 in the column id\. It has 16 other values"),
        ({"id": "00", "site": "2"}, r"no image has all that data\.where asks for at once \(id, site\)"),
    ],
)
def test_a_part_that_is_not_there_is_refused(folder: Path, where: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        ids(folder, where)


@pytest.mark.parametrize("text", [None, "id,split\n"])
def test_a_folder_without_the_file_or_its_lines_is_refused(folder: Path, text: str | None) -> None:
    (folder / "split.csv").unlink()
    if text is not None:
        (folder / "split.csv").write_text(text)
    with pytest.raises(UserError, match=r"split\.csv: data\.where takes images by a column of this file \(site\)"):
        ids(folder, {"site": "1"})


def test_a_layout_without_the_file_is_refused(tmp_path: Path) -> None:
    for name in ("DICOM_anon", "Ground"):
        (tmp_path / "CT" / "1" / name).mkdir(parents=True)
    dataset = open_dataset(write_phantoms("fundus", tmp_path / "p", count=4, size=32, seed=0, test=1))
    elsewhere = type(dataset)(dataset.name, "nifti", dataset.root, dataset.classes, dataset.records, dataset.options)
    with pytest.raises(UserError, match="in the layout folder alone, and this is nifti"):
        take(elsewhere, {"site": ("1",)})


@pytest.mark.parametrize("where", [{}, {"site": []}, {"site": True}, {"site": [1.5]}, {"site": None}, "north", ["a"]])
def test_a_part_that_says_nothing_is_refused(where: Any) -> None:
    with pytest.raises(UserError, match=r"data\.where"):
        build_recipe({"data": {"where": where}}, "test")


def test_a_part_is_prepared_as_a_data_set_of_its_own(folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "artifacts")

    def prepared(**settings: Any) -> tuple[str, set[str]]:
        artifact = build(store, DataConfig(root=str(folder), image_size=32, **settings))
        return artifact.digest, {record.id for record in Prepared(artifact.path).records}

    whole, first, second = prepared(), prepared(where={"site": "1"}), prepared(where={"site": "2"})
    assert len({whole[0], first[0], second[0]}) == 3
    assert first[1].isdisjoint(second[1])
    assert first[1] | second[1] == whole[1]
    assert prepared(where={"site": ["2", "1"]})[0] == whole[0], "named by its images, not by how they were chosen"


def test_a_page_that_may_be_shown_has_no_value_of_a_column() -> None:
    """It may be a hospital's name or a patient's."""
    where = {"subject": ["p01", "p07"], "site": "north"}
    shown = shareable(
        {"data": {"where": where}, "axes": {"left_out": [{"data.where": where}, {"data.where.site": "north"}]}}
    )
    assert not any(value in str(shown) for value in ("p01", "p07", "north"))
    assert shown["data"]["where"] == {"subject": ["VALUE", "VALUE"], "site": "VALUE"}
    assert shareable({"where": None}) == {"where": None}


def test_new_keys_are_in_no_name_at_their_defaults() -> None:
    """Else every artifact made before them would be made again."""
    named = Recipe().model_dump(context=NAMING)
    assert not {"where", "tile"} & named["data"].keys()
    assert not {"scanners"} & named["data"]["phantom"].keys()
    assert not {"target", "from_target"} & named["transfer"].keys()
    assert not {"norm_statistics"} & named["evaluate"].keys()
    assert not {"amplitude", "amplitude_band"} & named["teacher"]["augment"].keys()
