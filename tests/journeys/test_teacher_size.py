"""A user asks for a teacher at a larger size than the student's and gets what the command says."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.conftest import Command

RECIPE = {
    "data": {"image_size": 32, "labels": 8, "phantom": {"family": "dermoscopy", "train": 12, "test": 6, "size": 96}},
    "teacher": {"name": "timm/test_resnet", "weights": "random", "adaptation": "full", "image_size": 64, "steps": 4},
    "distill": {"steps": 4, "batch_size": 4, "views": 2, "cache": "on"},
    "finetune": {"steps": 4, "batch_size": 4},
    "student": {"backbone": "test_vit", "patch": 8},
    "control": {"enabled": False},
    "engine": {"accelerator": "cpu"},
}


def test_a_run_with_a_larger_teacher_reads_the_images_once_more_and_once_only(tmp_path: Path, tskd: Command) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    out = tmp_path / "out"
    done = tskd("run", tmp_path / "recipe.yaml", "--out", out)
    assert done.returncode == 0, done.stderr
    (made,) = (out / "artifacts").glob("teacher_images-*")
    count = json.loads((made / "manifest.json").read_text(encoding="utf-8"))["metrics"]["images"]
    assert f"teacher: its own {count} images at 64 px" in done.stderr
    summary = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert made.name in summary["stages"]
    assert 0 <= summary["metrics"]["teacher"]["dice"] <= 1
    assert "teacher&#39;s images" in (out / "report.html").read_text(encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in (out / "artifacts").glob("*/manifest.json")}
    again = tskd("run", tmp_path / "recipe.yaml", "--out", out)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in (out / "artifacts").glob("*/manifest.json")} == before
    assert "its own" not in again.stderr
