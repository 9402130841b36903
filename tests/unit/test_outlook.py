"""What a run is said to do and to take, before it begins, is what it does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tskd.cli import main
from tskd.experiment import pace
from tskd.experiment.pace import Pace
from tskd.recipe.schema import build_recipe

TINY = {
    "data": {"image_size": 32},
    "student": {"backbone": "none", "decoder": "unet"},
    "teacher": {"steps": 30, "batch_size": 8},
    "distill": {"steps": 60, "batch_size": 16},
    "finetune": {"steps": 20, "batch_size": 16},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 images of 48 px, 9 of them with a square to find."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (48, 48), np.uint8)).save(tmp_path / f"data/images/{number}.png")
        mask = np.zeros((48, 48), np.uint8)
        mask[10 + number : 24 + number, 5:30] = 255
        if number < 9:
            Image.fromarray(mask).save(tmp_path / f"data/masks/{number}.png")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def steps_of_six_seconds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A step is said to take 6 s; the batches that were timed."""
    timed: list[int] = []
    monkeypatch.setattr(pace, "step_seconds", lambda _, batch, *__: timed.append(batch) or 6.0)
    return timed


def minutes(values: dict[str, object], **more: object) -> dict[str, float]:
    recipe = build_recipe({**TINY, **values, **more}, "test")
    return {part.name: part.minutes for part in Pace(6.0, 0.0, teacher=2.0).parts(recipe)}


def done(command: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0


def test_each_training_takes_its_steps_and_a_baseline_the_students() -> None:
    found = minutes({"baselines": ["mae"], "control": {"enabled": True}})
    assert found == {
        "teacher": pytest.approx(30 * 6 * 2 * 8 / 16 / 60),
        "task-specific distillation": pytest.approx(80 * 6 / 60),
        "masked autoencoder": pytest.approx(8.0),
        "control (U-Net)": pytest.approx(8.0),
    }


def test_a_unet_with_steps_of_its_own_is_timed(steps_of_six_seconds: list[int]) -> None:
    own = minutes({"method": "unet", "control": {"enabled": False}}, unet={"steps": 100, "batch_size": 4})
    assert own == {"U-Net of nnU-Net's size": pytest.approx(100 * 6 / 60)}
    assert steps_of_six_seconds == [4]
    equal = minutes({"method": "unet", "control": {"enabled": False}}, unet={"compute": "equal"})
    assert equal == {"U-Net of nnU-Net's size": pytest.approx(8.0)}


def test_each_round_has_a_student_and_a_teacher_alone_has_none() -> None:
    alone = {"control": {"enabled": False}}
    rounds = minutes(alone, distill={"steps": 60, "rounds": 3})
    assert rounds["task-specific distillation"] == pytest.approx(24.0)
    assert list(minutes(alone, method="teacher")) == ["teacher"]


def test_a_method_that_is_a_baseline_too_is_trained_once() -> None:
    found = minutes({"method": "control", "baselines": ["control", "task_kd"]})
    assert list(found) == ["teacher", "control (U-Net)", "task-specific distillation"]


def test_what_does_not_distil_trains_in_one_round_for_the_students_compute() -> None:
    settings = {"method": "scratch", "baselines": ["scratch_total", "task_kd"], "control": {"enabled": False}}
    found = minutes(settings, distill={"steps": 60, "rounds": 3})
    teacher = 30 * 6 * 2 * 8 / 16 / 60
    assert found == {
        "teacher": pytest.approx(teacher),
        "student from scratch": pytest.approx(8.0),
        "student from scratch with the teacher's compute too": pytest.approx(8.0 + teacher),
        "task-specific distillation": pytest.approx(24.0),
    }
    recipe = build_recipe({**TINY, **settings}, "test")
    said = {part.name: part.what for part in Pace(6.0, 0.0).parts(recipe)}
    assert said["student from scratch"] == "the student's compute"
    assert said["task-specific distillation"] == "60 + 20 steps"


def test_a_dry_run_of_built_in_images_leaves_none_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = "--set", "data.phantom.train=8", "--set", "data.phantom.test=4", "--set", "data.phantom.size=32"
    done(["run", "quick", "--out", str(tmp_path / "out"), "--dry-run", *drawn])
    assert "labelled images to train on" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    settings = "control.enabled=false", "distill.steps=60", "finetune.steps=20", "distill.batch_size=16"
    command = ["run", "quick", "--data", str(folder), "--out", str(out), "--dry-run"]
    command += [word for one in settings for word in ("--set", one)]
    done(command)
    shown = capsys.readouterr().out
    assert "3 more to learn from without labels" in shown
    assert "60 + 20 steps" in shown
    done([*command, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["labelled"] + told["tested"] == 9
    assert told["minutes"] == pytest.approx(sum(part["minutes"] for part in told["parts"]))
    assert not out.exists()


def test_a_dry_run_without_a_recipe_keeps_no_choices_and_starts_no_processes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["run", "--data", str(folder), "--out", str(out), "--dry-run", "--target-minutes", "60"]
    done([*command, "--set", "engine.devices=2"])
    assert "about" in capsys.readouterr().out
    assert not out.exists()
