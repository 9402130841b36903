"""How many requests are worked on at once and how many wait; one more is told to come again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from tskd.serve.limits import Limits, Refused
from tskd.serve.metrics import Metrics

RETRY_AFTER = 2
"""Seconds."""
_Result = TypeVar("_Result")


class Gate:
    """One a server."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self.admitted = 0
        self.places = asyncio.Semaphore(limits.at_once)
        self.is_quiet = threading.Event()
        """Set while no request is in: what can wait may work."""
        self.is_quiet.set()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place from the first byte of an upload to the end of its work; 503 where none is free."""
        if self.admitted >= self.limits.at_once + self.limits.waiting:
            raise Refused(503, "The server is busy; try again in a moment.", {"retry-after": str(RETRY_AFTER)})
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    async def work(self, task: Callable[[], _Result]) -> _Result:
        """Do a task in a thread when its turn comes."""
        async with self.places:
            self.metrics.working.inc()
            try:
                return await run_in_threadpool(task)
            finally:
                self.metrics.working.dec()

    def _change(self, by: int) -> None:
        self.admitted += by
        self.metrics.admitted.set(self.admitted)
        (self.is_quiet.clear if self.admitted else self.is_quiet.set)()
