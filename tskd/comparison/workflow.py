"""The comparison from the grid to its tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from tskd.artifacts import ARTIFACTS, Artifact, Store, canonical_json, environment, find_by_digest, whole
from tskd.comparison.board import open_board
from tskd.comparison.decompose import decompose_groups, decomposition_columns
from tskd.comparison.drive import Queue, drive
from tskd.comparison.estimate import Estimator
from tskd.comparison.executors import Executor, local_executor, ray_executor
from tskd.comparison.grid import Grid, GridRun
from tskd.comparison.job import RECHECK, RUNS, Job, Outcome, build_job, read_outcome
from tskd.comparison.plan import RunPlan, all_missing, plan_runs
from tskd.comparison.statistics import Scored, Statistics, as_rows, columns_of, columns_of_changes, compare_groups
from tskd.comparison.tables import table_columns, table_rows, write_table
from tskd.console import say, warn
from tskd.data.prepared import digest_of_source, digest_of_test
from tskd.engine import open_runtime
from tskd.errors import UserError
from tskd.experiment.budget import BUDGET_RULE
from tskd.machine.disk import read_object, write_json
from tskd.machine.memory import cores
from tskd.metrics.comparison import MeanRank, PairTest
from tskd.models.description import DESCRIPTION
from tskd.recipe.schema import EngineConfig, SourceConfig
from tskd.report import write_report
from tskd.report.comparison.files import BIAS_VARIANCE, CHANGES, COMPARISON, RANKS, TABLE, TESTS
from tskd.stages.network_costs import Network, measure_networks

LOCK = ".compare.lock"


@dataclass(frozen=True)
class Machines:
    """Where and how many at a time."""

    executor: Literal["local", "ray"] = "local"
    workers: int | None = None
    """Runs at a time; None: one (local), or as many as the cluster has room for (ray)."""
    address: str | None = None
    """Of a Ray cluster; None: one on this machine."""
    cpus: float = 1.0
    gpus: float = 0.0
    """What one run takes of a Ray cluster; fractions share a device."""
    retries: int = 2
    """How often Ray tries a run again whose machine failed."""

    @property
    def threads(self) -> int:
        """CPU threads of one run."""
        return max(1, int(self.cpus)) if self.executor == "ray" else max(1, cores() // (self.workers or 1))

    @property
    def at_once(self) -> int | None:
        """Runs at a time; None: known when the cluster is."""
        return self.workers or (1 if self.executor == "local" else None)

    def open(self) -> AbstractContextManager[Executor]:
        """Start what executes."""
        if self.executor == "local":
            return local_executor(self.workers or 1)
        return ray_executor(
            address=self.address, slots=self.workers, cpus=self.cpus, gpus=self.gpus, retries=self.retries
        )


@dataclass(frozen=True)
class Comparison:
    """A finished comparison."""

    grid: Grid
    out: Path
    rows: list[dict[str, Any]]
    statistics: Statistics
    bias_variance: list[dict[str, Any]]
    made_with: list[dict[str, Any]]
    """Each environment in which the last training of a model was done, with the number of ``runs``."""

    @property
    def failures(self) -> int:
        return sum(row["status"] == "failed" for row in self.rows)


def plan_comparison(grid: Grid, out: Path, *, download: bool, recheck: bool = False) -> tuple[list[RunPlan], Estimator]:
    """Return what is still to be done of a grid, and what estimates how long it takes."""
    waiting = [run for run in grid.runs if recheck or not _is_done(out, run)]
    plans = plan_runs(waiting, out, download=download)
    _refuse_changed_data(grid, plans, out)
    return plans, Estimator(out / ARTIFACTS)


def _refuse_changed_data(grid: Grid, plans: list[RunPlan], out: Path) -> None:
    """Raise UserError where finished runs learned from other images, masks or weights than those that wait would."""
    now = {images_of(plan.run): plan.images for plan in plans}
    for plan in plans:
        now |= plan.read_beside
    waiting = {plan.run.name for plan in plans}
    read = [_read_by(out, run) for run in grid.runs if run.name not in waiting]
    if changed := sum(any(now.get(what, digest) != digest for what, digest in one.items()) for one in read):
        raise UserError(
            f"{out}: {changed} of the finished runs learned from other images, masks or weights than there are now. "
            "Give --recheck, which makes anew what no longer fits, or another --out."
        )


def images_of(run: GridRun) -> str:
    """Return the settings that say which images a run is about, whatever it takes of them."""
    data = run.recipe.data.model_dump(include={*SourceConfig.model_fields, "split_seed"})
    federated = run.recipe.federated
    if federated is None:
        return canonical_json(data)
    return canonical_json([data, federated.model_dump(include={"sites", "transfer"})])


def _read_by(out: Path, run: GridRun) -> dict[str, str]:
    """Return what a finished run has read -> its digest then, by the settings that say where it lies, as far as known:
    runs of earlier versions tell of their images alone."""
    outcome = read_outcome(out, run.name)
    if outcome is None:
        return {}
    images = _trained_on(out, outcome)
    return {**({} if images is None else {images_of(run): images}), **outcome.row.get("read_beside", {})}


def _trained_on(out: Path, outcome: Outcome) -> str | None:
    """Return the digest of the images that a finished run was trained on; None where that is gone."""
    if known := outcome.row.get("images"):
        return str(known)
    model = Artifact(out / ARTIFACTS / outcome.artifacts["model"])  # of an earlier version
    prepared = find_by_digest(out / ARTIFACTS, "prepare", model.manifest["inputs"]["data"])
    return digest_of_source(prepared) if prepared else None


def compare(grid: Grid, out: Path, machines: Machines, *, download: bool = False, recheck: bool = False) -> Comparison:
    """Do every run of a grid that is not done, then its tables; ``recheck`` looks at all runs again.

    Finished runs are read back, failed ones tried again; what runs share is made once. Raises UserError where another
    comparison is at work in the folder: each would take down the other's runs as failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _hold(out) as alone:
        if not alone:
            raise UserError(
                f"{out}: another tskd compare is at work in this folder. Wait until it is done, or give another --out."
            )
        plans, estimator = plan_comparison(grid, out, download=download, recheck=recheck)
        say(f"compare: {len(grid.runs)} runs, {len(grid.runs) - len(plans)} done already")
        if plans:
            say(f"compare: {estimator.explain(all_missing(plans).values(), workers=machines.at_once)}")
            _do(plans, estimator, machines, out, download)
        return _collect(grid, out, machines if plans else None)


