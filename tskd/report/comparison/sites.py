"""The sites of federations side by side: each strategy at each site, against each alone and all in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tskd.console import counted
from tskd.metrics.comparison import DICE, PairTest, difference_interval, pair_test
from tskd.report.blocks import Block, Chart, Charts, Points, Section, Table, section
from tskd.report.charts import Axis, Estimate, Series, forest_chart, line_chart, line_key, log_places
from tskd.report.comparison.files import METHOD, PRIVACY
from tskd.report.comparison.folder import Cell, ComparisonFolder, Line
from tskd.report.sites import Rounds, absent, dice_at_sites, guarantee, labelled_images, round_axis
from tskd.report.styles import Look
from tskd.report.text import INTERVAL, NOTHING, capital, dice_of, interval, number, signed

ALONE, POOLED = "alone", "pooled"
"""Strategies in which sites do not work together: what the others are held against."""
_ALL = "all sites"


@dataclass(frozen=True)
class Federated:
    """What is compared, over its replicates, site by site."""

    cell: Cell
    look: Look
    value: str
    """Of the compared axis."""
    dice: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Run's replicate -> site -> case -> Dice."""
    rounds: Rounds
    """Of the first replicate; none where nothing was sent."""

    @property
    def labelled(self) -> dict[str, int]:
        """Site -> its labelled images, as it told them; under noise it tells none."""
        return labelled_images(self.rounds) if self.cell.mean("epsilon") is None else {}

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site for found in self.dice.values() for site in found))

    def scores(self, site: str, replicates: Sequence[str] = ()) -> np.ndarray:
        """Return the Dice of a site's cases (S, C) in some replicates, or all; of ``_ALL`` the cases of every site."""
        kept = [self.dice[name] for name in replicates or self.dice]
        sites = self.sites if site == _ALL else (site,)
        return np.array([[dice for name in sites for dice in found[name].values()] for found in kept])

    def mean(self, site: str) -> float:
        return float(self.scores(site).mean())

    @cached_property
    def worst(self) -> str:
        """The site with the lowest mean over replicates and cases."""
        return min(self.sites, key=self.mean)

    def interval(self, site: str) -> tuple[float, float] | None:
        """Return the 95 % interval of a site's mean over replicates and cases, within 0 and 1."""
        bounds = difference_interval(self.scores(site), seed=0)
        return None if bounds is None else (max(bounds[0], 0.0), min(bounds[1], 1.0))

    def against(self, other: Federated, site: str) -> PairTest | None:
        """Return the difference from another one on the same cases and replicates of a site; None: it has none."""
        both = [name for name in self.dice if name in other.dice]
        ours, theirs = self.scores(site, both), other.scores(site, both)
        if not both or ours.shape != theirs.shape:
            return None
        return pair_test((self.value, other.value), ours - theirs, DICE, seed=0)


def sites_section(comparison: ComparisonFolder) -> Section | None:
    """Each strategy at each site with intervals, its worst site, paired differences, and what was sent."""
    blocks: list[Block | None] = []
    groups = {title: found for title, cells in comparison.groups.items() if (found := _federated(comparison, cells))}
    for title, found in groups.items():
        labelled = {name: count for one in found for name, count in one.labelled.items()}
        sites = sorted(found[0].sites, key=lambda name: labelled.get(name, 0))  # the smallest first; stable
        named = {name: f"{name}, {counted(labelled[name], 'label')}" if name in labelled else name for name in sites}
        where = f"{title}: " if len(groups) > 1 else ""
        blocks += [
            _answer(found, labelled),
            Charts(_forests(found, named), note=f"Bar: {INTERVAL} of the mean. Faint marks: single trainings."),
            _table(found, named, where),
            *_differences(comparison, found, named, where),
            _exchanged(found, where),
            _curves(found),
        ]
    lead = "Each site's own test cases, scored by the model that the site would use; means over replicates and cases."
    return section("sites", "Sites side by side", lead, blocks)


