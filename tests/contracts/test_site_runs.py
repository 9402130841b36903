"""A run across sites, whole: labels of one scanner, images of another, tested where no label was read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.made_up import SMALL_VIT
from tskd.data.prepared import Prepared
from tskd.engine import open_runtime
from tskd.experiment.methods import METHODS
from tskd.experiment.pipeline import run_stage
from tskd.experiment.run import Run
from tskd.recipe.schema import build_recipe

SITES = {"family": "dermoscopy", "train": 24, "test": 8, "size": 48, "scanners": {"a": {}, "b": {"gamma": 0.5}}}
STYLED: dict[str, Any] = {"batch_size": 4, "augment": {"amplitude": 0.5}}
SETTINGS: dict[str, Any] = {
    "data": {"image_size": 32, "labels": 6, "phantom": SITES, "where": {"site": "a"}},
    "teacher": {"name": "timm/resnet10t", "weights": "random", "adaptation": "full", "image_size": 48, "steps": 2,
                **STYLED},
    "transfer": {"real": 0, "target": {"phantom": SITES, "where": {"site": "b"}}},
    "student": {"backbone": SMALL_VIT, "patch": 8},
    "distill": {"steps": 8, "cache": "on", "views": 2, **STYLED},
    "finetune": {"steps": 2, **STYLED},
    "evaluate": {"overlays": 1, "norm_statistics": "test", "data": {"phantom": SITES, "where": {"site": "b"}}},
    "engine": {"accelerator": "cpu"},
}  # fmt: skip


def test_a_student_of_another_sites_images_is_made_and_tested_there(tmp_path: Path) -> None:
    recipe = build_recipe(SETTINGS, "test")
    run = Run(recipe, tmp_path, open_runtime(recipe.engine))
    evaluated = run_stage(run, "evaluate")
    assert evaluated is not None
    summary = json.loads((evaluated.path / "summary.json").read_text())
    of_teacher = run.evaluation(run.teachers.adapted, METHODS["teacher"].title)
    assert "batch norms are those of" in json.loads((of_teacher.path / "summary.json").read_text())["remark"]
    assert summary["n_images"] == len(run.tested.rows("test"))
    sites = {name: {line.split(",")[-1] for line in lines} for name, lines in _lines(run, tmp_path).items()}
    assert sites == {"source": {"a"}, "target": {"b"}}
    learned, tested = run.transfer_set.names, run.tested.names(run.tested.rows("test"))
    assert {name.partition("/")[0] for name in learned} == {"target"}
    assert {name.partition("/")[2] for name in learned}.isdisjoint(tested)
    assert run.transfer.metrics["target"] == len(learned)
    target = run.target_set
    assert target is not None
    assert target.image_size == 48, "the teacher sees them at its own size"


def _lines(run: Run, folder: Path) -> dict[str, list[str]]:
    """Return the lines of split.csv of the images that were learned from with and without labels."""
    (table,) = (folder / "artifacts").glob("phantoms-*/data/split.csv")
    lines = {line.split(",")[0]: line for line in table.read_text().splitlines()}
    target = run.target_set
    assert isinstance(target, Prepared)
    sources = {"source": run.prepared, "target": target}
    return {name: [lines[record.id] for record in prepared.records] for name, prepared in sources.items()}
