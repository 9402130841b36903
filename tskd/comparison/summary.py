"""What a comparison found, on the terminal."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from statistics import mean
from typing import Any

from rich.table import Table
from rich.text import Text

from tskd.comparison.estimate import Estimator
from tskd.comparison.grid import METHOD, Grid
from tskd.comparison.plan import RunPlan, all_missing
from tskd.comparison.workflow import Comparison
from tskd.console import table_screen
from tskd.experiment.methods import METHODS
from tskd.metrics.bias_variance import Decomposition
from tskd.metrics.comparison import PairTest
from tskd.metrics.intervals import interval_text
from tskd.report import REPORT
from tskd.report.text import P_VALUE, dice_of, missed

_WIDTH = 120
"""Columns of the tables where the output is not a terminal."""


def print_plan(grid: Grid, plans: Sequence[RunPlan], estimator: Estimator, *, workers: int | None) -> None:
    """Print every run with what is there and what its missing parts will take, shared parts at their first run."""
    console = table_screen(_WIDTH)
    table = Table("run", "there", "to make", "seconds", title=f"{grid.name}: {len(grid.runs)} runs")
    planned = {plan.run.name: plan for plan in plans}
    counted: set[str] = set()
    for run in grid.runs:
        plan = planned.get(run.name)
        if plan is None:
            table.add_row(Text(run.label), "all", "done", "0")
            continue
        new = {part.name: part for part in plan.missing if part.name not in counted}
        counted |= new.keys()
        shared = len(plan.missing) - len(new)
        makes = ", ".join(part.stage for part in new.values()) or "nothing new"
        more = f" (+ {shared} of runs above)" if shared else ""
        table.add_row(Text(run.label), str(len(plan.found)), makes + more, f"{estimator.total(new.values()):.0f}")
    console.print(table)
    console.print(estimator.explain(all_missing(plans).values(), workers=workers))
    if not all(plan.complete for plan in plans):
        console.print("Some runs need more parts, which can be named only when these are there.")


def plan_as_json(grid: Grid, plans: Sequence[RunPlan], estimator: Estimator, *, workers: int | None) -> str:
    """Return the plan for scripts: every run that is not done with its missing parts, and the seconds of all."""
    parts = list(all_missing(plans).values())
    waiting = [
        {
            "run": plan.run.name,
            "point": dict(plan.run.point),
            "there": len(plan.found),
            "missing": [part.name for part in plan.missing],
            "complete": plan.complete,
        }
        for plan in plans
    ]
    plan = {
        "name": grid.name,
        "runs": len(grid.runs),
        "waiting": waiting,
        "missing": len(parts),
        "seconds": round(estimator.total(parts) / (workers or 1), 1),
        "estimate": estimator.explain(parts, workers=workers),
    }
    return json.dumps(plan, indent=2)


def print_comparison(comparison: Comparison) -> None:
    """Print mean scores over seeds and label draws, the tests on Dice, bias and variance, and what failed.

    How differences change along an axis is in changes.csv and on the page.
    """
    console = table_screen(_WIDTH)
    console.print(_scores(comparison))
    dice = [(columns, test) for columns, test in comparison.statistics.tests if test.measure == "dice"]
    if dice:
        console.print(_tests(dice))
    if comparison.bias_variance:
        console.print(_decompositions(comparison.bias_variance))
    for row in comparison.rows:
        if row["status"] == "failed":
            console.print(f"failed: {row['run']}: {row['error']}", markup=False)
    place = comparison.out
    console.print(f"everything is in {place}, to be read in {place / REPORT}", markup=False)


def _scores(comparison: Comparison) -> Table:
    grid = comparison.grid
    axes = [axis for axis in grid.axes if axis not in (*grid.replicates, METHOD)]
    table = Table(title=Text(f"{grid.name}: means over seeds and label draws"))
    for column in (*axes, METHOD, "runs", _dice(comparison), "lowest", "highest", "HD95", "missed", "MB", "ms"):
        table.add_column(column, justify="left" if column in (*axes, METHOD) else "right")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in comparison.rows:
        if row["status"] == "done":
            groups[*(row[axis] for axis in axes), _title(row)].append(row)
    for place, rows in groups.items():
        table.add_row(*_values(place), *_cells(rows))
    return table


def _dice(comparison: Comparison) -> str:
    """Return what the column of Dice is called; where data sets of volumes and of images are compared, plainly."""
    levels = {row.get("level", "image") for row in comparison.rows if row["status"] == "done"}
    return dice_of(levels.pop()) if len(levels) == 1 else "Dice"


def _title(row: Mapping[str, Any]) -> str:
    """Return what a row's method is called: by the grid where that gives its methods names of their own."""
    title: str = row["title"] if row[METHOD] in METHODS else row[METHOD]
    return title


def _cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    dice = [row["dice"] for row in rows]
    return [
        str(len(rows)),
        *(f"{value:.3f}" for value in (mean(dice), min(dice), max(dice))),
        _distance(rows),
        missed({name: mean(row[name] for row in rows) for name in ("missed", "scored")}, digits=1),
        *(f"{rows[0][name]:.1f}" if name in rows[0] else "-" for name in ("model_mb", "latency_ms")),  # not timed yet
    ]


def _distance(rows: Sequence[dict[str, Any]]) -> str:
    """Return the mean HD95 in the unit that all rows have; none where earlier versions scored some in another."""
    units = [unit for unit in ("mm", "px") if all(row.get(f"hd95_{unit}") is not None for row in rows)]
    return f"{mean(row[f'hd95_{units[0]}'] for row in rows):.1f} {units[0]}" if units else "-"


def _tests(tests: Sequence[tuple[Any, PairTest]]) -> Table:
    table = Table(title="Dice, paired over cases; the interval decides, p (Holm) is for these trainings alone")
    for column in ("group", "compared", "difference", "95 % interval", P_VALUE, "win/tie/loss"):
        table.add_column(column, justify="left" if column in ("group", "compared") else "right")
    for columns, test in tests:
        table.add_row(
            Text(", ".join(cell.plain for cell in _values(columns.values()))),
            Text(f"{test.method} - {test.baseline}"),
            f"{test.difference:+.3f}",
            interval_text((test.ci95_low, test.ci95_high), "{:+.3f}".format),
            f"{test.p_holm:.3g}",
            f"{test.wins}/{test.ties}/{test.losses}",
        )
    return table


def _decompositions(lines: Sequence[dict[str, Any]]) -> Table:
    parts = [part.name for part in fields(Decomposition) if part.name != "remainder"]
    place = [column for column in lines[0] if column not in {part.name for part in fields(Decomposition)}]
    table = Table(title="squared error of probabilities = bias2 + variance, over seeds and label draws")
    for column in (*place, *parts):
        table.add_column(column, justify="right" if column in parts else "left")
    for line in lines:
        figures = [str(line[part]) if part == "runs" else f"{line[part]:.4f}" for part in parts]
        table.add_row(*_values(line[column] for column in place), *figures)
    return table


def _values(values: Iterable[Any]) -> list[Text]:
    """Return cells that show their text as it is: square brackets are not markup."""
    return [Text("-" if value is None else str(value)) for value in values]
