"""What a run trains, scores and ships, asked of a run whose artifacts are only named."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tskd.artifacts import Artifact
from tskd.errors import UserError
from tskd.experiment.pipeline import announcer, execute, exported, trained_models
from tskd.recipe.schema import load_recipe


class NamedRun(SimpleNamespace):
    """A run that answers every request with a folder named after it."""

    def __init__(self, *overrides: str) -> None:
        super().__init__(recipe=load_recipe(None, overrides), budget=SimpleNamespace(total=1))
        self.teachers = self.initialisations = self.baselines = self  # whichever of them is asked

    def finetuned(self, start: Artifact | None, *, within: Any = None) -> Artifact:
        return Artifact(Path(f"finetuned-{start.path if start else 'nothing'}"))

    def distilled_by(self, teacher: Artifact) -> Artifact:
        return Artifact(Path(f"distilled-{teacher.path}"))

    def __getattr__(self, name: str) -> Artifact:
        return Artifact(Path(name))


def models_of(*overrides: str) -> dict[str, tuple[str, str]]:
    run: Any = NamedRun(*overrides)
    return {name: (title, str(model.path)) for name, (title, model) in trained_models(run).items()}


def test_a_run_scores_teacher_both_students_and_the_control() -> None:
    assert models_of("baselines=[scratch]") == {
        "teacher": ("teacher", "adapted"),
        "student_before_finetune": ("student before fine-tuning", "distilled"),
        "student": ("task-specific distillation", "finetuned-distilled"),
        "scratch": ("student from scratch", "finetuned-nothing"),
        "control": ("control (U-Net)", "control"),
    }


def test_a_u_net_that_is_the_method_is_what_is_shipped_and_no_baseline_of_itself() -> None:
    assert models_of("method=control", "baselines=[control, scratch]") == {
        "student": ("control (U-Net)", "control"),
        "scratch": ("student from scratch", "finetuned-nothing"),
    }


def test_every_model_is_announced_once_and_before_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    run: Any = NamedRun("baselines=[scratch]")
    trained_models(run, announce=announcer(run.recipe))
    assert re.findall(r"model (\d of \d), (.*) \(0 s so far\)", capsys.readouterr().err) == [
        ("1 of 5", "teacher"),
        ("2 of 5", "student before fine-tuning"),
        ("3 of 5", "task-specific distillation"),
        ("4 of 5", "student from scratch"),
        ("5 of 5", "control (U-Net)"),
    ]


def test_a_baseline_teacher_does_not_take_the_place_of_the_one_that_taught() -> None:
    models = models_of("method=task_kd_probe", "baselines=[teacher]", "control.enabled=false")
    assert models["teacher"] == ("teacher", "probed")
    assert models["baseline_teacher"] == ("teacher (baseline)", "adapted")
    assert "baseline_teacher" not in models_of("baselines=[teacher]")


def test_a_run_ends_with_a_small_model() -> None:
    run: Any = NamedRun("method=teacher")
    for way in (execute, exported):
        with pytest.raises(
            UserError, match=r"'teacher' is what students learn from.* Choose one of: task_kd,.* control_pseudo"
        ):
            way(run)
