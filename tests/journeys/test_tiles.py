"""A user whose structures are lost in a squeezed image trains on tiles; what is shipped answers as it was scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import tskd as api
from tests.conftest import Command
from tskd.data.prepared import Prepared
from tskd.deploy.bundle import open_bundle
from tskd.serve.limits import Limits
from tskd.serve.segment import Segmenter
from tskd.stages.evaluation_files import read_prediction

RECIPE = {
    "data": {
        "image_size": 32, "tile": 48, "labels": 8,
        "phantom": {"family": "dermoscopy", "train": 12, "test": 6, "size": 96},
    },
    "teacher": {"name": "timm/test_resnet", "weights": "random", "adaptation": "full", "image_size": 64, "steps": 4},
    "distill": {"steps": 4, "batch_size": 4, "views": 2, "cache": "on"},
    "finetune": {"steps": 40, "batch_size": 8},
    "student": {"backbone": "test_vit", "patch": 8},
    "control": {"enabled": False},
    "engine": {"accelerator": "cpu"},
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tskd: Command) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    done = tskd("run", folder / "recipe.yaml", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    assert "larger images in tiles of 48 px" in done.stderr
    return folder / "out"


def test_images_are_counted_not_tiles(out: Path) -> None:
    model = json.loads((out / "model" / "model.json").read_text(encoding="utf-8"))
    assert model["tile"] == 48
    assert model["images"]["train"] + model["images"]["val"] == 8
    assert "larger images in tiles of 48 px" in (out / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "cut into tiles of 48 × 48 pixels for training" in report
    assert "9 on average, since they overlap by half" in report
    (prepared,) = (Prepared(path) for path in (out / "artifacts").glob("prepare-*"))
    assert len(prepared.rows("train")) == 9 * prepared.count("train")


def test_what_is_shipped_answers_as_it_was_scored(out: Path, tmp_path: Path, tskd: Command) -> None:
    """In tiles, by every way to ask; red where one of them squeezes the whole image."""
    (prepared,) = (Prepared(path) for path in (out / "artifacts").glob("prepare-*"))
    student = json.loads((out / "run.json").read_text(encoding="utf-8"))["artifacts"]["student"]
    scored = next(
        path for path in (out / "artifacts").glob("evaluate-*")
        if student_digest(out, student) in (path / "manifest.json").read_text(encoding="utf-8")
    )  # fmt: skip
    (tmp_path / "images").mkdir()
    wanted = {}
    for row in prepared.rows("test").tolist():
        Image.fromarray(prepared.native_image(row)).save(tmp_path / f"images/{row}.png")
        wanted[row] = read_prediction(scored, row)
    assert len(set(np.concatenate([mask.ravel() for mask in wanted.values()]).tolist())) > 1, "else it shows nothing"
    for folder, more in (("masks", ()), ("whole", ("--tile", "4096"))):
        done = tskd("predict", out / "model", tmp_path / "images", "--out", tmp_path / folder, *more)
        assert done.returncode == 0, done.stderr
    model, served = api.load(out), Segmenter(open_bundle(out), Limits())
    for row, mask in wanted.items():
        image, predicted = prepared.native_image(row), np.asarray(Image.open(tmp_path / f"masks/{row}.png"))
        for found in (predicted, model.predict(image).classes, served.ask(image).classes):
            assert np.mean(found != mask) < 1e-3
    squeezed = [np.mean(np.asarray(Image.open(tmp_path / f"whole/{row}.png")) != mask) for row, mask in wanted.items()]
    assert max(squeezed) > 0.01, "else it shows nothing"


def student_digest(out: Path, student: str) -> str:
    return str(json.loads((out / "artifacts" / student / "manifest.json").read_text(encoding="utf-8"))["digest"])


def test_the_page_in_a_browser_is_refused_with_the_reason(out: Path, tmp_path: Path, tskd: Command) -> None:
    done = tskd("export", out / "model", "--web", tmp_path / "web")
    assert done.returncode == 2
    assert "answers large images in tiles of 48 px" in done.stderr
    assert not (tmp_path / "web").exists()


def test_the_ablation_works_by_tiles_too(out: Path) -> None:
    found = json.loads((out / "run.json").read_text(encoding="utf-8"))["ablation"]
    assert all(value is None or 0 <= value <= 1 for value in found.values() if not isinstance(value, str))
