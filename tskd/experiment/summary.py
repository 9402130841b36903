"""What a run found, for people: the summary on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from tskd.console import duration, table_screen
from tskd.report import REPORT
from tskd.report.run.ablation import uses_sentence
from tskd.report.run.folder import STUDENT, RunFolder
from tskd.report.run.verdict import verdict
from tskd.report.text import (
    FALSE_POSITIVE,
    INTERVAL,
    MISSED,
    capital,
    dice_of,
    false_positives,
    interval_of,
    missed,
    number,
    scored,
    without_idle,
)


def print_summary(run: RunFolder) -> None:
    """Print the scores of a finished run and the verdict on stdout."""
    console = table_screen()
    out, summary = run.path, run.summary
    tested = f"tested on {scored(run.metrics[STUDENT])}"
    table = Table(title=Text(f"{summary.dataset}, {summary.labels} labels, {tested}, seed {summary.seed}"))
    titles = ("model", dice_of(run.level), INTERVAL, f"HD95 {run.unit}", "cases", MISSED, FALSE_POSITIVE)
    columns, rows = without_idle(titles, ([*_cells(run, name)] for name in run.models))
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    console.print(Text(verdict(run, run.tests)))
    if said := uses_sentence(run.metrics[STUDENT]["dice"], summary.ablation):
        console.print(Text(said))
    console.print(Text(f"{duration(summary.seconds)}; everything is in {out}, to be read in {out / REPORT}"))


def _cells(run: RunFolder, name: str) -> Iterator[str]:
    scores = run.metrics[name]
    yield capital(run.title(name))
    yield number(scores["dice"])
    yield interval_of(scores, "dice")
    yield number(scores[f"hd95_{run.unit}"], 1)
    yield str(scores["n_cases"])
    yield missed(scores)
    yield false_positives(scores)
