"""The whole method: a recipe's models, scores and bundle, made from the artifacts of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from itertools import count
from typing import Any

from tskd.artifacts import Artifact
from tskd.console import duration, say
from tskd.data.transfer_set import QUALITY
from tskd.deploy.bundle import FOLDER, publish, require_ours
from tskd.errors import UserError
from tskd.experiment.budget import BUDGET_RULE
from tskd.experiment.methods import METHODS, Make, baselines_of, require_small
from tskd.experiment.run import Run
from tskd.recipe.schema import Recipe
from tskd.report import update_run_report
from tskd.report.run.folder import RunFolder
from tskd.run_file import RunFile, alone_in, write_run
from tskd.stages import doubt, evaluate, export, quality
from tskd.stages.compute import compute_of
from tskd.stages.evaluation_files import LOOKS
from tskd.stages.network_costs import measure_networks
from tskd.stages.transfer import count_wanted


def trained_models(
    run: Run, *, announce: Callable[[str], None] = lambda title: None
) -> dict[str, tuple[str, Artifact]]:
    """Return name in run.json -> (title, model) of everything that the recipe's method and its baselines make.

    ``announce`` is told the title of each before it is made. A baseline is known by another name where the method's own
    teacher has its name and is a different one.
    """
    models: dict[str, tuple[str, Artifact]] = {}
    for name, title, make in _wanted(run.recipe):
        announce(title)
        model = make(run)
        if name in models and models[name][1].path != model.path:
            models[f"baseline_{name}"] = f"{title} (baseline)", model
        else:
            models[name] = title, model
    return models


def _wanted(recipe: Recipe) -> Iterator[tuple[str, str, Make]]:
    """Yield name in run.json, title and what makes it of every model of a recipe, in the order of making."""
    method = METHODS[recipe.method]
    if method.teacher is not None:
        yield "teacher", METHODS["teacher"].title, method.teacher
        if method.initialisation is not None:
            yield "student_before_finetune", "student before fine-tuning", method.initialisation
    yield "student", method.title, method.model
    yield from ((baseline, METHODS[baseline].title, METHODS[baseline].model) for baseline in baselines_of(recipe))


def student(run: Run) -> Artifact:
    """Return the model that the recipe's method ends with: the one that is shipped."""
    return METHODS[run.recipe.method].model(run)


def exported(run: Run) -> Artifact:
    """Return the bundle to ship, proved against the network on real cases."""
    require_small(run.recipe)
    metrics = {name: artifact.metrics for name, artifact in evaluations(run).items()}
    return export.build(
        run.bench, run.recipe.export, student(run), run.prepared_artifact, doubted(run), metrics,
        method=run.recipe.method, axis=run.recipe.data.axis,
    )  # fmt: skip


def doubted(run: Run) -> Artifact:
    """Return what is known of the doubts of the model to ship."""
    return doubt.build(run.bench, run.prepared_artifact, run.tested_artifact, student(run))


def evaluations(run: Run) -> dict[str, Artifact]:
    """Return the scores of every model, by its name in run.json."""
    return {name: run.evaluation(model, title) for name, (title, model) in trained_models(run).items()}


def judged_synthetic(run: Run) -> Artifact | None:
    """Return what the synthetic images of the transfer set are worth; None where there are none.

    The features of the adapted teacher are a part of it where a method of the recipe learns from one; none is trained
    for it alone.
    """
    if not run.recipe.transfer.synthetic:
        return None
    teachers = [METHODS[name].teacher for name in (run.recipe.method, *run.recipe.baselines)]
    judged = quality.build(
        run.bench, run.transfer, run.samples, run.prepared_artifact, next((ask(run) for ask in teachers if ask), None)
    )  # fmt: skip
    say(f"transfer: what the synthetic images are worth is in {judged.path / QUALITY}")
    return judged


def transferred(run: Run) -> Artifact:
    """Return the transfer set, its synthetic images judged."""
    judged_synthetic(run)
    return run.transfer


def execute(run: Run, *, begins: Callable[[], None] = lambda: None) -> RunFolder:
    """Run the recipe's method to the end, write its report, and return what its folder holds.

    ``begins`` is called once the data are accepted and nobody else is at work in the folder.
    Raises UserError where another run is at work in the output folder: the last to end would take the other's place.
    """
    require_small(run.recipe)
    require_ours(run.out / FOLDER)
    _ = run.prepared_artifact  # data that cannot be used are told before the folder is touched
    first = run.runtime.fabric.is_global_zero
    with alone_in(run.out, run.recipe.model_dump(mode="json")) if first else nullcontext():
        if first:
            begins()
        return _execute(run)


