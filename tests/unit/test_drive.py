"""The order of the runs and the loop that does them, with an executor that only pretends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tskd.comparison.drive import Queue, drive
from tskd.comparison.estimate import Estimator
from tskd.comparison.grid import GridRun
from tskd.comparison.job import Job, Outcome, build_job, read_outcome, state_path, write_outcome
from tskd.comparison.plan import Part, RunPlan
from tskd.recipe.schema import Recipe


def plan(name: str, **parts: int) -> RunPlan:
    """A run that needs parts of so many steps; equal names are shared parts."""
    missing = tuple(Part(part, "x", {"steps": steps}, 64) for part, steps in parts.items())
    return RunPlan(GridRun(name, {"method": name}, Recipe()), missing, (), "data")


def queue(tmp_path: Path, *plans: RunPlan) -> Queue:
    return Queue(plans, Estimator(tmp_path / "artifacts"))


def test_a_free_worker_takes_what_waits_least_for_the_others(tmp_path: Path) -> None:
    waiting = queue(
        tmp_path,
        plan("kd 0", teacher0=50, distill0=9),
        plan("teacher 0", teacher0=50),
        plan("kd 1", teacher1=50, distill1=9),
        plan("scratch", scratch=9),
    )
    assert [waiting.take().name for _ in range(4)] == ["kd 0", "kd 1", "scratch", "teacher 0"]


def test_when_all_must_wait_the_least_waits(tmp_path: Path) -> None:
    waiting = queue(tmp_path, plan("a", teacher=50, cache=9), plan("b", teacher=50, cache=9), plan("c", cache=9))
    assert [waiting.take().name for _ in range(3)] == ["a", "c", "b"]


def test_what_a_finished_run_made_is_waited_for_no_more(tmp_path: Path) -> None:
    waiting = queue(
        tmp_path, plan("a", teacher=50), plan("b", teacher=50, rest=1), plan("c", other=1), plan("d", other=1)
    )
    assert [waiting.take().name, waiting.take().name] == ["a", "c"]
    waiting.finish("a")
    assert waiting.take().name == "b"


def test_the_time_left_counts_shared_parts_once_and_follows_the_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    waiting = queue(tmp_path, plan("a", teacher=40, a=40), plan("b", teacher=40, b=40), plan("c", teacher=40, c=40))
    assert waiting.seconds_left(2) == pytest.approx(0.025 * 160 / 2)
    waiting.take()
    now[0] += 60
    waiting.finish("a")
    assert waiting.seconds_left(2) == pytest.approx(60), "80 steps took a minute, 80 are left"


def test_a_run_that_failed_has_made_what_is_there_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs share a teacher; the first fails in its first second: about a second was said to be left."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    waiting = queue(tmp_path, *(plan(name, cache=4, teacher=400, **{name: 400}) for name in "abc"))
    waiting.take()
    now[0] += 1
    waiting.finish("a", is_made=lambda part: part == "cache")
    assert waiting.seconds_left(1) == pytest.approx(300), "4 steps took a second, 1200 are left"


class Pretending:
    """Ends each job at once, as its name says."""

    slots = 2

    def __init__(self) -> None:
        self.running: list[Job] = []
        self.started: list[str] = []

    def start(self, job: Job) -> None:
        assert len(self.running) < self.slots
        self.running.append(job)
        self.started.append(job.name)

    def ended(self) -> dict[str, str | None]:
        job = self.running.pop(0)
        if job.name == "good":
            write_outcome(job.out, Outcome(job.name, None, {"scores": {"dice": 0.5}}, {}))
        return {job.name: "the process was killed" if job.name == "killed" else None}


class Silent:
    def __init__(self) -> None:
        self.ends: list[tuple[str, str | None]] = []

    def began(self, run: GridRun) -> None:
        pass

    def ended(self, run: GridRun, outcome: Outcome, seconds_left: float) -> None:
        self.ends.append((run.name, outcome.error))

    def tick(self) -> None:
        pass


def test_a_run_that_dies_is_taken_down_and_the_rest_goes_on(tmp_path: Path) -> None:
    board, executor = Silent(), Pretending()
    plans = [plan(name, **{name: 1}) for name in ("killed", "mute", "good")]
    write_outcome(tmp_path, Outcome("mute", "an old error", {}, {}))

    def job_of(run: GridRun) -> Job:
        return build_job(run, tmp_path, threads=1, download=False)

    drive(queue(tmp_path, *plans), executor, job_of, tmp_path, board)
    assert executor.started == ["killed", "mute", "good"]
    assert board.ends == [
        ("killed", "the process was killed"),
        ("mute", "the run ended without a result; its log may say why"),
        ("good", None),
    ]
    kept = read_outcome(tmp_path, "killed")
    assert kept is not None
    assert kept.error == "the process was killed"
    assert state_path(tmp_path, "good").is_file()
