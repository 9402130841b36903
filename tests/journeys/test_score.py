"""A hospital scores a model that it was given on scans that it has labelled itself, before it uses it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Command
from tests.serving import write_bundle
from tskd.metrics.segmentation import score_case


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that marks what is brighter than the middle grey."""
    return write_bundle(tmp_path / "model", dataset="theirs")


def scan(seed: int, size: tuple[int, int] = (40, 50)) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a bright square, and a truth that is shifted by some pixels, 0 and 255."""
    draw = np.random.default_rng(seed)
    picture, truth = draw.integers(0, 100, (*size, 3), dtype=np.uint8), np.zeros(size, np.uint8)
    row, column, shift = (int(draw.integers(low, high)) for low, high in ((2, 20), (2, 25), (0, 4)))
    picture[row : row + 12, column : column + 15] = 200
    truth[row + shift : row + shift + 12, column : column + 15] = 255
    return picture, truth


def write_scans(folder: Path, count: int) -> list[float]:
    """Write so many labelled images; return the Dice of each, by hand."""
    dice = []
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        picture, truth = scan(number)
        Image.fromarray(picture).save(folder / "images" / f"scan{number:02d}.png")
        Image.fromarray(truth).save(folder / "masks" / f"scan{number:02d}.png")
        found, there = picture[..., 0] == 200, truth > 0
        dice.append(2 * (found & there).sum() / (found.sum() + there.sum()))
    return dice


def lines(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_labelled_image_is_scored(model: Path, tskd: Command, tmp_path: Path) -> None:
    dice = write_scans(tmp_path / "ours", 8)
    Image.fromarray(scan(99)[0]).save(tmp_path / "ours/images/unlabelled.png")
    out = tmp_path / "scores"
    answer = tskd("score", model, tmp_path / "ours", "--out", out, "--json")
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["dice"] == pytest.approx(np.mean(dice))
    assert (found["n_cases"], found["n_images"], found["trained_on"], found["failures"]) == (8, 8, "theirs", [])
    low, high = found["dice_ci95"]
    assert min(dice) < low < found["dice"] < high <= 1
    assert [float(line["dice"]) for line in lines(out)] == pytest.approx(dice)
    assert {**found, "failures": 0} == {**json.loads((out / "summary.json").read_text()), "failures": 0}
    mask = np.asarray(Image.open(out / "predictions/000003.png"))
    assert np.array_equal(mask, scan(3)[0][..., 0] == 200)
    ranks = [path.stem.split("_")[1] for path in sorted((out / "overlays").iterdir())]
    assert ranks == sorted(ranks, key=["worst", "median", "best"].index)
    assert set(ranks) == {"worst", "median", "best"}


def test_the_table_names_cases_and_interval(model: Path, tskd: Command, tmp_path: Path) -> None:
    write_scans(tmp_path / "ours", 6)
    answer = tskd("score", model, tmp_path / "ours", "--out", tmp_path / "scores")
    assert "6 images of 6 cases, ours" in answer.stdout
    assert "lesion" in answer.stdout
    assert " to " in answer.stdout


def test_volumes_are_scored_as_volumes_in_millimetres(model: Path, tskd: Command, tmp_path: Path) -> None:
    spacing, classes, expected = (0.5, 0.7, 3.0), [], []
    for kind in ("images", "labels"):
        (tmp_path / "ours" / kind).mkdir(parents=True)
    (tmp_path / "ours/dataset.yaml").write_text("classes: [lesion]\nwindow: [0, 255]\n")
    for number in range(2):
        slices = [scan(10 * number + one) for one in range(4)]
        volume, truth = (np.stack(one, -1) for one in ([p[..., 0] for p, _ in slices], [t // 255 for _, t in slices]))
        truth[..., 2] = 0
        for kind, voxels in (("images", volume), ("labels", truth)):
            file = nibabel.Nifti1Image(voxels, np.diag([*spacing, 1]))
            nibabel.save(file, tmp_path / "ours" / kind / f"p{number}.nii.gz")
        classes.append((volume == 200).astype(np.uint8))
        expected.append(score_case(classes[-1], truth, classes=1, spacing=spacing)[0])
    answer = tskd("score", model, tmp_path / "ours", "--out", tmp_path / "scores", "--json")
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert (found["level"], found["n_volumes"], found["n_images"], found["dice_ci95"]) == ("volume", 2, 8, None)
    assert found["dice"] == pytest.approx(np.mean([one.dice for one in expected]))
    assert found["hd95_mm"] == pytest.approx(np.mean([one.hd95 for one in expected]))
    assert found["slices"]["false_positive"] == 2


def test_the_same_picture_twice_is_one_case(model: Path, tskd: Command, tmp_path: Path) -> None:
    """As in a run's test: two pictures of one patient are not two patients, so the interval is not made narrower."""
    write_scans(tmp_path / "ours", 7)
    for kind in ("images", "masks"):
        (tmp_path / "ours" / kind / "again.png").write_bytes((tmp_path / "ours" / kind / "scan01.png").read_bytes())
    found = json.loads(tskd("score", model, tmp_path / "ours", "--out", tmp_path / "scores", "--json").stdout)
    assert (found["n_images"], found["n_cases"]) == (8, 7)