def collect(grid: Grid, out: Path) -> Comparison:
    """Write the tables of the runs that have ended so far, and the report on them.

    While a comparison is at work in the folder, networks are not timed: they would be slow, and are timed once.
    """
    if not out.is_dir():
        raise _nothing_yet(grid, out)
    with _hold(out) as alone:
        return _collect(grid, out, None, timed=alone)


@contextmanager
def _hold(out: Path) -> Iterator[bool]:
    """Hold the folder; False: another comparison does."""
    try:
        held = FileLock(out / LOCK).acquire(timeout=0)
    except Timeout:
        yield False
        return
    with held:
        yield True


def _nothing_yet(grid: Grid, out: Path) -> UserError:
    return UserError(f"{out}: no run of the grid {grid.name} has ended here. Leave --tables-only out to do them.")


def _say_if_replaced(grid: Grid, out: Path) -> None:
    if (other := _written(out).get("name", grid.name)) != grid.name:
        warn(f"{out} has the tables and page of the comparison {other}: those of {grid.name} take their place")


def _written(out: Path) -> dict[str, Any]:
    """Return the description that lies there; empty where there is none that can be read."""
    return read_object(out / COMPARISON) or {}


def _do(plans: list[RunPlan], estimator: Estimator, machines: Machines, out: Path, download: bool) -> None:
    (out / RUNS).mkdir(parents=True, exist_ok=True)

    def job_of(run: GridRun) -> Job:
        return build_job(run, out, threads=machines.threads, download=download)

    with machines.open() as executor, open_board(len(plans)) as board:
        drive(Queue(plans, estimator), executor, job_of, out, board)


