"""A hospital scores a model that it was given on scans that it has labelled itself, before it uses it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
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
    assert found == json.loads((out / "summary.json").read_text())
    assert "1 image without a mask not scored" in found["remark"]
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
    (tmp_path / "ours/dataset.yaml").write_text("classes: [lesion]\n")
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


def test_images_are_read_as_prediction_reads_them(model: Path, tskd: Command, tmp_path: Path) -> None:
    """Red where a window of the data folder changes what the network sees: `predict` knows of none."""
    write_scans(tmp_path / "ours", 3)
    (tmp_path / "ours/dataset.yaml").write_text("window: [0, 90]\n")
    answer = tskd("score", model, tmp_path / "ours", "--out", tmp_path / "scores")
    assert answer.returncode == 0
    assert "the window of dataset.yaml is not used" in answer.stderr
    assert tskd("predict", model, tmp_path / "ours/images", "--out", tmp_path / "masks").returncode == 0
    for number in range(3):
        scored = Image.open(tmp_path / f"scores/predictions/{number:06d}.png")
        assert np.array_equal(np.asarray(scored), np.asarray(Image.open(tmp_path / f"masks/scan{number:02d}.png")))


def test_images_that_show_next_to_nothing_are_told(model: Path, tskd: Command, tmp_path: Path) -> None:
    """Red where a model is blamed for what was lost before it: 12-bit values in a 16-bit file without a window."""
    write_scans(tmp_path / "ours", 3)
    for number in range(3):
        deep = scan(number)[0][..., 0].astype(np.uint16) * 5
        Image.fromarray(deep).save(tmp_path / f"ours/images/scan{number:02d}.png")
    answer = tskd("score", model, tmp_path / "ours", "--out", tmp_path / "scores", "--json")
    assert answer.returncode == 0
    assert "grey levels" in answer.stderr
    assert "grey levels" in json.loads(answer.stdout)["remark"]


def test_results_come_where_they_are_asked_for(model: Path, tskd: Command, tmp_path: Path) -> None:
    """A link stays a link, and files of others stay where scores are replaced."""
    write_scans(tmp_path / "ours [new]", 2)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    answer = tskd("score", model, tmp_path / "ours [new]", "--out", tmp_path / "link")
    assert "2 images of 2 cases, ours [new]" in answer.stdout
    assert (tmp_path / "link").is_symlink()
    assert len(lines(tmp_path / "real")) == 2
    (tmp_path / "real/review.txt").write_text("mine")
    again = tskd("score", model, tmp_path / "ours [new]", "--out", tmp_path / "link", "--overwrite")
    assert again.returncode == 2
    assert (tmp_path / "real/review.txt").read_text() == "mine"


def test_tiles_answer_as_in_prediction(model: Path, tskd: Command, tmp_path: Path) -> None:
    dice = write_scans(tmp_path / "ours", 2)
    answer = tskd("score", model, tmp_path / "ours", "--out", tmp_path / "scores", "--tile", "16", "--json")
    assert json.loads(answer.stdout)["dice"] == pytest.approx(np.mean(dice))


def test_the_same_picture_twice_is_one_case(model: Path, tskd: Command, tmp_path: Path) -> None:
    """As in a run's test: two pictures of one patient are not two patients, so the interval is not made narrower; also
    where the folder's own split, which means nothing here, has them on two sides."""
    write_scans(tmp_path / "ours", 7)
    for kind in ("images", "masks"):
        (tmp_path / "ours" / kind / "again.png").write_bytes((tmp_path / "ours" / kind / "scan01.png").read_bytes())
    (tmp_path / "ours/split.csv").write_text("id,split\nscan01,test\nagain,train\n")
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


def cut_short(ours: Path) -> None:
    for image in (ours / "images").iterdir():
        image.write_bytes(image.read_bytes()[:-200])


def without_masks(ours: Path) -> None:
    for mask in (ours / "masks").iterdir():
        mask.unlink()


def of_two_classes(ours: Path) -> None:
    """One of the masks; left out as unreadable it would leave scores of the easier images."""
    for name in ("scan00", "scan01", "scan02"):
        values = np.asarray(Image.open(ours / f"masks/{name}.png")) // 255
        values[:3, :3] = 2 if name == "scan01" else 0
        Image.fromarray(values).save(ours / f"masks/{name}.png")


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (lambda ours: (ours / "dataset.yaml").write_text("classes: [cyst]\n"), [], "--set 'data.classes=[lesion]'"),
        (of_two_classes, [], "has the classes class1, class2, the model lesion"),
        (without_masks, [], "no image has a mask, so nothing can be scored"),
        (cut_short, [], "none of 3 labelled images could be read"),
        (None, ["--set", "data.window=[0, 100]"], "score does not use data.window"),
        (None, ["--out", "{folder}/ours/masks/scores"], "lies among the images or masks"),
        (None, ["--out", "{folder}/model/scores"], "lies in the bundle"),
        (None, ["--out", "{folder}/letters"], "holds letter.txt, which is none of the scores"),
        (None, ["--out", "{folder}/earlier"], "Add --overwrite to replace them"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_nothing_is_lost(
    change: Callable[[Path], object] | None, more: list[str], said: str, model: Path, tskd: Command, tmp_path: Path
) -> None:
    write_scans(tmp_path / "ours", 3)
    for place in ("letters/letter.txt", "earlier/cases.csv"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_text("mine")
    if change is not None:
        change(tmp_path / "ours")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    line = [part.format(folder=tmp_path) for part in more]
    answer = tskd("score", model, tmp_path / "ours", "--out", tmp_path / "scores", *line)
    assert answer.returncode == 2
    assert said in answer.stderr
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_earlier_scores_are_replaced_on_request(model: Path, tskd: Command, tmp_path: Path) -> None:
    write_scans(tmp_path / "ours", 2)
    line = ["score", model, tmp_path / "ours", "--out", tmp_path / "scores"]
    assert tskd(*line).returncode == 0
    (tmp_path / "ours/images/scan01.png").unlink()
    (tmp_path / "ours/masks/scan01.png").unlink()
    assert tskd(*line, "--overwrite").returncode == 0
    assert len(lines(tmp_path / "scores")) == 1
