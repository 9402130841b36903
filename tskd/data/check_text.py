"""A check report as text for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tskd.console import printable
from tskd.data.duplicates import settle_duplicates
from tskd.data.files import readable, shown
from tskd.data.labels import COLOUR

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tskd.data.check import CheckReport, Problem
    from tskd.data.duplicates import DuplicatePair
    from tskd.types import Record

_SHOWN = 5


def report_to_json(report: CheckReport) -> dict[str, Any]:
    """Return the report as JSON values; paths are relative to the root."""
    by_count = report.sizes.most_common()
    return {
        "name": report.name,
        "layout": report.layout,
        "usable": report.usable,
        "images": len(report.records),
        "cases": len({record.case for record in report.records}),
        "volumes": len(_slices(report.records)),
        "labelled": len(report.presence),
        "unlabelled": sum(record.mask is None for record in report.records),
        "empty_masks": len(report.empty_masks),
        "sizes": [{"height": height, "width": width, "images": count} for (height, width), count in by_count],
        "file_kinds": dict(report.file_kinds.most_common()),
        "classes": [asdict(one) for one in report.classes],
        "mask_values": {show_value(value): count for value, count in sorted(report.mask_values.items())},
        "label_map": {show_value(value): index for value, index in report.label_map.items()},
        "splits": {split or "not stated": count for split, count in report.splits.items()},
        "duplicates": [asdict(pair) for pair in report.duplicates],
        "problems": [_as_json(problem) for problem in report.problems],
        "notes": [readable(note) for note in report.notes],
    }


def _as_json(problem: Problem) -> dict[str, str]:
    texts = asdict(problem) | {"path": problem.path.as_posix()}
    return {name: readable(text) for name, text in texts.items()}


def render_report(report: CheckReport, console: Console) -> None:
    """Print the report: what is there, classes, duplicates, problems, and the verdict last."""
    console.print(f"\n[bold]{_escape(report.name)}[/bold] [dim](layout {report.layout})[/dim]", highlight=False)
    console.print(_facts_table(report))
    if report.classes:
        console.print(_class_table(report))
    if report.duplicates:
        console.print(_duplicate_table(report.duplicates))
    if report.problems:
        console.print(_problem_table(report.problems))
    console.print(_verdict(report), highlight=False)


def show_value(value: int) -> str:
    """Return a raw mask value as people write it: a number or ``#rrggbb``."""
    return f"#{value - COLOUR:06x}" if value >= COLOUR else str(value)


def _facts_table(report: CheckReport) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(report):
        table.add_row(name, _escape(value))
    return table


def _facts(report: CheckReport) -> Iterator[tuple[str, str]]:
    records = report.records
    cases, joined = _cases(records), _cases(settle_duplicates(records, report.duplicates))
    alike = f"; in a run {joined}, images that look alike being one case" if joined < cases else ""
    yield "images", f"{len(records)} in {cases} cases{alike}"
    if slices := _slices(records):
        counts = sorted(slices.values())
        depth = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
        yield "volumes", f"{len(slices)} of {depth} slices, which are scored as volumes"
    unlabelled = sum(record.mask is None for record in records)
    broken = len(records) - unlabelled - len(report.presence)
    yield "labelled", f"{len(report.presence)}, of which {len(report.empty_masks)} with an empty mask"
    if unlabelled:
        yield "unlabelled", str(unlabelled)
    if broken:
        yield "broken masks", str(broken)
    yield (
        "sizes",
        _most_common(Counter({f"{width}x{height}": count for (height, width), count in report.sizes.items()})),
    )
    yield "files", _most_common(report.file_kinds)
    yield "split", _split_text(report.splits)
    for note in report.notes:
        yield "note", note


def _slices(records: Sequence[Record]) -> Counter[str]:
    """Return the number of slices of each volume; empty where all are single images."""
    counts = Counter(record.volume for record in records if record.volume is not None)
    return counts if any(count > 1 for count in counts.values()) else Counter()


def _cases(records: Sequence[Record]) -> int:
    return len({record.case for record in records})


def _split_text(splits: Counter[str | None]) -> str:
    stated = Counter({split: count for split, count in splits.items() if split is not None})
    if not stated:
        return "none stated: drawn by case from the seed"
    drawn = f"; {splits[None]} without one: drawn by case from the seed" if splits[None] else ""
    held_out = "" if "test" in stated else "; no test set stated: one is held out by case"
    return f"{_most_common(stated)} stated{drawn}{held_out}"


def _most_common(counts: Counter[str]) -> str:
    shown = [f"{name} ({count})" for name, count in counts.most_common(_SHOWN)]
    more = [f"{len(counts) - _SHOWN} more"] if len(counts) > _SHOWN else []
    return ", ".join(shown + more)


def _class_table(report: CheckReport) -> Table:
    table = _titled_table("Classes", "index", "class", "mask value", "masks with it", "share of pixels")
    for column in (0, 3, 4):
        table.columns[column].justify = "right"
    labelled = max(len(report.presence), 1)
    for one in report.classes:
        values = ", ".join(show_value(value) for value, index in report.label_map.items() if index == one.index)
        masks = f"{one.images} ({one.images / labelled:.0%})"
        table.add_row(str(one.index), _escape(one.name), values or "-", masks, f"{one.share:.2%}")
    return table


def _duplicate_table(pairs: Iterable[DuplicatePair]) -> Table:
    pairs = list(pairs)
    exact = sum(pair.exact for pair in pairs)
    table = _titled_table(
        f"Duplicates across cases: {exact} exact, {len(pairs) - exact} near", "kind", "image", "image", "bits apart"
    )
    table.columns[3].justify = "right"
    for pair in pairs[:_SHOWN]:
        table.add_row(
            "exact" if pair.exact else "near",
            _escape(shown(pair.first)),
            _escape(shown(pair.second)),
            str(pair.distance),
        )
    if len(pairs) > _SHOWN:
        table.add_row("", f"and {len(pairs) - _SHOWN} more: --json lists them all", "", "")
    return table


def _problem_table(problems: Iterable[Problem]) -> Table:
    table = _titled_table("Problems", "", "file", "what is wrong, and what to do")
    table.columns[1].overflow = "fold"
    styles = {"error": "bold red", "warning": "yellow"}
    for problem in sorted(problems, key=lambda one: (one.severity, one.path)):
        mark = f"[{styles[problem.severity]}]{problem.severity}[/]"
        path = "all" if not problem.path.name else shown(problem.path.as_posix())
        table.add_row(mark, _escape(path), f"{_escape(problem.message)} [dim]{_escape(problem.remedy)}[/dim]")
    return table


def _titled_table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=f"\n {title}", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 1))
    for column in columns:
        table.add_column(column, header_style="dim")
    return table


def _verdict(report: CheckReport) -> str:
    counts = Counter(problem.severity for problem in report.problems)
    tally = f"{counts['error']} error(s), {counts['warning']} warning(s)"
    verdict = "[bold green]Usable[/]" if report.usable else "[bold red]Not usable yet[/]"
    return f"\n {verdict}: {tally}."


def _escape(text: str) -> str:
    """Return text as it is: nothing in it is markup, and nothing in it is obeyed by the terminal."""
    from rich.markup import escape

    return escape("\n".join(shown(line) for line in printable(text).split("\n")))
