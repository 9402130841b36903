"""What a person sees of a comparison under way: a table on a terminal, lines where runs begin and end elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tskd.comparison.grid import GridRun
from tskd.comparison.job import Outcome
from tskd.console import duration, say, screen

_SHOWN = 8
"""Finished runs that stay in sight."""


class Board(Protocol):
    """Is told what happens."""

    def began(self, run: GridRun) -> None: ...

    def ended(self, run: GridRun, outcome: Outcome, seconds_left: float) -> None: ...

    def tick(self) -> None:
        """Time has passed."""
        ...


@contextmanager
def open_board(total: int) -> Iterator[Board]:
    """Show the progress of ``total`` runs on stderr."""
    if not sys.stderr.isatty():
        yield PlainBoard(total)
        return
    with Live(console=screen(stderr=True), refresh_per_second=2) as live:
        yield TableBoard(total, live)


class PlainBoard:
    """A line where a run begins and one where it ends."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def began(self, run: GridRun) -> None:
        say(f"compare: begun: {run.label}")

    def ended(self, run: GridRun, outcome: Outcome, seconds_left: float) -> None:
        self.done += 1
        left = f", about {duration(seconds_left)} left" if self.done < self.total else ""
        say(f"compare: {self.done}/{self.total}{left}; {run.label}: {result_of(outcome)}")

    def tick(self) -> None:
        pass


class TableBoard:
    """Runs under way with their time, the last finished ones with their Dice, and the time left."""

    def __init__(self, total: int, live: Live) -> None:
        self.total, self.live = total, live
        self.done = self.failures = 0
        self.running: dict[str, tuple[str, float]] = {}
        self.finished: deque[tuple[str, str, float]] = deque(maxlen=_SHOWN)
        self.left, self.left_at = 0.0, time.monotonic()

    def began(self, run: GridRun) -> None:
        self.running[run.name] = run.label, time.monotonic()

    def ended(self, run: GridRun, outcome: Outcome, seconds_left: float) -> None:
        label, began = self.running.pop(run.name)
        self.finished.append((label, result_of(outcome), time.monotonic() - began))
        self.done, self.failures = self.done + 1, self.failures + bool(outcome.error)
        self.left, self.left_at = seconds_left, time.monotonic()

    def tick(self) -> None:
        self.live.update(Group(self._headline(), self._table()))

    def _headline(self) -> str:
        left = max(self.left - (time.monotonic() - self.left_at), 0)
        shown = f", about {duration(left)} left" if self.done and self.done < self.total else ""
        failed = f", {self.failures} failed" if self.failures else ""
        return f"{self.done} of {self.total} runs done{failed}{shown}"

    def _table(self) -> Table:
        table = Table("run", "state", "time", box=None, padding=(0, 2))
        for label, result, seconds in self.finished:
            table.add_row(Text(label), Text(result), duration(seconds))
        for label, began in self.running.values():
            table.add_row(Text(label), "under way", duration(time.monotonic() - began), style="bold")
        return table


def result_of(outcome: Outcome) -> str:
    """Return a run's result in a few words."""
    if outcome.error is not None:
        return f"failed: {outcome.error}"
    return f"Dice {outcome.row['scores']['dice']:.3f}"