def _federated(comparison: ComparisonFolder, cells: Sequence[Cell]) -> list[Federated]:
    """Return the cells whose scores are those of sites, the same ones throughout."""
    found = [
        Federated(cell, look, str(cell.first[comparison.compared]), dice, comparison.rounds(cell))
        for cell, look in zip(cells, comparison.looks(cells))
        if (dice := _dice(comparison, cell))
    ]
    return [one for one in found if set(one.sites) == set(found[0].sites)]


def _dice(comparison: ComparisonFolder, cell: Cell) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """Return replicate -> site -> case -> Dice; nothing where a replicate's are gone, or have other cases."""
    evaluations = comparison.evaluations(cell)
    if not all("sites" in one.metrics for one in evaluations.values()):
        return {}
    dice: dict[str, Mapping[str, Mapping[str, float]]] = {
        name: dice_at_sites(one.path) for name, one in evaluations.items()
    }
    alike = {tuple((site, *cases) for site, cases in found.items()) for found in dice.values()}
    return dice if len(alike) == 1 and len(dice) == len(cell.runs) else {}


def _answer(found: Sequence[Federated], labelled: Mapping[str, int]) -> Points | None:
    """Return what working together is worth at the smallest site, and how near it comes to all data in one place."""
    together = [one for one in found if one.value not in (ALONE, POOLED)]
    references = [one for one in found if one.value in (ALONE, POOLED)]
    if not together or not references or set(labelled) != set(found[0].sites):
        return None
    best = max(together, key=lambda one: one.mean(_ALL))
    smallest = min(labelled, key=lambda name: (labelled[name], name))
    places = {f"At the smallest site, {smallest} ({counted(labelled[smallest], 'labelled image')}),": smallest}
    places["Over the cases of all sites"] = _ALL
    points = []
    for place, site in places.items():
        tested = [(one, test) for one in references if (test := best.against(one, site))]
        said = " and ".join(f"from {one.look.title} by {_difference(test)}" for one, test in tested)
        points.append(f"{place} {best.look.title}, the best of those that work together, differs {said}.")
    return Points(tuple(points))


def _forests(found: Sequence[Federated], named: Mapping[str, str]) -> tuple[Chart, ...]:
    bounds = [value for one in found for site in named for value in (one.mean(site), *(one.interval(site) or ()))]
    span = max(min(bounds) - 0.05, -0.02), min(max(bounds) + 0.05, 1.02)
    measure = dice_of(found[0].cell.level)
    return tuple(
        forest_chart(
            [
                Estimate(one.look, one.mean(site), one.interval(site), one.scores(site).mean(axis=1).tolist())
                for one in found
            ],
            title=capital(title), measure=measure, span=span,
        )
        for site, title in named.items()
    )  # fmt: skip


def _table(found: Sequence[Federated], named: Mapping[str, str], where: str) -> Table:
    columns = ("", dice_of(found[0].cell.level), "mean of sites", "worst site", "its Dice", *named.values())
    rows = tuple(
        (
            capital(one.look.title),
            number(one.cell.dice),
            number(float(np.mean([one.mean(site) for site in named]))),
            one.worst,
            number(one.mean(one.worst)),
            *(f"{number(one.mean(site))} ({interval(one.interval(site))})" for site in named),
        )
        for one in found
    )
    least = max(range(len(found)), key=lambda place: found[place].mean(found[place].worst))
    note = (
        f"In brackets: {INTERVAL} over replicates and cases. The worst site: that of the lowest mean. Bold: what does "
        "best at its worst site. In the mean of sites each counts once."
    )
    return Table(
        columns, rows, title=capital(f"{where}each site"), note=note, strong=frozenset({least}), texts=frozenset({0, 3})
    )


