"""The page of a comparison: each function writes a section, or leaves it out where there is nothing for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml

from tskd.console import counted, duration
from tskd.deploy.card import INTENDED_USE, LIMITS
from tskd.recipe.schema import PHANTOMS
from tskd.report.blocks import Block, Chart, Charts, Code, Facts, Page, Pictures, Points, Section, Table, section
from tskd.report.charts import Estimate, forest_chart
from tskd.report.comparison.charts import bias_section, curves_section, resources_section
from tskd.report.comparison.files import DATASET, METHOD
from tskd.report.comparison.folder import Cell, ComparisonFolder, Line, axis_title
from tskd.report.comparison.sites import sites_section
from tskd.report.comparison.tests import tests_section
from tskd.report.comparison.training import training_section
from tskd.report.comparison.transfer import transfer_section
from tskd.report.comparison.verdict import OURS, TEACHER, comparison_verdict
from tskd.report.pictures import ROOM, Album, Gallery, failures, picks, side_by_side
from tskd.report.run.ablation import comparison_uses_section
from tskd.report.run.provenance import changed_settings
from tskd.report.shareable import DATA, flattened, shareable
from tskd.report.text import (
    FALSE_POSITIVE,
    INTERVAL,
    MISSED,
    NOTHING,
    capital,
    dice_of,
    false_positives,
    interval,
    missed,
    number,
    teraflops,
    without_idle,
)

FEW_REPLICATES = 5
SHOWN = 3
"""Overlays picked by each method: its worst, median and best."""
MOST_SHOWN = 12
"""Methods or values side by side on one image: of more, the best ones and the worst."""


def comparison_page(comparison: ComparisonFolder, *, room: int = ROOM) -> Page:
    """Return the page of a comparison; ``room`` is how many bytes its pictures may take."""
    album = Album(room)
    sections = (
        scores_section(comparison),
        sites_section(comparison),
        curves_section(comparison),
        tests_section(comparison),
        comparison_uses_section(comparison),
        bias_section(comparison),
        resources_section(comparison),
        overlays_section(comparison, album),
        failures_section(comparison, album),
        transfer_section(comparison, album),
        training_section(comparison),
        failed_section(comparison),
        section("limits", "Intended use and limits", INTENDED_USE, [Points(LIMITS)]),
        reproduce_section(comparison),
    )
    description = comparison.description
    return Page(
        title=str(description["name"]),
        kicker=f"Comparison of {counted(len(comparison.runs), 'run')}",
        verdict=comparison_verdict(comparison),
        caveat=_caveat(comparison),
        sections=tuple(one for one in sections if one is not None),
        footnote=album.note,
    )


def scores_section(comparison: ComparisonFolder) -> Section | None:
    """Every method in every setting, or every value of what else is compared."""
    span = _span(comparison)
    charts = tuple(_forest(title, cells, span) for title, cells in comparison.groups.items())
    note = f"Bar: {INTERVAL} of the mean. Faint marks: single trainings."
    tables = [_score_table(title, cells) for title, cells in comparison.groups.items()]
    lead = "Means over replicates (seeds, label draws) and test cases; intervals are drawn over both."
    last = replace(tables[-1], note=f"{tables[-1].note} {comparison.description['budget_rule']}") if tables else None
    return section("scores", "Scores", lead, [Charts(charts, note=note), *tables[:-1], last])


def overlays_section(comparison: ComparisonFolder, album: Album) -> Section | None:
    """All that is compared on the same images, for each data set in its first group."""
    groups = comparison.first_groups.items()
    blocks = [block for title, cells in groups for block in _overlays(comparison, title, cells, album)]
    lead = "Line: truth. Area: prediction of the first replicate. Images that several methods picked come once."
    return section("overlays", "Worst, median and best", lead, blocks)


def failures_section(comparison: ComparisonFolder, album: Album) -> Section | None:
    """What task-specific distillation (else the best model) missed, and its false positives, for each data set."""
    blocks: list[Block] = []
    for title, cells in comparison.first_groups.items():
        cell = max(cells, key=lambda cell: (cell.method == OURS, cell.method != TEACHER, cell.dice))
        if predictions := comparison.predictions(cell):
            found = failures(Gallery(predictions.prepared, album), predictions)
            blocks += [replace(one, title=f"{title}, {cell.look.title}: {one.title}") for one in found]
    lead = (
        "Images (of volumes: slices) on which a model of the first replicate misses a class or finds one that is not "
        "there; each counts as Dice 0 where images are scored."
    )
    return section("failures", "Failure cases", lead, blocks)


def failed_section(comparison: ComparisonFolder) -> Section | None:
    """The runs that failed; what an error says may name files, so only its kind is told."""
    shown = (DATASET, *comparison.axes, *comparison.replicates)
    rows = tuple(
        (comparison.method_titles[line[METHOD]], *(line[name] for name in shown), _kind(line))
        for line in comparison.failed
    )
    columns = ("method", *(axis_title(name) for name in shown), "error")
    texts = frozenset({0, 1, len(columns) - 1})
    lead = "They are in no number above. What each error says is in table.csv: it may name files, so it is left out."
    return section("failed", "Failed runs", lead, [Table(columns, rows, texts=texts)])


def reproduce_section(comparison: ComparisonFolder) -> Section | None:
    """Grid, versions and what it took."""
    description = comparison.description
    seconds = comparison.runs["seconds"].sum() if "seconds" in comparison.runs else 0.0
    machines = description.get("executor", {})
    known = machines.get("executor")
    workers = machines.get("workers") or (1 if known == "local" else None)
    at_once = f"{counted(workers, 'run')} at a time" if workers else "as many runs at a time as there was room for"
    facts = [
        ("Runs", f"{description['runs']}, of which {description['failed']} failed"),
        ("Time", f"{duration(seconds)} over all runs; what runs share was computed once and is counted in each"),
        ("Written", str(description.get("created", NOTHING))),
        ("Carried out by", f"{known}, {at_once}" if known else NOTHING),
        *_made_with(description),
        *((f"Data of {title}", f"sha256 {digest}") for title, digest in _data_digests(comparison).items()),
    ]
    grid = yaml.safe_dump(shareable(description["grid"]), sort_keys=False, allow_unicode=True)
    lead = "The same grid, data and versions give the same table on the same kind of processor."
    recipe = description["grid"].get("recipe")
    blocks: list[Block | None] = [
        Facts(tuple(facts)),
        changed_settings(recipe) if isinstance(recipe, Mapping) else None,
        Code(grid, title=f"The grid: {how_to_use(description['grid'])}"),
    ]
    return section("reproduce", "How to make it again", lead, blocks)


def how_to_use(grid: Mapping[str, Any]) -> str:
    """Return the command for the grid as the page shows it, without the folders of images."""
    use = "save as grid.yaml, then tskd compare grid.yaml"
    keys = {key for values in grid["axes"].values() for one in values if isinstance(one, Mapping) for key in one}
    if "data.root" in keys or "data.root" in grid["axes"]:
        return f"put your folders of images in the place of {DATA}, {use} --out OUT"
    root = flattened(grid.get("recipe") or {}).get("data.root") if isinstance(grid.get("recipe"), Mapping) else None
    return f"{use} --out OUT" if root in (None, PHANTOMS) else f"{use} --data {DATA} --out OUT"


def _made_with(description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the models were trained with, each kind of environment with its share of the runs."""
    environments = description.get("made_with") or [{**description["versions"], "runs": description["ended"]}]
    for versions in environments:
        share = f" ({counted(versions['runs'], 'run')})" if len(environments) > 1 else ""
        libraries = ", ".join(f"{name} {version}" for name, version in versions["libraries"].items())
        yield f"Python{share}", f"{versions['python']}, {versions['system']}, {versions['device']}"
        yield f"Libraries{share}", libraries
        yield f"Commit of the working folder{share}", str(versions["git_commit"] or NOTHING)


