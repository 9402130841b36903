"""Where the runs of a grid are done: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, Protocol

from tskd.comparison.job import Job, end_with, run_job
from tskd.errors import UserError
from tskd.extras import install

POLL_SECONDS = 1.0


class Executor(Protocol):
    """Does jobs side by side. A job keeps its outcome itself; what is told here is only that it has ended."""

    slots: int
    """Jobs that run at once."""

    def start(self, job: Job) -> None:
        """Start a job; there are never more than ``slots`` of them."""
        ...

    def ended(self) -> dict[str, str | None]:
        """Return the names of jobs that have ended since the last call, waiting about a second for one.

        A name comes with what killed the process, or None where it ended by itself.
        """
        ...


@contextmanager
def local_executor(workers: int) -> Iterator[LocalExecutor]:
    """Run jobs in ``workers`` processes of this machine; those still running at the end are stopped."""
    executor = LocalExecutor(workers)
    try:
        yield executor
    finally:
        executor.stop()


class LocalExecutor:
    """One fresh process a job: memory is counted from the same start, and a crash takes nothing else down."""

    def __init__(self, workers: int) -> None:
        self.slots = workers
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tskd.experiment.run"])  # imported once, not once a run
        self._running: dict[str, Any] = {}

    def start(self, job: Job) -> None:
        process = self._context.Process(target=_work, args=(job,), name=job.name)
        process.start()
        self._running[job.name] = process

    def ended(self) -> dict[str, str | None]:
        wait([process.sentinel for process in self._running.values()], timeout=POLL_SECONDS)
        codes = {name: process.exitcode for name, process in self._running.items() if process.exitcode is not None}
        for name in codes:
            self._running.pop(name).join()
        return {name: None if code == 0 else _describe_exit(code) for name, code in codes.items()}

    def stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.join()


def _work(job: Job) -> None:
    end_with(multiprocessing.parent_process())
    run_job(job)


def _describe_exit(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the process was killed, most often because memory ran out; use fewer --workers or a smaller batch_size"
    if code < 0:
        return f"the process ended by signal {signal.Signals(-code).name}"
    return f"the process ended with exit code {code}; what it printed says why"


@contextmanager
def ray_executor(
    *, address: str | None, slots: int | None, cpus: float, gpus: float, retries: int
) -> Iterator[Executor]:
    """Run jobs on a Ray cluster: the one at ``address``, or one on this machine that ends with the comparison.

    A run takes ``cpus`` and ``gpus`` (fractions allowed) and is tried again ``retries`` times where its machine fails.
    ``slots`` None: as many runs at once as the cluster has room for. Raises UserError where Ray is not installed or the
    cluster cannot be reached.
    """
    os.environ |= {"RAY_worker_niceness": "0"}  # before the import: a run gets as much of a busy machine as a local one
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--executor ray needs Ray. Install it with: {install('cluster')}") from error
    here = {} if address else {"num_cpus": max(1, math.ceil(cpus * (slots or 1))), "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **here)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = f"--address {address}: no Ray cluster answers" if address else "Ray could not be started here"
        raise UserError(f"{what} ({error}). See docs/how-to/compare.md, or leave --executor out.") from error
    try:
        room = _room([node["Resources"] for node in ray.nodes() if node["Alive"]], cpus, gpus)
        yield RayExecutor(ray, slots or room, cpus, gpus, retries)
    finally:
        ray.shutdown()


class RayExecutor:
    """One Ray task a job, each in a fresh worker process."""

    def __init__(self, ray: Any, slots: int, cpus: float, gpus: float, retries: int) -> None:
        self.slots = slots
        self._ray = ray
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": retries, "max_calls": 1}
        self._task = ray.remote(**options)(run_job)
        self._running: dict[Any, str] = {}

    def start(self, job: Job) -> None:
        self._running[self._task.remote(job)] = job.name

    def ended(self) -> dict[str, str | None]:
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=POLL_SECONDS)
        return {self._running.pop(task): self._trouble(task) for task in ready}

    def _trouble(self, task: Any) -> str | None:
        try:
            self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return str(error)
        return None


def _times(there: float, count: float) -> int:
    """Return how often ``count`` goes into what is there; 0.1 goes ten times into 1, though not in binary."""
    return math.floor(there / count + 1e-9)


def _room(machines: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """Return how many runs have room at a time; a run is on one machine. Raises UserError for none."""
    wanted = {kind: count for kind, count in (("CPU", cpus), ("GPU", gpus)) if count}
    rooms = [min((_times(one.get(kind, 0), count) for kind, count in wanted.items()), default=1) for one in machines]
    if not (room := sum(rooms)):
        there = ", ".join(f"{one.get('CPU', 0):g} and {one.get('GPU', 0):g}" for one in machines)
        raise UserError(
            f"a run asks for {cpus:g} CPUs and {gpus:g} GPUs of one machine, and the cluster's machines have {there}. "
            "Ask for less with --cpus and --gpus."
        )
    return room
