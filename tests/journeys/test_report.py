"""A run writes its report; the command writes it again; a browser shows it on phone and desk, by day and night."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.journeys.browser import console_of, look_at, needs_chromium
from tskd.artifacts import Artifact
from tskd.engine import open_runtime
from tskd.experiment.pipeline import execute
from tskd.experiment.run import Run
from tskd.experiment.summary import print_summary
from tskd.recipe.schema import build_recipe
from tskd.report.run.folder import open_run

TINY = {
    "baselines": ["scratch"],
    "data": {"image_size": 32, "labels": 12, "phantom": {"family": "abdomen", "train": 40, "test": 8, "size": 48}},
    "teacher": {"name": "timm/resnet10t", "weights": "random", "adaptation": "full", "steps": 4, "batch_size": 8},
    "diffusion": {"steps": 4, "batch_size": 4, "image_size": 16, "sampling_steps": 2},
    "transfer": {"synthetic": 8},
    "distill": {"steps": 4, "batch_size": 8},
    "finetune": {"steps": 4, "batch_size": 8},
    "student": {"backbone": "test_vit", "patch": 16},
    "control": {"steps": 4, "batch_size": 8, "channels": [8, 16, 32]},
    "engine": {"accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = build_recipe(TINY, "test")
    execute(Run(recipe, folder, open_runtime(recipe.engine)))
    return folder


@pytest.mark.slow
def test_the_bundle_scores_as_the_run_said(tskd: Command, out: Path, tmp_path: Path) -> None:
    """`tskd score` on the run's own test images; red where images are read, or scores are made, in another way."""
    (data,) = (out / "artifacts").glob("phantoms-*/data")
    where = "data.where={split: [test]}"
    answer = tskd("score", out, data, "--set", where, "--out", tmp_path / "scores", "--json")
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    told = json.loads((out / "run.json").read_text())["metrics"]["student"]
    assert (found["n_cases"], found["n_images"]) == (told["n_cases"], told["n_images"])
    assert found["dice"] == pytest.approx(told["dice"], abs=2e-3)


@pytest.mark.slow
def test_a_run_leaves_its_report_and_the_command_writes_it_again(tskd: Command, out: Path) -> None:
    page = out / "report.html"
    first = page.read_bytes()
    for section in ("scores", "overlays", "transfer", "training", "resources", "reproduce"):
        assert f'<section id="{section}">'.encode() in first
    page.unlink()
    answer = tskd("report", out)
    assert (answer.returncode, answer.stdout) == (0, f"{page}\n")
    assert without_date(page.read_bytes()) == without_date(first)


def without_date(page: bytes) -> bytes:
    return re.sub(rb"on \d{4}-\d\d-\d\d\.", b"", page)


@pytest.mark.slow
def test_the_terminal_says_what_the_page_says(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(open_run(out))
    said = " ".join(capsys.readouterr().out.split())
    page = (out / "report.html").read_text(encoding="utf-8")
    verdict = unescape(page.partition('class="verdict">')[2].partition("<")[0])
    assert "labelled images the student scores Dice" in verdict
    assert " ".join(verdict.split()) in said
    assert str(out / "report.html") in said.replace(" ", "")


@pytest.mark.slow
def test_every_training_of_the_run_has_its_curve(out: Path) -> None:
    html = (out / "report.html").read_text(encoding="utf-8")
    titles = ("Teacher", "Diffusion model", "Distillation", "Fine-tuning, student", "Fine-tuning, student from scratch",
              "Control (U-Net)")  # fmt: skip
    for title in titles:
        assert f"<figcaption>{title}: loss</figcaption>" in html
    logs = list(out.glob("artifacts/*/metrics.jsonl"))
    assert len(logs) == len(titles)
    assert all(Artifact(path.parent).path.name in html for path in logs)


@pytest.mark.slow
def test_synthetic_images_are_judged_by_the_runs_own_teacher(out: Path) -> None:
    (judged,) = out.glob("artifacts/quality-*")
    quality = json.loads((judged / "quality.json").read_text())
    assert quality["teacher"]["kid"]["n"] == quality["copies"]["n"] == 8
    assert not list(out.glob("artifacts/transfer-*/quality.json"))
    assert "teacher's features" in unescape((out / "report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_no_case_of_the_run_is_named(out: Path) -> None:
    html = (out / "report.html").read_text(encoding="utf-8")
    records = (out / next(out.glob("artifacts/prepare-*"))).joinpath("records.jsonl").read_text()
    assert "case0" in records, "phantoms are named so"
    assert "case0" not in html


@pytest.mark.slow
def test_a_changed_run_is_refused_with_one_message(tskd: Command, out: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    next(copy.glob("artifacts/evaluate-*/cases.csv")).write_text("")
    answer = tskd("report", copy)
    assert answer.returncode == 2
    assert "cases.csv has changed" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_all_of_it(out: Path, tmp_path: Path, width: int, dark: bool) -> None:
    view = look_at(out / "report.html", tmp_path, width=width, dark=dark)
    assert view.width == width
    assert view.needed <= width, "the page scrolls sideways"
    assert view.images > 20
    assert view.broken == view.empty_charts == view.small == 0
    assert view.paper == ("rgb(20, 23, 26)" if dark else "rgb(253, 253, 252)")
    assert view.ink is not None
    assert view.ink != view.paper


@pytest.mark.slow
@needs_chromium
def test_a_browser_has_nothing_to_complain_about(out: Path, tmp_path: Path) -> None:
    assert console_of(out / "report.html", tmp_path) == []


@needs_chromium
def test_the_console_is_listened_to(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<meta http-equiv="Content-Security-Policy" content="img-src data:"><img src="http://localhost/x.png">'
    )
    assert any("Content Security Policy" in line for line in console_of(page, tmp_path))
