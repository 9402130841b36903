"""The page of a federation: its sites side by side, what went between them round by round, and who did not answer.

Scores of sites and what they have told the server are all there is: no image of a site is on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from tskd.console import counted, duration
from tskd.report.blocks import Block, Chart, Charts, Facts, Page, Section, Table, section
from tskd.report.charts import Axis, Estimate, Series, forest_chart, line_chart, line_key, log_places
from tskd.report.run.folder import RunFolder
from tskd.report.run.page import limits_section
from tskd.report.run.provenance import cost_section, reproduce_section
from tskd.report.run.training import training_section
from tskd.report.run.verdict import CAVEAT
from tskd.report.sites import (
    MEAN,
    TRAINED,
    WAYS,
    Rounds,
    absent,
    dice_at_sites,
    guarantee,
    labelled_images,
    megabytes,
    round_axis,
    site_looks,
)
from tskd.report.styles import Look
from tskd.report.text import (
    FALSE_POSITIVE,
    INTERVAL,
    MISSED,
    NOTHING,
    capital,
    dice_of,
    false_positives,
    interval,
    interval_of,
    missed,
    number,
    without_idle,
)

_EXCHANGED = {
    "alone": "Each site works for itself: nothing is sent.",
    "pooled": "All images are in one place, which is what a federation does without: nothing is sent.",
    "fedavg": "Sites send the teacher's trained tensors, which are averaged.",
    "fedprox": "Sites send the teacher's trained tensors, which are averaged, and stay near to the last average.",
    "fedbn": "Sites send the teacher's trained tensors but for its norms, and each has a model of its own.",
    "feddistill": "Sites send what their own teachers answer on the shared images; the student learns the mean of it.",
}
"""Strategy -> what travels."""
_ALL_THAT_LEAVES = (
    " Beside it a site tells its name, a loss, a validation score, and how many labelled images it trains on."
)
_NO_NUMBER_LEAVES = " Beside it a site tells its name and no number: noise would not cover it."
_LEAVES = {
    "update": "the teacher's trained tensors, each round; no image, file name or path",
    "answers": "what its teacher answers on the shared images, once; no image, file name or path",
}
"""What is sent -> in words."""
_ASKED_EACH_ROUND = (
    "Validation Dice is that of the average, on the images that each site keeps for it; loss is the last of a site's "
    "own training in the round."
)
_ASKED_FOR_NO_SCORE = "With noise on the updates no site tells a loss or a score; the last round is the teacher."
_ASKED_ONCE = "Sites are asked once. Validation Dice is that of a site's own teacher, on the images kept for it."
_SPAN = (-0.02, 1.02)
"""Of Dice: all of it, so that models compare, and marks at its ends whole."""
_FEW_POINTS = 25
"""Up to so many rounds a line shows each."""


class Federation:
    """A finished federated run, by what its page asks."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.told = run.summary.federated
        self.strategy = str(self.told["strategy"])
        self.rounds: Rounds = self.told["rounds"]
        self.main = run.main
        self.sites = list(self.told["sites"][self.main])

    @property
    def own(self) -> Mapping[str, Any]:
        """Scores of the model that the run ends with, over the cases of all sites."""
        return self.run.metrics[self.main]

    @property
    def dice(self) -> str:
        return dice_of(self.run.level)

    @cached_property
    def labelled(self) -> Mapping[str, int]:
        """Labelled images of the sites, where this machine knows them or was told."""
        known: Mapping[str, int] = self.told.get("labelled", {})
        return known if self.privacy.get("noise") else {**known, **labelled_images(self.rounds)}

    @property
    def privacy(self) -> Mapping[str, Any]:
        """The settings of privacy, with epsilon where there is noise; empty in runs from before there were any."""
        found: Mapping[str, Any] = self.told.get("privacy", {})
        return found

    @cached_property
    def absent(self) -> dict[int, list[str]]:
        """Round -> the sites whose part is not in it."""
        return absent(self.rounds, self.sites)

    def at(self, model: str, site: str) -> Mapping[str, Any]:
        """Return a model's scores on the test images of a site."""
        found: Mapping[str, Any] = self.told["sites"][model][site]
        return found

    def sent(self, site: str, way: str) -> int | None:
        """Return the bytes that went to or from a site in all rounds; None where nothing was sent at all."""
        return self.told["bytes"].get(site, {}).get(way, 0) if self.rounds else None


