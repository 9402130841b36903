"""One run of a grid in a process of its own, and the file that says how it ended."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tskd.artifacts import ARTIFACTS, Artifact, manifest_damage
from tskd.comparison.grid import GridRun
from tskd.errors import RunFailed, UserError, name_of, refused_by_system
from tskd.machine.disk import write_json
from tskd.metrics.segmentation import NOTHING_TO_FIND
from tskd.recipe.schema import build_recipe
from tskd.run_file import misquoted

RUNS = "runs"
"""Folder of the runs' states and logs in a comparison's folder."""
RECHECK = "Give --recheck: the same comparison then makes anew what is damaged."
DATA_STAGES = frozenset({"phantoms", "prepare", "public", "pooled", "sites"})
"""Stages that are not part of a method."""
LONGEST_ERROR = 300


@dataclass(frozen=True)
class Job:
    """What a process on any machine needs to do one run."""

    name: str
    recipe: Mapping[str, Any]
    out: Path
    """The comparison's folder, absolute: on a cluster every machine sees it under this name."""
    folder: Path
    """Where relative paths of the recipe start."""
    threads: int
    """CPU threads where the recipe does not say."""
    download: bool = False

    @property
    def state(self) -> Path:
        return state_path(self.out, self.name)

    @property
    def log(self) -> Path:
        """What the run would have printed, with the traceback of an error."""
        return self.state.with_suffix(".log")


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    name: str
    error: str | None
    """None: it is done."""
    row: Mapping[str, Any]
    """Its scores and costs; empty where it failed."""
    artifacts: Mapping[str, str]
    """``model``, ``evaluation`` and ``data`` (whose test images were scored) -> folder name."""


def build_job(run: GridRun, out: Path, *, threads: int, download: bool) -> Job:
    """Return the job of a run whose comparison lies in ``out``."""
    return Job(run.name, run.recipe.model_dump(mode="json"), out.resolve(), Path.cwd(), threads, download)


def state_path(out: Path, name: str) -> Path:
    """Return the file that says how a run ended."""
    return out / RUNS / f"{name}.json"


def read_outcome(out: Path, name: str) -> Outcome | None:
    """Return how a run ended; None where it has not, or where its scores are gone or not those of its artifacts."""
    try:
        outcome = Outcome(**json.loads(state_path(out, name).read_text(encoding="utf-8")))
        made = {name: Artifact(out / ARTIFACTS / folder) for name, folder in outcome.artifacts.items()}
        if any(map(manifest_damage, made.values())):
            return None
        if "evaluation" in made and any(misquoted(outcome.row["scores"], made["evaluation"])):
            return None
    # not there, cut short by a full disk, changed, or of another version
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return outcome


def write_outcome(out: Path, outcome: Outcome) -> None:
    """Keep how a run ended."""
    path = state_path(out, outcome.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, vars(outcome))


def failed(name: str, error: BaseException | str) -> Outcome:
    """Return the outcome of a run that failed, its error in one short line."""
    line = " ".join(_said(error).split())
    return Outcome(name, line if len(line) <= LONGEST_ERROR else line[: LONGEST_ERROR - 1] + "…", {}, {})


def _said(error: BaseException | str) -> str:
    if isinstance(error, str | UserError | RunFailed):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return refused_by_system(error)
    return f"{name_of(error)}: {error}"


def run_job(job: Job) -> None:
    """Do a run from beginning to end and keep how it ended; whatever it prints goes to its log."""
    with job.log.open("a", encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
        os.chdir(job.folder)
        try:
            outcome = execute(job)
        except Exception as error:  # noqa: BLE001 whatever it was, the other runs go on
            traceback.print_exc()
            outcome = failed(job.name, error)
        write_outcome(job.out, outcome)


def execute(job: Job) -> Outcome:
    """Do a run in this process; return how it ended where nothing went wrong."""
    import torch

    from tskd.engine import open_runtime
    from tskd.experiment.methods import METHODS
    from tskd.federated.opening import make_run
    from tskd.stages.compute import compute_of

    recipe = build_recipe(job.recipe, job.name)
    engine = recipe.engine.model_copy(update={"threads": recipe.engine.threads or job.threads})
    run = make_run(recipe, job.out, open_runtime(engine), job.download)
    method = METHODS[recipe.method]
    model = method.model(run)
    costs = [cost for name, cost in run.costs.items() if name.rpartition("-")[0] not in DATA_STAGES]
    evaluation = run.evaluation(model, method.title)
    if evaluation.metrics["dice"] is None:
        raise UserError(f"{NOTHING_TO_FIND}: no mask of theirs holds any foreground, so nothing can be compared.")
    ablation = run.ablation(model)
    row = {
        "title": method.title,
        "dataset": run.data_name,
        "images": run.source_digest,
        "read_beside": run.read_beside,
        "scores": evaluation.metrics,
        "seconds": round(sum(cost["seconds"] for cost in costs), 2),
        "peak_memory_mb": max(cost["peak_memory_mb"] for cost in costs),
        "peak_gpu_memory_mb": max(cost.get("peak_gpu_memory_mb", 0.0) for cost in costs),
        "threads": torch.get_num_threads(),
        **run.figures(evaluation),
        **compute_of(model, run.used)._asdict(),
        **{f"dice_{name}": dice for name, dice in (ablation.metrics if ablation else {}).items()},
    }
    artifacts = {"model": model, "evaluation": evaluation, "data": run.tested_artifact}
    return Outcome(job.name, None, row, {name: artifact.path.name for name, artifact in artifacts.items()})


def end_with(parent: Any) -> None:
    """End this process when the one that started it is gone: a killed comparison leaves no run behind."""
    from multiprocessing.connection import wait

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