def test_some_images_by_a_column_of_the_split(model: Path, tskd: Command, tmp_path: Path) -> None:
    dice = write_scans(tmp_path / "ours", 6)
    rows = [f"scan{number:02d},{'test' if number < 2 else 'train'}" for number in range(6)]
    (tmp_path / "ours/split.csv").write_text("\n".join(["id,split", *rows]))
    line = ["score", model, tmp_path / "ours", "--out", tmp_path / "scores", "--json"]
    found = json.loads(tskd(*line, "--set", "data.where={split: [test]}").stdout)
    assert (found["n_images"], found["dice"]) == (2, pytest.approx(np.mean(dice[:2])))


def test_what_cannot_be_read_is_named_and_the_others_are_scored(model: Path, tskd: Command, tmp_path: Path) -> None:
    dice = write_scans(tmp_path / "ours", 4)
    broken = tmp_path / "ours/images/scan02.png"
    broken.write_bytes(broken.read_bytes()[:-200])
    answer = tskd("score", model, tmp_path / "ours", "--out", tmp_path / "scores")
    assert answer.returncode == 2
    assert answer.stderr.count(str(broken)) == 1
    assert "1 file could not be read and is not in the scores" in answer.stderr
    assert [float(line["dice"]) for line in lines(tmp_path / "scores")] == pytest.approx([*dice[:2], dice[3]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("classes", "has the classes cyst, the model lesion"),
        ("no masks", "no image has a mask, so nothing can be scored"),
        ("all broken", "none of 3 labelled images could be read"),
        ("window", "score does not use data.window"),
        ("full", "holds something other than scores"),
        ("scores", "Add --overwrite to replace them"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_nothing_is_lost(
    change: str, said: str, model: Path, tskd: Command, tmp_path: Path
) -> None:
    ours, out = tmp_path / "ours", tmp_path / "scores"
    write_scans(ours, 3)
    more: list[str] = []
    if change == "classes":
        (ours / "dataset.yaml").write_text("classes: [cyst]\n")
    elif change == "no masks":
        for mask in (ours / "masks").iterdir():
            mask.unlink()
    elif change == "all broken":
        for image in (ours / "images").iterdir():
            image.write_bytes(image.read_bytes()[:-200])
    elif change == "window":
        more = ["--set", "data.window=[0, 100]"]
    else:
        out.mkdir()
        for name in ("letter.txt",) if change == "full" else ("cases.csv", "summary.json"):
            (out / name).write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()} if out.exists() else None
    answer = tskd("score", model, ours, "--out", out, *more)
    assert answer.returncode == 2
    assert said in answer.stderr
    assert ({path.name: path.read_bytes() for path in out.iterdir()} if out.exists() else None) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_earlier_scores_are_replaced_on_request(model: Path, tskd: Command, tmp_path: Path) -> None:
    write_scans(tmp_path / "ours", 2)
    line = ["score", model, tmp_path / "ours", "--out", tmp_path / "scores"]
    assert tskd(*line).returncode == 0
    (tmp_path / "ours/images/scan01.png").unlink()
    (tmp_path / "ours/masks/scan01.png").unlink()
    assert tskd(*line, "--overwrite").returncode == 0
    assert len(lines(tmp_path / "scores")) == 1
