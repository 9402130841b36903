"""Paired statistics of a finished grid: which runs belong together, and the tests and ranks over their cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tskd.comparison.grid import DATASET, METHOD, Grid, GridRun
from tskd.comparison.job import Outcome
from tskd.console import warn
from tskd.metrics.comparison import DICE, HD95, MeanRank, Measure, PairTest, pair_test, rank_table, with_holm
from tskd.metrics.segmentation import ScoreRow, case_means
from tskd.stages.evaluation_files import read_cases

Replicate = tuple[Any, ...]
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


Columns = Mapping[str, Any]
"""Where in the grid a line of a table belongs."""


@dataclass(frozen=True)
class Statistics:
    """The lines of tests.csv, changes.csv and ranks.csv, each with the columns of its group."""

    tests: tuple[tuple[Columns, PairTest], ...]
    changes: tuple[tuple[Columns, PairTest], ...]
    ranks: tuple[tuple[Columns, MeanRank], ...]


def compare_groups(grid: Grid, runs: Sequence[Scored]) -> Statistics:
    """Test the values of the compared axis against each other within each group; Holm's correction over each table.

    A group holds the runs that differ in that axis and in seeds and label draws alone. Of these replicates a test takes
    those that both of its values have, and ranks take those that all have: where a run failed, its seed is left out.
    """
    groups = list(_groups(grid, runs))
    tests = [line for group in groups for line in _tests(group)]
    ranks = [line for group in groups for line in _ranks(group)]
    return Statistics(_correct(tests), _correct(list(_changes(grid, groups))), tuple(ranks))


def group_axes(grid: Grid) -> tuple[str, ...]:
    """Return what the runs of a group share: the data set, and all axes but the compared one and the replicates."""
    return tuple(axis for axis in dict.fromkeys((DATASET, *grid.groups)) if axis != grid.compare)


@dataclass
class _Value:
    """What is known of one value of the compared axis within a group."""

    rows: dict[Replicate, list[ScoreRow]] = field(default_factory=dict)
    tests: set[tuple[str, ...]] = field(default_factory=set)
    """Test sets that were scored: digest of the images, level, unit, then the cases. Only one can be paired."""

    def scores(self, replicates: Sequence[Replicate], measure: str) -> np.ndarray:
        """Return its scores (replicates, cases)."""
        return np.array([list(case_means(self.rows[replicate], measure).values()) for replicate in replicates])


@dataclass
class _Group:
    """Runs that are compared with each other."""

    place: Mapping[str, Any]
    """The axes they share."""
    values: Mapping[str, _Value]
    pairs: list[tuple[str, str]] = field(default_factory=list)
    """What is tested against what."""

    @property
    def columns(self) -> dict[str, Any]:
        """Its columns of a table; the method is none of them: tests and ranks have one of that name."""
        return {axis: value for axis, value in self.place.items() if axis != METHOD}

    @property
    def title(self) -> str:
        """Where it is, in words."""
        return ", ".join(f"{axis} {value}" for axis, value in self.place.items())

    def only(self, labels: Iterable[str]) -> dict[str, _Value]:
        """Return some of its values."""
        return {label: self.values[label] for label in labels}

    @property
    def measures(self) -> Mapping[str, Measure]:
        """Each measure by its name in cases.csv; distances have one unit, for all that scored the same test set."""
        unit = next(row.unit for value in self.values.values() for rows in value.rows.values() for row in rows)
        return {DICE.name: DICE, HD95.name: replace(HD95, name=f"{HD95.name}_{unit}")}


def _groups(grid: Grid, runs: Sequence[Scored]) -> Iterator[_Group]:
    """Yield the groups in which more than one value of the compared axis has a finished run."""
    if grid.compare is None:
        return
    groups: dict[tuple[Any, ...], list[Scored]] = defaultdict(list)
    for scored in runs:
        groups[tuple(scored.place[axis] for axis in group_axes(grid))].append(scored)
    for key, unordered in groups.items():
        members = sorted(unordered, key=lambda scored: _position(grid, scored))  # whichever run ended first or failed
        group = _Group(dict(zip(group_axes(grid), key)), _values(grid, members))
        baseline = None if grid.baseline is None else _label(grid, members[0], grid.baseline)
        if len(group.values) < 2 or (baseline is not None and baseline not in group.values):
            warn(f"no tests for {group.title}: too few values of {grid.compare} have a finished run")
        else:
            group.pairs = [pair for pair in _pairs(group, baseline) if _comparable(group.only(pair), group.title)]
            yield group


def _position(grid: Grid, scored: Scored) -> list[int]:
    """Return where a run's method and its value of the compared axis stand in the grid."""
    axes = ((axis, values) for axis, values in grid.axes.items() if axis in (METHOD, grid.compare))
    return [list(values).index(scored.place[axis]) for axis, values in sorted(axes, key=lambda one: one[0] != METHOD)]


