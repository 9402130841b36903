"""Paired statistics of a finished grid: which runs belong together, and the tests and ranks over their cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tskd.compare.grid import DATASET, METHOD, Grid, GridRun
from tskd.compare.job import Outcome
from tskd.console import warn
from tskd.metrics.comparison import MeanRank, PairTest, compare_methods, holm, rank_table
from tskd.metrics.segmentation import ScoreRow, case_means
from tskd.stages.evaluated import read_cases

Replicate = tuple[Any, ...]
ByReplicate = dict[str, dict[Replicate, np.ndarray]]
"""Value of the compared axis -> replicate -> (cases,) scores."""
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
    tested_images: str = ""
    """Digest of the test images: two data sets may call their cases alike."""

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

    A group holds the runs that differ in that axis and in seeds and label draws alone. Of these replicates a test takes
    those that both of its values have, and ranks take those that all have: where a run failed, its seed is left out.
    """
    tests: list[tuple[Mapping[str, Any], PairTest]] = []
    ranks: list[tuple[Mapping[str, Any], MeanRank]] = []
    for columns, members in _groups(grid, runs):
        for measure, scores in _measures(grid, members):
            kind = measure.partition("_")[0]
            higher = kind == "dice"
            for method, baseline in _pairs(grid, members, scores):
                if (pair := _shared(scores, (method, baseline))) is None:
                    warn(f"no test of {method} against {baseline}: no seed is finished for both")
                    continue
                (test,) = compare_methods(
                    pair,
                    measure=measure,
                    tie_margin=TIE_MARGINS[kind],
                    seed=SEED,
                    baseline=baseline,
                    higher_is_better=higher,
                )
                tests.append((columns, test))
            if (all_of_them := _shared(scores, tuple(scores))) is not None:
                ranks += [(columns, rank) for rank in rank_table(all_of_them, measure=measure, higher_is_better=higher)]
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


def _measures(grid: Grid, members: Sequence[Scored]) -> Iterator[tuple[str, ByReplicate]]:
    """Yield each measure of one group with its scores."""
    rows: dict[str, dict[Replicate, list[ScoreRow]]] = defaultdict(dict)
    for scored in members:
        replicate = tuple(scored.place[axis] for axis in grid.replicates)
        label = _label(grid, scored, scored.place[grid.compare or METHOD])
        rows[label][replicate] = read_cases(scored.evaluation)
    cases = {tuple(case_means(found, "dice")) for by_replicate in rows.values() for found in by_replicate.values()}
    if len(cases) > 1 or len({scored.tested_images for scored in members}) > 1:
        warn(f"no tests between {', '.join(rows)}: their test cases differ")
        return
    unit = next(iter(next(iter(rows.values())).values()))[0].unit
    for measure, name in (("dice", "dice"), ("hd95", f"hd95_{unit}")):
        yield (
            name,
            {
                label: {
                    replicate: np.array(list(case_means(scores, measure).values()))
                    for replicate, scores in by_replicate.items()
                }
                for label, by_replicate in rows.items()
            },
        )


def _pairs(grid: Grid, members: Sequence[Scored], labels: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield what is tested against what: all against the baseline, or every pair."""
    if grid.baseline is None:
        yield from combinations(labels, 2)
    else:
        baseline = _label(grid, members[0], grid.baseline)
        yield from ((label, baseline) for label in labels if label != baseline)


def _shared(scores: ByReplicate, labels: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Return the scores (replicates, cases) of some labels on the replicates that all of them have; None: no such."""
    shared = sorted(set.intersection(*(set(scores[label]) for label in labels)), key=str)
    if not shared:
        return None
    return {label: np.array([scores[label][replicate] for replicate in shared]) for label in labels}


def _label(grid: Grid, scored: Scored, value: Any) -> str:
    """Return how a value of the compared axis is called: with the method where both vary."""
    both = grid.compare != METHOD and METHOD in grid.axes
    return f"{scored.place[METHOD]}: {value}" if both else str(value)


def _correct(tests: Sequence[tuple[Mapping[str, Any], PairTest]]) -> tuple[tuple[Mapping[str, Any], PairTest], ...]:
    corrected = holm(np.array([test.p_wilcoxon for _, test in tests]))
    return tuple((columns, replace(test, p_holm=float(p))) for (columns, test), p in zip(tests, corrected, strict=True))


def as_rows(lines: Sequence[tuple[Mapping[str, Any], PairTest | MeanRank]]) -> list[dict[str, Any]]:
    """Return lines for a CSV writer."""
    return [{**columns, **asdict(line)} for columns, line in lines]


def columns_of(grid: Grid, kind: type[PairTest | MeanRank]) -> list[str]:
    """Return the columns of tests.csv or ranks.csv."""
    return [*(axis for axis in group_axes(grid) if axis != METHOD), *(one.name for one in fields(kind))]
