"""The claim itself, on phantoms at a fixed seed: a distilled student beats one from scratch, and by its encoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.made_up import SMALL_VIT
from tskd.engine import open_runtime
from tskd.experiment.demo import demo_recipe
from tskd.experiment.methods import METHODS
from tskd.experiment.run import Run
from tskd.models.weights import efficientnet_lite0_path

MARGIN = 0.05
"""Dice by which the distilled student must be better at equal training compute; 0.084 was measured (seeds 1, 2: 0.093,
0.079). Part of it is that training from scratch on so few labels becomes worse with more steps."""
CHANGES = {
    "data": {
        "image_size": 64,
        "labels": 20,
        "phantom": {"family": "dermoscopy", "train": 120, "test": 40, "size": 64},
    },
    "teacher": {"name": "offline", "steps": 60, "batch_size": 8},
    "student": {"backbone": SMALL_VIT, "patch": 8},  # a tenth of ViT-Tiny's compute
    "transfer": {"synthetic": 0},
    "distill": {"steps": 200, "views": 2, "batch_size": 8},
    "finetune": {"steps": 30, "batch_size": 8},
    "control": {"enabled": False},
    "engine": {"accelerator": "cpu", "threads": 1},
}


@pytest.mark.slow
@pytest.mark.skipif(efficientnet_lite0_path() is None, reason="the offline teacher is not installed")
def test_the_distilled_student_beats_the_student_from_scratch(tmp_path: Path) -> None:
    recipe = demo_recipe(CHANGES)
    run = Run(recipe, tmp_path, open_runtime(recipe.engine))
    models = {name: METHODS[name].model(run) for name in ("task_kd", "scratch")}
    student, scratch = (run.evaluation(model, METHODS[name].title).metrics for name, model in models.items())
    assert student["dice"] >= scratch["dice"] + MARGIN
    assert student["n_images"] == scratch["n_images"] == 40
    silenced = run.ablation(models["task_kd"]).metrics["features_zeroed"]
    assert silenced < scratch["dice"], "the lead has to come from what the encoder learned"