def _values(grid: Grid, members: Sequence[Scored]) -> dict[str, _Value]:
    values: dict[str, _Value] = defaultdict(_Value)
    for scored in members:
        value = values[_label(grid, scored, scored.place[grid.compare or METHOD])]
        rows = read_cases(scored.evaluation)
        value.rows[tuple(scored.place[axis] for axis in grid.replicates)] = rows
        value.tests.add((scored.tested_images, rows[0].level, rows[0].unit, *case_means(rows, "dice")))
    return dict(values)


def _pairs(group: _Group, baseline: str | None) -> Iterator[tuple[str, str]]:
    """Yield all against the baseline, or every pair."""
    if baseline is None:
        yield from combinations(group.values, 2)
    else:
        yield from ((label, baseline) for label in group.values if label != baseline)


def _comparable(values: Mapping[str, _Value], place: str) -> bool:
    """Tell whether values share a test set and a replicate; where they do not, say so once."""
    one_test = len(set.union(*(value.tests for value in values.values()))) == 1
    if one_test and _shared(values.values()):
        return True
    what = "no test between" if len(values) == 2 else "no comparison of"
    reason = "no seed is finished for all of them" if one_test else "their test images differ"
    warn(f"{what} {', '.join(values)} in {place}: {reason}")
    return False


def _tests(group: _Group) -> Iterator[tuple[Columns, PairTest]]:
    for name, measure in group.measures.items():
        for pair in group.pairs:
            ours, theirs = _scores(group.only(pair), name).values()
            yield group.columns, pair_test(pair, ours - theirs, measure, seed=SEED)


def _ranks(group: _Group) -> Iterator[tuple[Columns, MeanRank]]:
    if not (group.pairs if len(group.values) == 2 else _comparable(group.values, group.title)):
        return
    for name, measure in group.measures.items():
        yield from ((group.columns, rank) for rank in rank_table(_scores(group.values, name), measure))


def _changes(grid: Grid, groups: Sequence[_Group]) -> Iterator[tuple[Columns, PairTest]]:
    """Yield how differences change from the lowest to the highest value of each axis of numbers.

    Whether a gap is largest at the fewest labels is a question about the difference of two differences, which needs a
    test of its own (A. Gelman and H. Stern, The American Statistician 60(4), 2006). Seeds are numbers without an order.
    """
    for axis in (axis for axis in group_axes(grid) if axis not in (DATASET, METHOD) and not axis.endswith("seed")):
        lines: dict[tuple[Any, ...], dict[float, _Group]] = defaultdict(dict)
        for group in groups:
            value = group.place[axis]
            if isinstance(value, int | float) and not isinstance(value, bool):
                lines[tuple(one for name, one in group.place.items() if name != axis)][value] = group
        for line in lines.values():
            if len(line) > 1:
                yield from _changes_between(axis, line[min(line)], line[max(line)])


def _changes_between(axis: str, first: _Group, last: _Group) -> Iterator[tuple[Columns, PairTest]]:
    columns = {name: value for name, value in first.columns.items() if name != axis}
    columns |= {"axis": axis, "first": first.place[axis], "last": last.place[axis]}
    for pair in (pair for pair in first.pairs if pair in last.pairs):
        values = {f"{label} at {axis} {one.place[axis]}": one.values[label] for one in (last, first) for label in pair}
        if not _comparable(values, first.title):
            continue
        for name, measure in first.measures.items():
            ours, theirs, ours_first, theirs_first = _scores(values, name).values()
            change = (ours - theirs) - (ours_first - theirs_first)
            yield columns, pair_test(pair, change, replace(measure, largest=2 * measure.largest), seed=SEED)


def _shared(values: Collection[_Value]) -> list[Replicate]:
    return sorted(set.intersection(*(set(value.rows) for value in values)), key=str)


def _scores(values: Mapping[str, _Value], measure: str) -> dict[str, np.ndarray]:
    """Return the scores (replicates, cases) of values on the replicates that all of them have."""
    return {label: value.scores(_shared(values.values()), measure) for label, value in values.items()}


def _label(grid: Grid, scored: Scored, value: Any) -> str:
    """Return how a value of the compared axis is called: with the method where both vary."""
    both = grid.compare != METHOD and METHOD in grid.axes
    return f"{scored.place[METHOD]}: {value}" if both else str(value)


def _correct(lines: Sequence[tuple[Columns, PairTest]]) -> tuple[tuple[Columns, PairTest], ...]:
    corrected = with_holm([test for _, test in lines])
    return tuple((columns, test) for (columns, _), test in zip(lines, corrected, strict=True))


def as_rows(lines: Sequence[tuple[Columns, PairTest | MeanRank]]) -> list[dict[str, Any]]:
    """Return lines for a CSV writer."""
    return [{**columns, **asdict(line)} for columns, line in lines]


def columns_of(grid: Grid, kind: type[PairTest | MeanRank]) -> list[str]:
    """Return the columns of tests.csv or ranks.csv."""
    return [*_columns(grid), *(one.name for one in fields(kind))]


def columns_of_changes(grid: Grid) -> list[str]:
    """Return the columns of changes.csv."""
    return [*_columns(grid), "axis", "first", "last", *(one.name for one in fields(PairTest))]


def _columns(grid: Grid) -> list[str]:
    return [axis for axis in group_axes(grid) if axis != METHOD]
