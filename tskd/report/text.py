"""Numbers as a reader sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from tskd.console import counted
from tskd.metrics.intervals import interval_text

INTERVAL = "95\u00a0% interval"
"""Never broken between number and sign."""
P_VALUE = "p (these trainings)"
"""Wilcoxon's: it says nothing of other seeds."""
P_NOTE = (
    "p: Wilcoxon signed-rank, two-sided, corrected by Holm for all rows, for these trainings: where seeds differ, "
    "equal methods have p < 0.05 far more often than in 5 %. The interval decides."
)
MISSED, FALSE_POSITIVE = "missed", "false positive"
"""Titles of the columns that count them."""
NOTHING = "–"
"""Shown where there is no value."""


def number(value: float | None, digits: int = 3) -> str:
    """Return a value with fixed digits."""
    return NOTHING if value is None else _minus(f"{value:.{digits}f}")


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign."""
    return _minus(f"{value:+.{digits}f}")


def interval(bounds: Sequence[float | None] | None, digits: int = 3) -> str:
    """Return a 95 % interval in words."""
    return interval_text(bounds, partial(number, digits=digits))


def interval_of(scores: Mapping[str, Any], measure: str, digits: int = 3) -> str:
    """Return the 95 % interval of a measure in words; nothing where there was nothing to score."""
    return NOTHING if scores[measure] is None else interval(scores[f"{measure}_ci95"], digits)


def thousands(value: float | None) -> str:
    """Return a large count with thin spaces."""
    return NOTHING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def teraflops(gigaflops: float | None) -> str:
    """Return billions of floating-point operations as trillions, three digits of them."""
    return NOTHING if gigaflops is None else f"{gigaflops / 1000:.3g}"


def p_value(value: float) -> str:
    """Return a p value as journals print it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def missed(scores: Mapping[str, Any], digits: int = 0) -> str:
    """Return how often a model missed a class, of all images and classes where it is there."""
    return _of_all(scores["missed"], scores["scored"], digits)


def false_positives(scores: Mapping[str, Any], digits: int = 0) -> str:
    """Return how often a model found a class where it is not there, of all such images and classes."""
    return _of_all(scores["false_positive"], scores["both_empty"], digits)


def dice_of(level: str) -> str:
    """Return what Dice is called: that of volumes says so, because that of slices is another figure."""
    return "3-D Dice" if level == "volume" else "Dice"


def scored(scores: Mapping[str, Any]) -> str:
    """Return what a model was scored on: ``8 images``, or ``4 volumes (36 slices)``."""
    if scores.get("level") != "volume":
        return counted(scores["n_images"], "image")
    return f"{counted(scores['n_volumes'], 'volume')} ({counted(scores['n_images'], 'slice')})"


def capital(sentence: str) -> str:
    """Return the sentence with its first letter large, the rest untouched."""
    return sentence[:1].upper() + sentence[1:]


def _of_all(wrong: float, right: float, digits: int) -> str:
    return f"{number(wrong, digits)} of {wrong + right:.0f}" if wrong + right else NOTHING


def without_idle(
    columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the columns and rows of a table without a count of errors that could happen in no row.

    Where every test image shows every class no false positive can be counted: a column of "0 of 0" reads as praise.
    """
    rows = [tuple(row) for row in rows]
    kept = [
        place
        for place, column in enumerate(columns)
        if column not in (MISSED, FALSE_POSITIVE) or any(row[place] != NOTHING for row in rows)
    ]
    return tuple(columns[place] for place in kept), tuple(tuple(row[place] for place in kept) for row in rows)


def _minus(text: str) -> str:
    """Return a number with a true minus sign, and none where it rounds to zero."""
    return text.replace("-", "−") if float(text) else text.lstrip("+-")
