"""The order of the runs, and the loop that starts them and takes down how they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from tskd.artifacts import ARTIFACTS, finished
from tskd.comparison.board import Board
from tskd.comparison.estimate import Estimator
from tskd.comparison.executors import Executor
from tskd.comparison.grid import GridRun
from tskd.comparison.job import Job, Outcome, failed, read_outcome, state_path, write_outcome
from tskd.comparison.plan import RunPlan, all_missing


class Queue:
    """Runs that wait and runs that are under way, with what is still to be made for them."""

    def __init__(self, plans: Sequence[RunPlan], estimator: Estimator) -> None:
        self.waiting = list(plans)
        self.running: dict[str, RunPlan] = {}
        self._seconds = {name: estimator.seconds(part)[0] for name, part in all_missing(plans).items()}
        self._made: set[str] = set()
        self._began = time.monotonic()

    def take(self) -> GridRun:
        """Start the run that has to wait least for what others are making, among equals the first.

        Two runs that need the same teacher train it once: one of them would only wait for the other.
        """
        making = _parts(self.running.values()) - self._made
        chosen = min(self.waiting, key=lambda plan: self._sum(_parts([plan]) & making))
        self.waiting.remove(chosen)
        self.running[chosen.run.name] = chosen
        return chosen.run

    def finish(self, name: str, *, is_made: Callable[[str], bool] = lambda _: True) -> GridRun:
        """Take a run out; of what it needed is made now what ``is_made`` says, and all where it is done."""
        plan = self.running.pop(name)
        self._made |= set(filter(is_made, _parts([plan])))
        return plan.run

    def seconds_left(self, slots: int) -> float:
        """Return the estimate for what is left, corrected by the pace so far."""
        left = self._sum(_parts([*self.running.values(), *self.waiting]) - self._made)
        made = self._sum(self._made)
        return left * (time.monotonic() - self._began) / made if made else left / slots

    def _sum(self, parts: Iterable[str]) -> float:
        return sum(self._seconds[name] for name in parts)


def drive(queue: Queue, executor: Executor, job_of: Callable[[GridRun], Job], out: Path, board: Board) -> None:
    """Do all runs of the queue; a failed one is taken down and the rest goes on."""
    while queue.waiting or queue.running:
        while queue.waiting and len(queue.running) < executor.slots:
            run = queue.take()
            state_path(out, run.name).unlink(missing_ok=True)  # of an attempt that failed
            executor.start(job_of(run))
            board.began(run)
        for name, trouble in executor.ended().items():
            outcome = _settle(out, name, trouble)
            made = partial(_is_made, out, outcome)
            board.ended(queue.finish(name, is_made=made), outcome, queue.seconds_left(executor.slots))
        board.tick()


def _settle(out: Path, name: str, trouble: str | None) -> Outcome:
    """Return how a run ended; where its process could not say so itself, it is written down for it."""
    outcome = read_outcome(out, name)
    if outcome is None:
        outcome = failed(name, trouble or "the run ended without a result; its log may say why")
        write_outcome(out, outcome)
    return outcome


def _is_made(out: Path, outcome: Outcome, part: str) -> bool:
    return outcome.error is None or finished(out / ARTIFACTS / part) is not None


def _parts(plans: Iterable[RunPlan]) -> set[str]:
    return {part.name for plan in plans for part in plan.missing}
