"""The comparison from the grid to its tables."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from tskd.artifacts import ARTIFACTS, Artifact, Store, canonical_json, environment, write_json
from tskd.budget import BUDGET_RULE
from tskd.compare.board import open_board
from tskd.compare.decompose import decompose_groups, decomposition_columns
from tskd.compare.drive import Queue, drive
from tskd.compare.estimate import Estimator
from tskd.compare.executors import Executor, local_executor, ray_executor
from tskd.compare.grid import Grid, GridRun
from tskd.compare.job import RUNS, Job, build_job, read_outcome
from tskd.compare.plan import RunPlan, all_missing, plan_runs
from tskd.compare.statistics import Scored, Statistics, as_rows, columns_of, columns_of_changes, compare_groups
from tskd.compare.tables import table_columns, table_rows, write_table
from tskd.comparison_files import BIAS_VARIANCE, CHANGES, COMPARISON, RANKS, TABLE, TESTS
from tskd.console import say, warn
from tskd.data.prepared import digest_of_test
from tskd.engine import open_runtime
from tskd.errors import UserError
from tskd.metrics.comparison import MeanRank, PairTest
from tskd.report import write_report
from tskd.stages.networks import Network, measure_networks

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
        return max(1, int(self.cpus)) if self.executor == "ray" else max(1, _cores() // (self.workers or 1))

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
    """Each environment that models were trained in, with the number of ``runs``."""

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
    """Raise UserError where finished runs were trained on other images or masks than those that wait would be."""
    now = {canonical_json(plan.run.recipe.data.model_dump()): plan.data for plan in plans}
    waiting = {plan.run.name for plan in plans}
    changed = 0
    for run in grid.runs:
        data = now.get(canonical_json(run.recipe.data.model_dump()))
        if data and run.name not in waiting and (outcome := read_outcome(out, run.name)):
            model = Artifact(out / ARTIFACTS / outcome.artifacts["model"])
            changed += model.manifest["inputs"].get("data", data) != data
    if changed:
        raise UserError(
            f"{out}: {changed} of the finished runs were trained on other images or masks than there are now. "
            "Give --recheck, which makes anew what no longer fits, or another --out."
        )


def compare(grid: Grid, out: Path, machines: Machines, *, download: bool = False, recheck: bool = False) -> Comparison:
    """Do every run of a grid that is not done, then its tables; ``recheck`` looks at all runs again.

    Finished runs are read back, failed ones tried again; what runs share is made once. Raises UserError where another
    comparison is at work in the folder: each would take down the other's runs as failed.
    """
    with _alone_in(out):
        _say_if_replaced(grid, out)
        plans, estimator = plan_comparison(grid, out, download=download, recheck=recheck)
        say(f"compare: {len(grid.runs)} runs, {len(grid.runs) - len(plans)} done already")
        if plans:
            say(f"compare: {estimator.explain(all_missing(plans).values(), workers=machines.workers or 1)}")
            _do(plans, estimator, machines, out, download)
        return _collect(grid, out, machines if plans else None)


def collect(grid: Grid, out: Path) -> Comparison:
    """Write the tables of the runs that have ended so far, and the report on them; UserError as in :func:`compare`."""
    with _alone_in(out):
        _say_if_replaced(grid, out)
        return _collect(grid, out, None)


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(out / LOCK, timeout=0).acquire()
    except Timeout as error:
        raise UserError(
            f"{out}: another tskd compare is at work in this folder. Wait until it is done, or give another --out."
        ) from error
    with held:
        yield


def _say_if_replaced(grid: Grid, out: Path) -> None:
    if (other := _written(out).get("name", grid.name)) != grid.name:
        warn(f"{out} has the tables and page of the comparison {other}: those of {grid.name} take their place")


def _written(out: Path) -> dict[str, Any]:
    """Return the description that lies there; empty where there is none that can be read."""
    try:
        found = json.loads((out / COMPARISON).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _do(plans: list[RunPlan], estimator: Estimator, machines: Machines, out: Path, download: bool) -> None:
    (out / RUNS).mkdir(parents=True, exist_ok=True)

    def job_of(run: GridRun) -> Job:
        return build_job(run, out, threads=machines.threads, download=download)

    with machines.open() as executor, open_board(len(plans)) as board:
        drive(Queue(plans, estimator), executor, job_of, out, board)


def _collect(grid: Grid, out: Path, machines: Machines | None) -> Comparison:
    """Write what was found; ``machines`` are None where nothing was done now."""
    store = Store(out / ARTIFACTS)
    outcomes = {run.name: outcome for run in grid.runs if (outcome := read_outcome(out, run.name))}
    if not outcomes:
        raise UserError(f"{out}: no run of the grid {grid.name} has ended here. Leave --tables-only out to do them.")
    tested = cache(lambda name: digest_of_test(Artifact(store.root / name)))  # runs share few data sets
    scored = [
        Scored(run, outcome, store.root / outcome.artifacts["evaluation"], tested(outcome.artifacts["data"]))
        for run in grid.runs
        if (outcome := outcomes.get(run.name)) and outcome.error is None
    ]
    rows = table_rows(grid, outcomes, _networks(store, scored))
    statistics = compare_groups(grid, scored)
    write_table(out / TABLE, rows, table_columns(grid, rows))
    write_table(out / TESTS, as_rows(statistics.tests), columns_of(grid, PairTest))
    write_table(out / CHANGES, as_rows(statistics.changes), columns_of_changes(grid))
    write_table(out / RANKS, as_rows(statistics.ranks), columns_of(grid, MeanRank))
    (out / BIAS_VARIANCE).unlink(missing_ok=True)  # of a grid that asked for it
    lines: list[dict[str, Any]] = []
    if grid.bias_variance and scored:
        lines = decompose_groups(grid, store, scored, device=open_runtime(grid.engine).fabric.device)
        write_table(out / BIAS_VARIANCE, lines, decomposition_columns(grid))
    comparison = Comparison(grid, out, rows, statistics, lines, _environments(store, scored))
    write_json(out / COMPARISON, _summary(comparison, machines))
    write_report(out)
    return comparison


def _networks(store: Store, scored: list[Scored]) -> dict[str, Network]:
    found: dict[str, Network] = {}
    for size in {one.run.recipe.data.image_size for one in scored}:
        names = {one.outcome.artifacts["model"] for one in scored if one.run.recipe.data.image_size == size}
        found |= measure_networks(store, [Artifact(store.root / name) for name in sorted(names)], image_size=size)
    return found


def _environments(store: Store, scored: list[Scored]) -> list[dict[str, Any]]:
    """Return where models were trained: a comparison may be collected elsewhere, or go on after an update."""
    models = [Artifact(store.root / one.outcome.artifacts["model"]) for one in scored]
    counts = Counter(canonical_json(model.environment) for model in models)
    return [{**json.loads(text), "runs": count} for text, count in counts.most_common()]


def _summary(comparison: Comparison, machines: Machines | None) -> Mapping[str, Any]:
    grid, written = comparison.grid, _written(comparison.out)
    if machines is not None:
        executor = asdict(machines) | {"threads": machines.threads}
    else:
        executor = written.get("executor", {}) if written.get("name") == grid.name else {}
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