def _data_digests(comparison: ComparisonFolder) -> dict[str, str]:
    """Return the digest of the prepared data of each data set's first group, where they are there."""
    digests = {title: comparison.data_digest(cells[0]) for title, cells in comparison.first_groups.items()}
    return {title: digest for title, digest in digests.items() if digest}


def _caveat(comparison: ComparisonFolder) -> str:
    """Return what limits the numbers: few runs, failed runs, runs that have not ended."""
    description, counts = (
        comparison.description,
        [len(cell.runs) for found in comparison.cells.values() for cell in found],
    )
    fewest, most = min(counts, default=0), max(counts, default=0)
    said = [f"{f'{fewest} to ' if fewest < most else ''}{counted(most, 'run')} a method and setting."]
    if most == 1:
        said.append(
            "Intervals say what other test cases could have shown, not what another seed or other labels would."
        )
    elif most < FEW_REPLICATES:
        said.append(
            "With so few replicates intervals are wide where replicates differ, and a little short all the same."
        )
    if comparison.failed:
        said.append(
            f"{counted(len(comparison.failed), 'run')} of {len(comparison.runs)} failed: see below. Their seeds are "
            "left out of the tests of their own methods and of the ranks, and of no mean."
        )
    if waiting := description["runs"] - len(comparison.runs):
        said.append(f"{counted(waiting, 'run')} of {description['runs']} not ended yet.")
    return " ".join(said)