def _differences(
    comparison: ComparisonFolder, found: Sequence[Federated], named: Mapping[str, str], where: str
) -> Iterator[Table]:
    """Yield a table for each that others are held against: sites alone, all data in one place, and the baseline."""
    if comparison.compared == METHOD:
        return
    for reference in found:
        if reference.value not in (ALONE, POOLED, str(comparison.description.get("baseline"))):
            continue
        others = [one for one in found if one.cell.method == reference.cell.method and one is not reference]
        rows = tuple(
            (capital(one.look.title), *(_difference(one.against(reference, site)) for site in (*named, _ALL)))
            for one in others
        )
        note = (
            f"Difference of Dice on the same cases and replicates with its {INTERVAL}; not corrected for being several."
        )
        title = capital(f"{where}against {reference.look.title}, site by site")
        yield Table(("", *named.values(), _ALL), rows, title=title, note=note)


def _difference(test: PairTest | None) -> str:
    if test is None:
        return NOTHING
    return f"{signed(test.difference)} ({interval((test.ci95_low, test.ci95_high))})"


def _exchanged(found: Sequence[Federated], where: str) -> Table:
    rows = tuple(
        (
            capital(one.look.title),
            str(len(one.rounds)) if one.rounds else NOTHING,
            *(number(one.cell.mean(f"mb_{way}"), 2) for way in ("down", "up")),
            number(one.cell.mean("seconds"), 0),
            _absent(one),
            *_protected(one),
        )
        for one in found
    )
    columns = ("", "rounds", "MB to the sites", "MB from them", "training, s", "did not answer", *_PROTECTED)
    note = (
        "Bytes are those of all sites and rounds, the mean of a run; rounds and answers are of the first replicate. "
        "Where updates are not masked, the server reads each site's. A guarantee is for a site as a whole, none for "
        "single patients, and in a simulation its noise protects nobody; without one a model can betray whom it was "
        "trained on."
    )
    return Table(columns, rows, title=capital(f"{where}what was sent"), note=note, texts=frozenset({0, 5, 6, 7}))


_PROTECTED = ("updates are", "guarantee")
"""Columns of :func:`_protected`."""


def _protected(one: Federated) -> tuple[str, str]:
    """Return what is done to the updates of sites, and epsilon with what it promises."""
    if not one.rounds:
        return NOTHING, NOTHING
    epsilon, delta = (one.cell.mean(name) for name in ("epsilon", "delta"))
    bound = "none" if epsilon is None or delta is None else guarantee(epsilon, delta)
    return str(one.cell.first.get(PRIVACY) or "as they are"), bound


def _absent(one: Federated) -> str:
    missing = absent(one.rounds, one.sites)
    names = sorted({name for found in missing.values() for name in found})
    return f"{', '.join(names)} in {counted(len(missing), 'round')}" if missing else NOTHING


def _curves(found: Sequence[Federated]) -> Charts | None:
    """Return validation Dice and loss over the rounds of the first replicate, a line for each that has several."""
    drawn = []
    x = round_axis(sorted({entry["round"] for one in found for entry in one.rounds}))
    for measure, title in (("score", "validation Dice"), ("loss", "loss, mean of sites")):
        lines = [line for one in found if (line := _line(one, measure))]
        if lines:
            steep = measure == "loss" and log_places([value for line in lines for value in line.y])
            axis = Axis(title, logarithmic=steep)
            drawn.append(line_chart(lines, x, axis, title=f"{capital(title)} over rounds", points=False))
    return Charts(tuple(drawn), tuple(line_key(one.look) for one in found if _line(one, "loss"))) if drawn else None


def _line(one: Federated, measure: str) -> Series | None:
    known = [(entry["round"], value) for entry in one.rounds if (value := _told(entry, measure)) is not None]
    return Series(one.look, *zip(*known)) if len(known) > 1 else None


def _told(entry: Line, measure: str) -> float | None:
    """Return what a round says of all sites: its weighted validation score, or the mean of their losses."""
    if measure == "score":
        score: float | None = entry.get("score")
        return score
    losses = [site["loss"] for site in entry["sites"].values() if "loss" in site]
    return float(np.mean(losses)) if losses else None