def federated_page(run: RunFolder) -> Page:
    """Return the page of a federated run."""
    one = Federation(run)
    sections = (
        scores_section(one),
        sites_section(one),
        rounds_section(one),
        privacy_section(one),
        training_section(run),
        limits_section(),
        cost_section(run),
        reproduce_section(run),
    )
    return Page(
        title=f"Federation of {counted(len(one.sites), 'site')}",
        kicker=f"{one.strategy} · {counted(run.summary.labels, 'label')} in all · seed {run.summary.seed}",
        verdict=verdict(one),
        caveat=_caveat(one),
        sections=tuple(found for found in sections if found is not None),
    )


def verdict(one: Federation) -> str:
    """Return one sentence: how good the model is over all sites, and at which it is worst."""
    run, own, title = one.run, one.own, one.run.title(one.main)
    head = (
        f"With {counted(run.summary.labels, 'labelled image')} at {counted(len(one.sites), 'site')} under "
        f"{one.strategy} the {title}"
    )
    cases = counted(own["n_cases"], "test case")
    if own["dice"] is None:
        return f"{head} has no score: no mask among {cases} holds what is looked for."
    bounds = f" ({INTERVAL} {interval(own['dice_ci95'])})" if own["dice_ci95"] else ""
    scored = f"{head} scores {one.dice} {number(own['dice'])}{bounds} on {cases}"
    worst = own["worst"]
    if worst is None or len(one.sites) == 1:
        return f"{scored}."
    at_worst = one.at(one.main, worst)
    return f"{scored}; it is worst at {worst}: {number(at_worst['dice'])} ({interval_of(at_worst, 'dice')})."


def scores_section(one: Federation) -> Section | None:
    """Every model over the test cases of all sites, and at its worst."""
    columns = ("model", one.dice, INTERVAL, "mean of sites", "worst site", "its Dice", "IoU", MISSED, FALSE_POSITIVE)
    rows = [
        (
            capital(one.run.title(name)),
            number(found["dice"]),
            interval_of(found, "dice"),
            number(found["dice_of_sites"]),
            found["worst"] or NOTHING,
            number(found["sites"][found["worst"]]["dice"]) if found["worst"] else NOTHING,
            number(found["iou"]),
            missed(found),
            false_positives(found),
        )
        for name, found in ((name, one.run.metrics[name]) for name in one.run.models)
    ]
    teacher = f" Teacher: {one.run.summary.teacher}." if one.run.summary.teacher else ""
    note = (
        f"{one.dice} is over all cases, so that a site with more of them counts for more; in the mean of sites each "
        f"counts once. Bold: the {one.run.title(one.main)}, with which the run ends.{teacher} Bootstrap intervals over "
        "cases."
    )
    shown, cells = without_idle(columns, rows)
    strong = frozenset({one.run.models.index(one.main)})
    table = Table(shown, cells, note=note, strong=strong, texts=frozenset({0, columns.index("worst site")}))
    beside = _NO_NUMBER_LEAVES if one.privacy.get("noise") else _ALL_THAT_LEAVES
    lead = f"{_EXCHANGED.get(one.strategy, '')}{beside if one.rounds else ''}".strip()
    return section("scores", "Scores", lead, [table])


def sites_section(one: Federation) -> Section | None:
    """Each site's Dice with its interval, its labelled images, and what it got and sent."""
    charts = tuple(chart for name in one.run.models if (chart := _forest(one, name)))
    note = f"Bar: {INTERVAL} of the mean. Faint marks: single cases."
    lead = "Each site's own test images, scored by the model that the site would use. No image is on this page."
    return section("sites", "Sites side by side", lead, [Charts(charts, note=note), _site_table(one)])