def _span(comparison: ComparisonFolder) -> tuple[float, float]:
    """Return the lowest and highest Dice that a chart shows, the same for all charts."""
    cells = [cell for found in comparison.cells.values() for cell in found]
    shown = [value for cell in cells for value in (cell.dice, *(cell.interval or ()))]
    return max(min(shown, default=0) - 0.05, 0), min(max(shown, default=1) + 0.05, 1)


def _forest(title: str, cells: list[Cell], span: tuple[float, float]) -> Chart:
    rows = [Estimate(cell.look, cell.dice, cell.interval, cell.runs["dice"].tolist()) for cell in cells]
    return forest_chart(rows, title=title, measure=dice_of(cells[0].level), span=span)


def _score_table(title: str, cells: list[Cell]) -> Table:
    unit = "mm" if cells[0].mean("hd95_mm") is not None else "px"
    columns = (
        "method",
        dice_of(cells[0].level),
        INTERVAL,
        "IoU",
        f"HD95 ({unit})",
        MISSED,
        FALSE_POSITIVE,
        "TFLOP",
        "teacher's TFLOP",
        "runs",
    )
    rows = (
        (
            capital(cell.look.title),
            number(cell.dice),
            interval(cell.interval),
            number(cell.mean("iou")),
            number(cell.mean(f"hd95_{unit}"), 1),
            *_errors(cell),
            teraflops(cell.mean("student_gflops")),
            teraflops(cell.mean("teacher_gflops")),
            str(len(cell.runs)),
        )
        for cell in cells
    )
    best = max(range(len(cells)), key=lambda index: cells[index].dice)
    return Table(
        *without_idle(columns, rows),
        title=f"{title}: {_test_cases(cells)}",
        note=f"Bold: the highest Dice. Missed, false positive: mean of a run, of all {cells[0].level}s and classes "
        "where it can happen. TFLOP: training compute of the student, and beside it what only gives it targets.",
        strong=frozenset({best}),
    )


def _test_cases(cells: list[Cell]) -> str:
    """Return on how many cases cells were scored: where what is compared changes the test set, from fewest to most."""
    counts = [int(cell.first["n_cases"]) for cell in cells]
    fewest, most = min(counts), max(counts)
    return counted(most, "test case") if fewest == most else f"{fewest} to {most} test cases"


def _errors(cell: Cell) -> tuple[str, str]:
    """Return how often a run of the cell missed a class, and how often it found one that is not there."""
    counts = {name: cell.mean(name) for name in ("scored", "missed", "false_positive", "both_empty")}
    if None in counts.values():  # a table of an earlier version
        return number(counts["missed"], 1), number(counts["false_positive"], 1)
    return missed(counts, digits=1), false_positives(counts, digits=1)


def _overlays(comparison: ComparisonFolder, title: str, cells: list[Cell], album: Album) -> list[Block]:
    worst, *others = sorted(cells, key=lambda cell: cell.dice)
    shown = [worst, *others[1 - MOST_SHOWN :]]
    found = [one for cell in cells if cell in shown and (one := comparison.predictions(cell))]
    if not found:
        return []
    predictions = [one for one in found if one.test_digest == found[0].test_digest]  # what is compared may change it
    gallery = Gallery(found[0].prepared, album)
    counts = {one.name: SHOWN for one in predictions}
    heading = Pictures((), title=title, keys=gallery.keys())
    return [heading, *side_by_side(gallery, predictions, picks(predictions, counts))]


def _kind(line: Line) -> str:
    """Return the name that an error starts with, such as ``RunFailed``; what it says stays out."""
    name = line.get("error", "").partition(":")[0]
    return name if name.isidentifier() else "see table.csv"
