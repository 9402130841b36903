"""What a federation's pages have in common: who answered in which round, what was sent, and how sites are drawn.

A site is known by its name in the recipe alone; its cases have numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tskd.metrics.segmentation import ScoreRow, case_means
from tskd.report.charts import Axis
from tskd.report.styles import Look
from tskd.report.text import NOTHING, number
from tskd.stages.evaluation_files import read_cases

Rounds = Sequence[Mapping[str, Any]]
"""Entries of ``rounds`` in run.json: ``round``, ``seconds``, ``score``, and ``sites``, name -> what it sent and got."""
TRAINED = "images"
"""What only a site that did its part has told; one that was there for the validation alone has not."""
WAYS = ("down", "up")
"""To a site, and from it."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_TICKS = 8
_COLOURS = 7
"""The eighth is that of means over sites."""
MEAN = Look("weighted mean", 7, dashed=True)


def site_looks(sites: Sequence[str]) -> dict[str, Look]:
    """Return how each site is drawn; beyond seven sites lines and marks tell those of one colour apart."""
    return {
        name: Look(name, place % _COLOURS, _MARKERS[(place + place // _COLOURS) % len(_MARKERS)], place >= _COLOURS)
        for place, name in enumerate(sites)
    }


def labelled_images(rounds: Rounds) -> dict[str, int]:
    """Return site -> how many labelled images it said that it trains on; nothing of sites that never said so.

    With noise a site says 1, whatever it has: ask for none of those.
    """
    told = {name: one[TRAINED] for entry in rounds for name, one in entry["sites"].items() if TRAINED in one}
    return {name: int(count) for name, count in told.items()}


def absent(rounds: Rounds, sites: Sequence[str]) -> dict[int, list[str]]:
    """Return round -> the sites whose part is not in it; rounds with all of them are left out."""
    missing = {
        int(entry["round"]): [name for name in sites if TRAINED not in entry["sites"].get(name, {})] for entry in rounds
    }
    return {number: names for number, names in missing.items() if names}


def measures(privacy: Mapping[str, Any]) -> str:
    """Return what is done to the sites' updates before others learn of them, ``masked (SecAgg+), clipped to 1, noise
    0.1``; empty: nothing."""
    masked = "masked (SecAgg+)" if privacy.get("secure_aggregation") else ""
    bounds = f"clipped to {privacy['clip']:g}" if privacy.get("clip") else ""
    noise = f"noise {privacy['noise']:g}" if privacy.get("noise") else ""
    return ", ".join(filter(None, (masked, bounds, noise)))


def guarantee(epsilon: float, delta: float) -> str:
    """Return epsilon and delta, and how much that promises.

    Source: Ponomareva et al. 2023 (arXiv 2303.00654), the three tiers of section 5.2.
    """
    promise = (
        "which is strong"
        if epsilon <= 1
        else "which is moderate"
        if epsilon <= 10
        else "which promises next to nothing"
    )
    return f"ε = {f'{epsilon:.2g}' if epsilon < 10 else f'{epsilon:,.0f}'} at δ = {delta:g}, {promise}"


def round_axis(numbers: Sequence[int]) -> Axis:
    """Return the axis of charts over rounds: few ones each have their tick, so that none is between two."""
    return Axis("round", ticks=numbers if len(numbers) <= _MOST_TICKS else None)


def megabytes(count: float | None) -> str:
    """Return bytes as millions of them."""
    return NOTHING if count is None else number(count / 1e6, 2)


def dice_at_sites(evaluation: Path) -> dict[str, dict[str, float]]:
    """Return site -> case -> its mean Dice, from the scores of all sites; a class that a site's masks never hold has
    no part in that site's means."""
    rows: dict[str, list[ScoreRow]] = {}
    for row in read_cases(evaluation):
        rows.setdefault(row.case.partition("/")[0], []).append(row)
    return {name: case_means(of_site, "dice") for name, of_site in rows.items()}