def _execute(run: Run) -> RunFolder:
    if any(
        METHODS[name].initialisation or METHODS[name].teacher for name in (run.recipe.method, *run.recipe.baselines)
    ):
        # more than there are is refused before anything is trained
        count_wanted(run.recipe.transfer, run.prepared, run.target_set)
    _say_what_for(run)
    models = trained_models(run, announce=announcer(run.recipe))
    say(f"run: scores of {len(models)} models, then the model to ship and the report")
    scores = evaluations(run)
    if any(one.manifest["stage"] == "transfer" for one in run.used):  # a method has learned from it
        judged_synthetic(run)
    bundle = exported(run)
    measured = measure_networks(run.bench, [one for _, one in models.values()], image_size=run.recipe.data.image_size)
    ablation = run.ablation(models["student"][1])
    looks = {name: artifact.metrics.get(LOOKS, 1) for name, artifact in scores.items()}
    networks = {name: asdict(measured[one.path.name].in_looks(looks[name])) for name, (_, one) in models.items()}
    metrics = {name: artifact.metrics | compute(run, models[name][1]) for name, artifact in scores.items()}
    if members := member_scores(run, models):
        metrics["teacher"]["members"] = members
    if "teacher" in scores:
        paths = scores["teacher"].path, scores["student"].path
        metrics["student"]["teacher_agreement"] = round(evaluate.mean_agreement(*paths, run.tested), 4)
    found = RunFile(
        dataset=run.prepared.dataset["name"],
        tested_on=run.tested.dataset["name"],
        labels=run.prepared.count("train", "val"),
        seed=run.recipe.seed,
        method=run.recipe.method,
        teacher=models["teacher"][1].metrics["teacher"] if "teacher" in models else None,
        seconds=round(sum(cost["seconds"] for cost in run.costs.values()), 1),
        peak_memory_mb=max(cost["peak_memory_mb"] for cost in run.costs.values()),
        peak_gpu_memory_mb=max(cost.get("peak_gpu_memory_mb", 0.0) for cost in run.costs.values()),
        metrics=metrics,
        ablation=ablation.metrics if ablation else {},
        budget_rule=BUDGET_RULE,
        doubt=_found_by(doubted(run)),
        artifacts={name: artifact.path.name for name, (_, artifact) in models.items()},
        export=bundle.metrics,
        networks=networks,
        evaluations={name: artifact.path.name for name, artifact in scores.items()},
        stages=run.costs,
        recipe=run.recipe.model_dump(mode="json"),
    )
    folder = RunFolder(run.out, found)  # its artifacts were verified when they were found, or have just been made
    if run.runtime.fabric.is_global_zero:
        publish(bundle.path, run.out / FOLDER)
        write_run(run.out, found)
        update_run_report(folder)
    return folder


def _found_by(artifact: Artifact) -> dict[str, Any]:
    return {"artifact": artifact.path.name, **artifact.metrics}


def member_scores(run: Run, models: Mapping[str, tuple[str, Artifact]]) -> list[float]:
    """Return the Dice on the test images of each teacher that answers together with others; none where one answers."""
    together = models.get("teacher")
    if together is None or "members" not in together[1].metrics:
        return []
    titles = (f"teacher, member {number}" for number in count(1))
    scores = [run.evaluation(member, title).metrics["dice"] for member, title in zip(run.teachers.members, titles)]
    if None not in scores:
        each = f"{min(scores):.3f} to {max(scores):.3f} each by itself"
        say(f"teacher: Dice {each if len(scores) > 1 else f'{scores[0]:.3f} without mirrored images'}")
    return scores


def _say_what_for(run: Run) -> None:
    """Say which images are used for what, and which models will be made."""
    prepared, tested = run.prepared, run.tested
    train, val, unlabelled = (prepared.count(part) for part in ("train", "val", "unlabelled"))
    chosen = f"and {val} to choose weights by" if val else "(weights are not chosen: the last averaged ones are kept)"
    tiles = f", larger images in tiles of {prepared.tile} px" if prepared.tile else ""
    tests = f"{len(tested.rows('test'))} test images in {len(tested.cases('test'))} cases"
    say(
        f"run: {train} labelled images to train on {chosen}, {unlabelled} without labels, "
        f"{tests}, at {prepared.image_size} px{tiles}"
    )
    beside = ", ".join(METHODS[name].title for name in baselines_of(run.recipe))
    say(f"run: {METHODS[run.recipe.method].title}{f', and beside it {beside}' if beside else ''}; each trains in turn")


def announcer(recipe: Recipe) -> Callable[[str], None]:
    """Return what says which of how many models is made, and how long the run has taken so far."""
    began, number, total = time.monotonic(), count(1), len(list(_wanted(recipe)))

    def announce(title: str) -> None:
        say(f"run: model {next(number)} of {total}, {title} ({duration(time.monotonic() - began)} so far)")

    return announce


def compute(run: Run, model: Artifact) -> dict[str, float]:
    """Return ``student_gflops`` and ``teacher_gflops`` of a model of the run: what its method alone has cost."""
    return compute_of(model, run.used)._asdict()


def started(run: Run) -> Artifact:
    """Return the student of the recipe's method before fine-tuning; UserError where it has no pre-training."""
    initialisation = METHODS[run.recipe.method].initialisation
    if initialisation is None:
        known = ", ".join(name for name, method in METHODS.items() if method.initialisation is not None)
        raise UserError(f"method {run.recipe.method!r} has no pre-training. Set method to one of: {known}")
    return initialisation(run)


STAGES: dict[str, Callable[[Run], Artifact | None]] = {
    "prepare": lambda run: run.prepared_artifact,
    "teacher": lambda run: run.teachers.adapted,
    "diffusion": lambda run: run.diffusion,
    "samples": lambda run: run.samples[-1],
    "transfer": transferred,
    "quality": judged_synthetic,
    "cache": lambda run: run.initialisations.cache,
    "distill": lambda run: run.initialisations.distilled,
    "pretrain": started,
    "finetune": student,
    "control": lambda run: run.baselines.control,
    "unet": lambda run: run.baselines.unet,
    "unet_imagenet": lambda run: run.baselines.unet_imagenet,
    "evaluate": lambda run: run.evaluation(student(run), METHODS[run.recipe.method].title),
    "doubt": doubted,
    "export": exported,
}


def run_stage(run: Run, name: str) -> Artifact | None:
    """Run one stage and what it needs; None where the recipe does without it. UserError lists the names."""
    if name not in STAGES:
        raise UserError(f"there is no stage {name!r}. Choose one of: {', '.join(STAGES)}")
    return STAGES[name](run)