def rounds_section(one: Federation) -> Section | None:
    """Loss and validation Dice of each site over the rounds, seconds and bytes, and who did not answer."""
    if not one.rounds:
        return None
    blocks: list[Block | None] = [_totals(one), _curves(one), _round_table(one)]
    lead = _ASKED_ONCE if one.strategy == "feddistill" else _ASKED_EACH_ROUND
    return section("rounds", "Rounds", _ASKED_FOR_NO_SCORE if one.privacy.get("noise") else lead, blocks)


def privacy_section(one: Federation) -> Section | None:
    """What of the sites others can learn, by what was set against it, and what nothing was set against."""
    if not one.rounds:
        return None
    privacy, sent = one.privacy, "answers" if one.strategy == "feddistill" else "update"
    masked, noise = privacy.get("secure_aggregation"), privacy.get("noise")
    server = "the mean of all sites' updates, and none by itself (SecAgg+)" if masked else f"each site's {sent}"
    bound = f"at most a norm of {privacy['clip']:g} a round" if privacy.get("clip") else "no bound"
    facts = [("Leaves a site", _LEAVES[sent]), ("The server learns", server), ("One site can change", bound)]
    if noise:
        rounds = counted(len(one.rounds), "round")
        kept = f"{guarantee(privacy['epsilon'], privacy['delta'])}: for a whole site, over {rounds}, by noise {noise:g}"
        facts.append(("Whoever gets the model", kept))
    else:
        facts.append(("Whoever gets the model", "no bound on what it betrays of those it was trained on"))
    return section("privacy", "Privacy", "", [Facts(tuple(facts)), Facts(tuple(_gaps(one)), title="Not protected")])


def _gaps(one: Federation) -> Iterator[tuple[str, str]]:
    """Yield who is not protected, and from what."""
    privacy = one.privacy
    if privacy.get("noise") and privacy.get("noise_from") == "seed":
        yield "All, in this simulation", "its noise comes from the seed, and anybody can draw it again"
    by_site = "the guarantee is for a site as a whole"
    yield "Single patients", by_site if privacy.get("noise") else "a model can betray whom it was trained on"
    if privacy.get("secure_aggregation"):
        yield "A site, from the server", "if it invents sites, or all other sites help it"
    else:
        yield "A site, from the server", "it reads what each site sends"
    yield "Test images", "their scores are told as they are"


def _caveat(one: Federation) -> str:
    if not one.absent:
        return CAVEAT
    names = sorted({name for missing in one.absent.values() for name in missing})
    rounds = f"{len(one.absent)} of {counted(len(one.rounds), 'round')}"
    return f"{CAVEAT} Not every site answered: without {', '.join(names)} in {rounds}."


def _forest(one: Federation, model: str) -> Chart | None:
    looks = site_looks(one.sites)
    evaluation = one.run.evaluation(model).path
    values = dice_at_sites(evaluation)
    scored = [(name, found) for name in one.sites if (found := one.at(model, name))["dice"] is not None]
    rows = [
        Estimate(looks[name], found["dice"], found["dice_ci95"], list(values.get(name, {}).values()))
        for name, found in scored
    ]
    title = capital(one.run.title(model))
    return forest_chart(rows, title=title, measure=one.dice, span=_SPAN) if rows else None


def _site_table(one: Federation) -> Table:
    models = one.run.models
    figures = [(one.run.title(name), INTERVAL) for name in models]
    columns = ("site", "labelled images", "test cases", *(title for pair in figures for title in pair))
    columns += ("rounds in which it answered", "MB to it", "MB from it") if one.rounds else ()
    rows = tuple(
        (
            name,
            str(one.labelled.get(name, NOTHING)),
            str(one.at(one.main, name)["n_cases"]),
            *(cell for model in models for cell in _dice_cells(one.at(model, name))),
            *_exchange_cells(one, name),
        )
        for name in one.sites
    )
    worst = one.own["worst"]
    strong = frozenset({one.sites.index(worst)}) if worst else frozenset()
    note = f"Bold: the site with the lowest {one.dice} of the {one.run.title(one.main)}."
    return Table(columns, rows, note=note, strong=strong)