def _collect(grid: Grid, out: Path, machines: Machines | None, *, timed: bool = True) -> Comparison:
    """Write what was found; ``machines`` are None where nothing was done now."""
    store = Store(out / ARTIFACTS)
    outcomes = {run.name: outcome for run in grid.runs if (outcome := read_outcome(out, run.name))}
    if not outcomes:
        raise _nothing_yet(grid, out)
    _say_if_replaced(grid, out)
    tested = cache(lambda name: digest_of_test(Artifact(store.root / name)))  # runs share few data sets
    scored = [
        Scored(
            run, outcome, whole(store.root / outcome.artifacts["evaluation"], RECHECK).path,
            tested(outcome.artifacts["data"]),
        )
        for run in grid.runs
        if (outcome := outcomes.get(run.name)) and outcome.error is None
    ]  # fmt: skip
    rows = table_rows(grid, outcomes, _networks(store, scored) if timed else {})
    statistics = compare_groups(grid, scored)
    write_table(out / TABLE, rows, table_columns(grid, rows))
    write_table(out / TESTS, as_rows(statistics.tests), columns_of(grid, PairTest))
    write_table(out / CHANGES, as_rows(statistics.changes), columns_of_changes(grid))
    write_table(out / RANKS, as_rows(statistics.ranks), columns_of(grid, MeanRank))
    lines: list[dict[str, Any]] = []
    if grid.bias_variance and scored:
        lines = decompose_groups(grid, store, scored, device=open_runtime(_here(grid)).fabric.device)
        write_table(out / BIAS_VARIANCE, lines, decomposition_columns(grid))
    else:
        (out / BIAS_VARIANCE).unlink(missing_ok=True)  # of a grid that asked for it
    comparison = Comparison(grid, out, rows, statistics, lines, _environments(store, scored))
    write_json(out / COMPARISON, _summary(comparison, machines))
    write_report(out)
    return comparison


def _here(grid: Grid) -> EngineConfig:
    """Return the engine of this machine, which may lack the device that the runs had; a CPU asked for is kept."""
    return EngineConfig(accelerator="cpu" if grid.engine.accelerator == "cpu" else "auto", threads=grid.engine.threads)


def _networks(store: Store, scored: list[Scored]) -> dict[str, Network]:
    found: dict[str, Network] = {}
    for size in {one.run.recipe.data.image_size for one in scored}:
        names = {one.outcome.artifacts["model"] for one in scored if one.run.recipe.data.image_size == size}
        models = [Artifact(store.root / name) for name in sorted(names) if (store.root / name / DESCRIPTION).is_file()]
        found |= measure_networks(store, models, image_size=size)  # not of what stands for a model at each site
    return found


def _environments(store: Store, scored: list[Scored]) -> list[dict[str, Any]]:
    """Return where models were trained last: a comparison may be collected elsewhere, or go on after an update."""
    models = [Artifact(store.root / one.outcome.artifacts["model"]) for one in scored]
    counts = Counter(canonical_json(model.environment) for model in models)
    return [{**json.loads(text), "runs": count} for text, count in counts.most_common()]


def _summary(comparison: Comparison, machines: Machines | None) -> Mapping[str, Any]:
    grid, written = comparison.grid, _written(comparison.out)
    if machines is not None:
        executor = asdict(machines) | {"threads": machines.threads}
    else:
        known = written.get("executor") if written.get("name") == grid.name else None
        executor = known or dict.fromkeys((*(one.name for one in fields(Machines)), "threads"))
    return {
        "name": grid.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "axes": {axis: list(values) for axis, values in grid.axes.items()},
        "replicates": list(grid.replicates),
        "compare": grid.compare,
        "baseline": grid.baseline,
        "grid": grid.source,
        "budget_rule": BUDGET_RULE,
        "runs": len(grid.runs),
        "ended": len(comparison.rows),
        "failed": comparison.failures,
        "executor": executor,
        "versions": environment(),
        "made_with": comparison.made_with,
    }


def _is_done(out: Path, run: GridRun) -> bool:
    outcome = read_outcome(out, run.name)
    return outcome is not None and outcome.error is None
