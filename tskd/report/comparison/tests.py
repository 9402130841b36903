"""Tests of a comparison on its page: pairs on the same cases, how differences change along an axis, ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from tskd.metrics.comparison import MeanRank, PairTest
from tskd.report.blocks import Section, Table, section
from tskd.report.comparison.files import CHANGES, RANKS, TESTS
from tskd.report.comparison.folder import ComparisonFolder, Line, axis_title, value_title
from tskd.report.text import INTERVAL, P_NOTE, P_VALUE, interval, number, p_value, signed

_ALONG = ("axis", "first", "last")
"""Columns of changes.csv that say along what; all others beside the test's own name a group."""
_ONCE = {"baseline": "against {}", "cases": "{} cases", "replicates": "{} replicates"}
"""Columns that are told in the title where all lines say the same."""
_FIGURES = frozenset({
    "difference", "change", INTERVAL, P_VALUE, "better / tied / worse", "cases", "replicates", "mean rank",
    "mean score",
})  # fmt: skip


def tests_section(comparison: ComparisonFolder) -> Section | None:
    """Pairs of methods on the same cases, and their ranks."""
    lead = "Differences of two methods on the same cases and replicates: method minus baseline."
    blocks = [_test_table(comparison), _change_table(comparison), _rank_table(comparison)]
    return section("tests", "Pairwise tests and ranks", lead, blocks)


def _test_table(comparison: ComparisonFolder) -> Table | None:
    lines = comparison.table(TESTS)
    groups = _groups(lines, PairTest)
    rows = [
        {
            **_pair_cells(comparison, line),
            **{axis_title(group): line[group] for group in groups},
            **_tested_cells(line, "difference"),
            "better / tied / worse": " / ".join(number(line[name], 0) for name in ("wins", "ties", "losses")),
            **_size_cells(line),
        }
        for line in lines
    ]
    margins = ", ".join({f"{line['tie_margin']:g} ({_measure_title(line['measure'])})": 0 for line in lines})
    note = (
        f"Interval: paired bootstrap over replicates and cases; not corrected for being several. {P_NOTE} "
        f"A tie is a case that differs by at most {margins}."
    )
    return _table("Pairs", rows, note)


def _change_table(comparison: ComparisonFolder) -> Table | None:
    """Does a difference grow or shrink along an axis?"""
    lines = comparison.table(CHANGES)
    groups = [group for group in _groups(lines, PairTest) if group not in _ALONG]
    rows = [
        {
            **_pair_cells(comparison, line),
            **{axis_title(group): line[group] for group in groups},
            "from … to": value_title(line["axis"], f"{line['first']} to {line['last']}"),
            **_tested_cells(line, "change"),
            **_size_cells(line),
        }
        for line in lines
    ]
    note = "Change: the difference of a pair at the last value minus that at the first, tested as the differences are."
    return _table("How differences change", rows, note)


def _pair_cells(comparison: ComparisonFolder, line: Line) -> dict[str, str]:
    return {name: comparison.method_titles.get(line[name], str(line[name])) for name in ("method", "baseline")}


def _tested_cells(line: Line, what: str) -> dict[str, str]:
    """Return measure, ``what`` is tested, interval and p of a line of tests.csv or changes.csv."""
    return {
        "measure": _measure_title(line["measure"]),
        what: signed(line["difference"], _digits(line)),
        INTERVAL: interval((line["ci95_low"], line["ci95_high"]), _digits(line)),
        P_VALUE: p_value(line["p_holm"]),
    }


def _size_cells(line: Line) -> dict[str, str]:
    return {"cases": number(line["n_cases"], 0), "replicates": number(line["n_seeds"], 0)}


def _rank_table(comparison: ComparisonFolder) -> Table | None:
    lines = comparison.table(RANKS)
    groups = _groups(lines, MeanRank)
    rows = [
        {
            "method": comparison.method_titles.get(line["method"], line["method"]),
            **{axis_title(group): line[group] for group in groups},
            "measure": _measure_title(line["measure"]),
            "mean rank": number(line["mean_rank"], 2),
            "mean score": number(line["mean_score"], _digits(line)),
            "cases": number(line["n_cases"], 0),
        }
        for line in lines
    ]
    return _table("Ranks", rows, "1 is the best; the mean is over cases.")


def _table(title: str, rows: Sequence[Mapping[str, str]], note: str) -> Table | None:
    """Return lines of tests, each column's title -> its cell, as a table; None for no lines."""
    if not rows:
        return None
    once = [name for name in _ONCE if len({row.get(name) for row in rows}) == 1 and name in rows[0]]
    columns = tuple(name for name in rows[0] if name not in once)
    told = ", ".join(_ONCE[name].format(rows[0][name]) for name in once)
    return Table(
        columns,
        tuple(tuple(row[name] for name in columns) for row in rows),
        title=f"{title}: {told}" if told else title,
        note=note,
        texts=frozenset(place for place, name in enumerate(columns) if name not in _FIGURES),
    )


def _groups(lines: Sequence[Line], kind: type[PairTest | MeanRank]) -> list[str]:
    """Return the columns that say to which group a line belongs, where there is more than one."""
    names = {one.name for one in fields(kind)}
    return [name for name in next(iter(lines), {}) if name not in names and len({line[name] for line in lines}) > 1]


def _measure_title(measure: str) -> str:
    """Return what a measure is called: ``Dice``, ``HD95 (px)``."""
    name, _, unit = measure.partition("_")
    return "Dice" if name == "dice" else f"{name.upper()} ({unit})"


def _digits(line: Line) -> int:
    return 3 if line["measure"] == "dice" else 1