def _dice_cells(scores: Mapping[str, Any]) -> tuple[str, str]:
    return number(scores["dice"]), interval_of(scores, "dice")


def _exchange_cells(one: Federation, site: str) -> tuple[str, ...]:
    if not one.rounds:
        return ()
    answered = sum(TRAINED in entry["sites"].get(site, {}) for entry in one.rounds)
    return f"{answered} of {len(one.rounds)}", *(megabytes(one.sent(site, way)) for way in WAYS)


def _totals(one: Federation) -> Facts:
    seconds = [entry["seconds"] for entry in one.rounds if entry["seconds"] is not None]
    to, back = (sum(one.sent(name, way) or 0 for name in one.sites) for way in WAYS)
    taken = f", {min(seconds):.1f} s to {max(seconds):.1f} s a round" if len(seconds) > 1 else ""
    facts = [
        ("Rounds", str(len(one.rounds))),
        ("Sent", f"{megabytes(to)} MB to the sites, {megabytes(back)} MB from them"),
        ("Time", f"{duration(sum(seconds))} in all{taken}" if seconds else NOTHING),
        ("Did not answer", _missing(one)),
    ]
    return Facts(tuple(facts))


def _missing(one: Federation) -> str:
    """Return which sites were missing in which rounds."""
    if not one.absent:
        return "none: every site is in every round"
    by_site: dict[str, list[str]] = {}
    for number_, names in one.absent.items():
        for name in names:
            by_site.setdefault(name, []).append(str(number_))
    return "; ".join(
        f"{name} in {'round' if len(found) == 1 else 'rounds'} {', '.join(found)}" for name, found in by_site.items()
    )


def _curves(one: Federation) -> Charts | None:
    looks = site_looks(one.sites)
    scores = [*_lines(one, "score", looks)]
    if mean := [(entry["round"], entry["score"]) for entry in one.rounds if entry.get("score") is not None]:
        scores.append(Series(MEAN, *zip(*mean)))
    losses = [*_lines(one, "loss", looks)]
    steep = bool(losses) and log_places([value for line in losses for value in line.y])
    drawn = ((scores, Axis("validation Dice"), "Validation Dice"), (losses, Axis("loss", logarithmic=steep), "Loss"))
    numbers = [entry["round"] for entry in one.rounds]
    x = round_axis(numbers)
    charts = tuple(
        line_chart(lines, x, y, title=f"{title} at each site", points=len(numbers) <= _FEW_POINTS)
        for lines, y, title in drawn
        if any(len(line.x) > 1 for line in lines)
    )
    return Charts(charts, tuple(line_key(look) for look in (*looks.values(), MEAN))) if charts else None


def _lines(one: Federation, measure: str, looks: Mapping[str, Look]) -> Iterator[Series]:
    """Yield each site's line over the rounds in which it told the measure."""
    for name in one.sites:
        known = [
            (entry["round"], told[name][measure])
            for entry in one.rounds
            if measure in (told := entry["sites"]).get(name, {})
        ]
        if known:
            yield Series(looks[name], *zip(*known))


def _round_table(one: Federation) -> Table:
    rows = tuple(
        (
            str(entry["round"]),
            number(entry.get("score")),
            number(entry["seconds"], 1),
            *(megabytes(sum(site[way] for site in entry["sites"].values())) for way in WAYS),
            ", ".join(one.absent.get(entry["round"], ())) or NOTHING,
        )
        for entry in one.rounds
    )
    columns = ("round", "validation Dice, mean", "seconds", "MB to sites", "MB from sites", "did not answer")
    note = (
        "The mean is weighted by labelled images. A site that did not answer in time, or sent what could not be used, "
        "is left out of the round."
    )
    return Table(columns, rows, title="Round by round", note=note, texts=frozenset({0, len(columns) - 1}))
