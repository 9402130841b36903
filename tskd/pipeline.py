"""The whole method in order, one stage of it, and what a run leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tskd.artifacts import Artifact, write_json
from tskd.bundle import publish
from tskd.errors import UserError
from tskd.methods import METHODS
from tskd.report import write_report
from tskd.run import Run
from tskd.stages import evaluate
from tskd.stages.export import build_export
from tskd.stages.networks import measure_networks

RUN_FILE, BUNDLE = "run.json", "model"


def trained_models(run: Run) -> dict[str, tuple[str, Artifact]]:
    """Return name in run.json -> (title, model) of everything that the recipe's method and its rivals make."""
    models: dict[str, tuple[str, Artifact]] = {}
    if run.recipe.method == "task_kd":
        models["teacher"] = METHODS["teacher"].title, run.teacher
        models["student_before_finetune"] = "student after distillation", run.distilled
    models["student"] = METHODS[run.recipe.method].title, student(run)
    controls = ("control",) if run.recipe.control.enabled else ()
    for rival in dict.fromkeys((*run.recipe.rivals, *controls)):
        models[rival] = METHODS[rival].title, METHODS[rival].model(run)
    return models


def student(run: Run) -> Artifact:
    """Return the model that the recipe's method ends with: the one that is shipped."""
    return METHODS[run.recipe.method].model(run)


def exported(run: Run) -> Artifact:
    """Return the bundle to ship, proved against the network on real cases."""
    metrics = {name: artifact.metrics for name, artifact in evaluations(run).items()}
    return build_export(run.store, run.recipe.export, student(run), run.prepared_artifact, metrics)


def evaluations(run: Run) -> dict[str, Artifact]:
    """Return the scores of every model, by its name in run.json."""
    return {name: run.evaluation(model, title) for name, (title, model) in trained_models(run).items()}


def execute(run: Run) -> dict[str, Any]:
    """Run the recipe's method to the end and return what ``run.json`` holds."""
    began = time.monotonic()
    models, scores = trained_models(run), evaluations(run)
    bundle = exported(run)
    measured = measure_networks(run.store, [one for _, one in models.values()], image_size=run.recipe.data.image_size)
    networks = {name: asdict(measured[one.path.name]) for name, (_, one) in models.items()}
    metrics = {name: artifact.metrics for name, artifact in scores.items()}
    if "teacher" in scores:
        paths = scores["teacher"].path, scores["student"].path
        metrics["student"]["teacher_agreement"] = round(evaluate.mean_agreement(*paths, run.tested), 4)
    summary = {
        "dataset": run.prepared.dataset["name"],
        "tested_on": run.tested.dataset["name"],
        "labels": len(run.prepared.rows("train", "val")),
        "seed": run.recipe.seed,
        "method": run.recipe.method,
        "teacher": run.teacher.manifest["metrics"]["teacher"] if "teacher" in models else None,
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_mb": max(cost["peak_memory_mb"] for cost in run.costs.values()),
        "metrics": metrics,
        "artifacts": {name: artifact.path.name for name, (_, artifact) in models.items()},
        "export": bundle.metrics,
        "networks": networks,
        "evaluations": {name: artifact.path.name for name, artifact in scores.items()},
        "stages": run.costs,
        "recipe": run.recipe.model_dump(mode="json"),
    }
    if run.runtime.fabric.is_global_zero:
        publish(bundle.path, run.out / BUNDLE)
        write_json(run.out / RUN_FILE, summary)
        write_report(run.out)
    return summary


STAGES: dict[str, Callable[[Run], Artifact | None]] = {
    "prepare": lambda run: run.prepared_artifact,
    "teacher": lambda run: run.teacher,
    "diffusion": lambda run: run.diffusion,
    "samples": lambda run: run.samples[-1] if run.samples else None,
    "transfer": lambda run: run.transfer,
    "cache": lambda run: run.cache,
    "distill": lambda run: run.distilled,
    "finetune": student,
    "control": lambda run: run.control,
    "evaluate": lambda run: run.evaluation(student(run), METHODS[run.recipe.method].title),
    "export": exported,
}


def run_stage(run: Run, name: str) -> Artifact | None:
    """Run one stage and what it needs; None where the recipe does without it. UserError lists the names."""
    if name not in STAGES:
        raise UserError(f"there is no stage {name!r}. Choose one of: {', '.join(STAGES)}")
    return STAGES[name](run)
