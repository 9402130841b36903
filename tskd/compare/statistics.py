"""Paired statistics of a finished grid: which runs belong together, and the tests and ranks over their cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tskd.compare.grid import DATASET, METHOD, Grid, GridRun
from tskd.compare.job import Outcome
from tskd.console import warn
from tskd.metrics.comparison import MeanRank, PairTest, compare_methods, holm, rank_table
from tskd.metrics.segmentation import ScoreRow, case_means
from tskd.stages.evaluated import read_cases

TIE_MARGINS = {"dice": 0.01, "hd95": 1.0}
"""A case whose score differs by at most this is a tie; distances in pixels or millimetres."""
SEED = 0
"""Of the bootstrap: the same scores give the same intervals."""


@dataclass(frozen=True)
class Scored:
    """A finished run with what is needed of it."""

    run: GridRun
    outcome: Outcome
    evaluation: Path

    @property
    def place(self) -> dict[str, Any]:
        """Its point in the grid, with the data set it was trained on."""
        return {DATASET: self.outcome.row["dataset"], **self.run.point}


@dataclass(frozen=True)
class Statistics:
    """The lines of tests.csv and ranks.csv, each with the columns of its group."""

    tests: tuple[tuple[Mapping[str, Any], PairTest], ...]
    ranks: tuple[tuple[Mapping[str, Any], MeanRank], ...]


def compare_groups(grid: Grid, runs: Sequence[Scored]) -> Statistics:
    """Test the values of the compared axis against each other within each group; Holm's correction over all tests.

    A group holds the runs that differ in that axis and in seeds and label draws alone. Of these replicates only those
    count that every value has: where a run failed, its seed is left out for all.
    """
    tests: list[tuple[Mapping[str, Any], PairTest]] = []
    ranks: list[tuple[Mapping[str, Any], MeanRank]] = []
    for columns, members in _groups(grid, runs):
        for measure, scores in _measures(grid, members):
            kind = measure.partition("_")[0]
            higher = kind == "dice"
            found = compare_methods(
                scores,
                measure=measure,
                tie_margin=TIE_MARGINS[kind],
                seed=SEED,
                baseline=_label(grid, members[0], grid.baseline) if grid.baseline is not None else None,
                higher_is_better=higher,
            )
            tests += [(columns, test) for test in found]
            ranks += [(columns, rank) for rank in rank_table(scores, measure=measure, higher_is_better=higher)]
    return Statistics(_correct(tests), tuple(ranks))


def group_axes(grid: Grid) -> tuple[str, ...]:
    """Return what the runs of a group share: the data set, and all axes but the compared one and the replicates."""
    return tuple(axis for axis in dict.fromkeys((DATASET, *grid.groups)) if axis != grid.compare)


def _groups(grid: Grid, runs: Sequence[Scored]) -> Iterator[tuple[dict[str, Any], list[Scored]]]:
    """Yield the columns and runs of groups in which more than one value of the compared axis has a finished run.

    The method is no column of its own: tests and ranks have one of that name.
    """
    if grid.compare is None:
        return
    groups: dict[tuple[Any, ...], list[Scored]] = defaultdict(list)
    for scored in runs:
        groups[tuple(scored.place[axis] for axis in group_axes(grid))].append(scored)
    for members in groups.values():
        columns = {axis: members[0].place[axis] for axis in group_axes(grid) if axis != METHOD}
        values = {scored.place[grid.compare] for scored in members}
        if len(values) < 2 or (grid.baseline is not None and grid.baseline not in values):
            warn(f"no tests for {columns}: too few values of {grid.compare} have a finished run")
        else:
            yield columns, members


def _measures(grid: Grid, members: Sequence[Scored]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield (measure, label -> (replicates, cases)) of one group."""
    rows: dict[str, dict[tuple[Any, ...], list[ScoreRow]]] = defaultdict(dict)
    for scored in members:
        replicate = tuple(scored.place[axis] for axis in grid.replicates)
        label = _label(grid, scored, scored.place[grid.compare or METHOD])
        rows[label][replicate] = read_cases(scored.evaluation)
    shared = sorted(set.intersection(*(set(found) for found in rows.values())), key=str)
    cases = {tuple(case_means(found, "dice")) for by_replicate in rows.values() for found in by_replicate.values()}
    if not shared or len(cases) > 1:
        reason = "their test cases differ" if shared else "no seed is finished for all"
        warn(f"no tests between {', '.join(rows)}: {reason}")
        return
    unit = next(iter(next(iter(rows.values())).values()))[0].unit
    for measure, name in (("dice", "dice"), ("hd95", f"hd95_{unit}")):
        yield (
            name,
            {
                label: np.array([list(case_means(found[replicate], measure).values()) for replicate in shared])
                for label, found in rows.items()
            },
        )


def _label(grid: Grid, scored: Scored, value: Any) -> str:
    """Return how a value of the compared axis is called: with the method where both vary."""
    both = grid.compare != METHOD and METHOD in grid.axes
    return f"{scored.run.recipe.method}: {value}" if both else str(value)


def _correct(tests: Sequence[tuple[Mapping[str, Any], PairTest]]) -> tuple[tuple[Mapping[str, Any], PairTest], ...]:
    corrected = holm(np.array([test.p_wilcoxon for _, test in tests]))
    return tuple((columns, replace(test, p_holm=float(p))) for (columns, test), p in zip(tests, corrected, strict=True))


def as_rows(lines: Sequence[tuple[Mapping[str, Any], PairTest | MeanRank]]) -> list[dict[str, Any]]:
    """Return lines for a CSV writer."""
    return [{**columns, **asdict(line)} for columns, line in lines]


def columns_of(grid: Grid, kind: type[PairTest | MeanRank]) -> list[str]:
    """Return the columns of tests.csv or ranks.csv."""
    return [*(axis for axis in group_axes(grid) if axis != METHOD), *(one.name for one in fields(kind))]
