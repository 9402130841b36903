"""A federated recipe to its end: the models, how they do at each site, and ``run.json``."""

from __future__ import annotations

from collections.abc import Mapping

from tskd.artifacts import Artifact
from tskd.console import say
from tskd.experiment.methods import METHODS
from tskd.federated.bundle import renew
from tskd.federated.opening import require_alike
from tskd.federated.run import FederatedRun, bytes_of
from tskd.federated.site import STUDENT, TEACHER
from tskd.report import update_run_report
from tskd.report.run.folder import open_run
from tskd.run_file import RunFile, alone_in, write_run
from tskd.stages.compute import compute_of


def execute(run: FederatedRun) -> RunFile:
    """Make what the recipe's method asks for, score it at every site, write and return what was found."""
    require_alike(run)
    with alone_in(run.out, run.recipe.model_dump(mode="json")):
        _say_what_for(run)
        models = {name: (METHODS[method].title, METHODS[method].model(run)) for name, method in _wanted(run)}
        scores = {name: run.evaluation(model, title) for name, (title, model) in models.items()}
        found = _found(run, {name: model for name, (_, model) in models.items()}, scores)
        write_run(run.out, found)
        renew(run, found.metrics)
        update_run_report(open_run(run.out))
    return found


def _wanted(run: FederatedRun) -> list[tuple[str, str]]:
    """Return name in run.json and method of the models: the teacher, and the student that learns from it."""
    teacher = [(TEACHER, TEACHER)]
    return teacher if run.recipe.method == TEACHER else [*teacher, (STUDENT, run.recipe.method)]


def _found(run: FederatedRun, models: Mapping[str, Artifact], scores: Mapping[str, Artifact]) -> RunFile:
    labels = sum(len(site.own.prepared.rows("train", "val")) for site in run.sites.values())
    labelled = {name: site.labelled for name, site in run.sites.items()}
    return run_file(run, models, scores, labels=labels, labelled=labelled, over="simulation")


def run_file(
    run: FederatedRun,
    models: Mapping[str, Artifact],
    scores: Mapping[str, Artifact],
    *,
    labels: int,
    labelled: Mapping[str, int],
    over: str,
) -> RunFile:
    """Return what ``run.json`` holds; a model that has scores and is not among ``models`` lies at the sites alone.

    ``over``: ``simulation`` or ``machines``.
    """
    spent = {name: compute_of(model, run.used)._asdict() for name, model in models.items()}
    metrics = {name: one.metrics | spent.get(name, {}) for name, one in scores.items()}
    costs = run.costs
    return RunFile(
        dataset=next(iter(metrics.values()))["dataset"],
        tested_on=next(iter(metrics.values()))["dataset"],
        labels=labels,
        seed=run.recipe.seed,
        method=run.recipe.method,
        teacher=run.teachers.source.title,
        seconds=round(sum(cost["seconds"] for cost in costs.values()), 1),
        peak_memory_mb=max(cost["peak_memory_mb"] for cost in costs.values()),
        peak_gpu_memory_mb=max(cost.get("peak_gpu_memory_mb", 0.0) for cost in costs.values()),
        metrics=metrics,
        artifacts={name: model.path.name for name, model in models.items()},
        evaluations={name: one.path.name for name, one in scores.items()},
        export={},
        stages=costs,
        recipe=run.recipe.model_dump(mode="json"),
        federated={
            "strategy": run.federated.strategy,
            "sites": {name: one["sites"] for name, one in metrics.items()},
            "labelled": dict(labelled),
            "rounds": run.rounds,
            "bytes": bytes_of(run.rounds),
            "privacy": run.privacy,
            "over": over,
        },
    )


def _say_what_for(run: FederatedRun) -> None:
    counts = ", ".join(
        f"{name} {len(site.own.prepared.rows('train'))}/{len(site.own.prepared.rows('test'))}"
        for name, site in run.sites.items()
    )
    say(
        f"federated: {run.federated.strategy} over {len(run.sites)} sites (images to train on/test images: {counts}), "
        f"{len(run.prepared.records)} shared images, at {run.prepared.image_size} px"
    )
