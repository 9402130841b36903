"""Paired statistics of a finished grid: which runs belong together, and the tests and ranks over their cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
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
        values = _values(grid, members)
        pairs = [pair for pair in _pairs(grid, members, values) if _comparable(columns, values, pair)]
        alike = bool(pairs) if len(values) == 2 else _comparable(columns, values, tuple(values))
        for measure, name in (("dice", "dice"), ("hd95", f"hd95_{_unit(values)}")):
            for method, baseline in pairs:
                (test,) = compare_methods(
                    _scores(values, (method, baseline), measure),
                    measure=name,
                    tie_margin=TIE_MARGINS[measure],
                    seed=SEED,
                    baseline=baseline,
                    higher_is_better=measure == "dice",
                )
                tests.append((columns, test))
            if alike:
                scores = _scores(values, tuple(values), measure)
                ranks += [
                    (columns, rank) for rank in rank_table(scores, measure=name, higher_is_better=measure == "dice")
                ]
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


@dataclass
class _Value:
    """What is known of one value of the compared axis within a group."""

    rows: dict[Replicate, list[ScoreRow]] = field(default_factory=dict)
    tests: set[tuple[str, ...]] = field(default_factory=set)
    """Test sets that were scored: digest of the images, then the cases. More than one cannot be paired."""


def _values(grid: Grid, members: Sequence[Scored]) -> dict[str, _Value]:
    values: dict[str, _Value] = defaultdict(_Value)
    for scored in members:
        value = values[_label(grid, scored, scored.place[grid.compare or METHOD])]
        rows = read_cases(scored.evaluation)
        value.rows[tuple(scored.place[axis] for axis in grid.replicates)] = rows
        value.tests.add((scored.tested_images, *case_means(rows, "dice")))
    return dict(values)


def _pairs(grid: Grid, members: Sequence[Scored], labels: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield what is tested against what: all against the baseline, or every pair."""
    if grid.baseline is None:
        yield from combinations(labels, 2)
    else:
        baseline = _label(grid, members[0], grid.baseline)
        yield from ((label, baseline) for label in labels if label != baseline)


def _comparable(columns: Mapping[str, Any], values: Mapping[str, _Value], labels: Sequence[str]) -> bool:
    """Tell whether values share a test set and a replicate; where they do not, say so once."""
    one_test = len(set.union(*(values[label].tests for label in labels))) == 1
    if one_test and _shared(values, labels):
        return True
    what = "no test between" if len(labels) == 2 else "no ranks of"
    reason = "no seed is finished for all of them" if one_test else "their test images differ"
    warn(f"{what} {', '.join(labels)} in {columns}: {reason}")
    return False


def _shared(values: Mapping[str, _Value], labels: Sequence[str]) -> list[Replicate]:
    return sorted(set.intersection(*(set(values[label].rows) for label in labels)), key=str)


def _scores(values: Mapping[str, _Value], labels: Sequence[str], measure: str) -> dict[str, np.ndarray]:
    """Return the scores (replicates, cases) of some labels on the replicates that all of them have."""
    shared = _shared(values, labels)
    return {
        label: np.array([list(case_means(values[label].rows[replicate], measure).values()) for replicate in shared])
        for label in labels
    }


def _unit(values: Mapping[str, _Value]) -> str:
    """Return the unit of the distances, one for all that scored the same images."""
    return next(row.unit for value in values.values() for rows in value.rows.values() for row in rows)


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
