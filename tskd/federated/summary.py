"""What a federation found, for people: the table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tskd.artifacts import RUN_FILE
from tskd.console import duration, table_screen
from tskd.report.sites import guarantee, measures
from tskd.run_file import RunFile

if TYPE_CHECKING:
    from tskd.federated.server_run import Served


def print_federation(run: RunFile, out: Path) -> None:
    """Print the Dice of each model at each site, and what was sent, on stdout."""
    console = table_screen()
    federated = run.federated
    names = list(run.metrics)
    table = Table(title=f"{federated['strategy']}, {run.labels} labels at {len(_sites(run))} sites, seed {run.seed}")
    table.add_column("site")
    for title in ("cases", *(f"{name}, Dice (95 % interval)" for name in names), "MB down", "MB up"):
        table.add_column(title, justify="right")
    for site, cases in _sites(run).items():
        scores = [_score(federated["sites"][name][site]) for name in names]
        sent = federated["bytes"].get(site, {"down": 0, "up": 0})
        _add(table, site, cases, scores, sent)
    total = {way: sum(one[way] for one in federated["bytes"].values()) for way in ("down", "up")}
    _add(table, "all", run.metrics[names[0]]["n_cases"], [_score(run.metrics[name]) for name in names], total)
    console.print(table)
    if said := measures(federated["privacy"]):
        epsilon, delta = (federated["privacy"][name] for name in ("epsilon", "delta"))
        bound = "no epsilon" if epsilon is None else guarantee(epsilon, delta)
        console.print(Text(f"updates: {said}; {bound}"))
    console.print(Text(f"{duration(run.seconds)}; everything is in {out}, the figures in {out / RUN_FILE}"))


def _add(table: Table, site: str, cases: int, scores: Sequence[str], sent: Mapping[str, int]) -> None:
    megabytes = (f"{sent[way] / 1e6:.1f}" for way in ("down", "up"))
    table.add_row(*(Text(cell) for cell in (site, str(cases), *scores, *megabytes)))


def _sites(run: RunFile) -> dict[str, int]:
    """Return the sites and how many cases each has tested."""
    first = next(iter(run.federated["sites"].values()))
    return {name: one["n_cases"] for name, one in first.items()}


def _score(scores: Mapping[str, Any]) -> str:
    dice, interval = scores["dice"], scores["dice_ci95"]
    if dice is None:
        return "none to find"
    low, high = interval if isinstance(interval, list) else (None, None)
    return f"{dice:.3f}" if low is None else f"{dice:.3f} ({low:.3f} to {high:.3f})"


def print_served(served: Served, out: Path) -> None:
    """Print the rounds on stdout: who has answered, what was sent, the mean score on the sites' validation parts."""
    console = table_screen()
    table = Table()
    for title in ("round", "sites", "validation Dice", "MB down", "MB up", "s"):
        table.add_column(title, justify="left" if title == "sites" else "right")
    for one in served.rounds:
        score, seconds = one.get("score"), one["seconds"]
        sent = (f"{sum(site[way] for site in one['sites'].values()) / 1e6:.3f}" for way in ("down", "up"))
        cells = (
            str(one["round"]), ", ".join(one["sites"]), "-" if score is None else f"{score:.3f}", *sent,
            "-" if seconds is None else f"{seconds:.1f}",
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    console.print(Text(f"the result, {served.result_bytes / 1e6:.1f} MB, went to {', '.join(served.kept)}"))
    console.print(Text(f"{duration(served.seconds)}; everything is in {out}"))
