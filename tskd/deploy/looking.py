"""Work on the frames of many inputs, several at a time: results come back in order, in memory that does not grow."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tskd.console import Advance


class Discardable(Protocol):
    """A result that leaves something behind unless it is used."""

    def discard(self) -> None:
        """Remove what is left; does nothing where the result was used."""


_SWITCH_SECONDS = 0.0005  # Python's own is 0.005, a third of what a small network takes for an image
Frame = TypeVar("Frame")
Result = TypeVar("Result", bound=Discardable)


@dataclass(frozen=True)
class Look(Generic[Frame, Result]):
    """One frame, and what will have been made of it."""

    frame: Frame
    future: Future[Result]

    def taken(self) -> Result:
        """Return the result, waiting for it; raises what the work raised."""
        return self.future.result()

    def discard(self) -> None:
        """Discard the result, now or in the thread that makes it, which Ctrl-C does not reach."""
        self.future.cancel()
        self.future.add_done_callback(_discard)


def _discard(future: Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().discard()


class FrameProgress:
    """How far all is, tiles of large images that are being answered included."""

    def __init__(self) -> None:
        self.advance: Advance | None = None
        """None: nothing is shown yet."""
        self._frames, self._shown, self._parts = 0, 0.0, dict[int, float]()
        self._lock = threading.Lock()

    def at_frame(self, before: int, frames: int) -> None:
        """Say that so many frames are done."""
        with self._lock:
            self._frames = before + frames
            self._show()

    @contextmanager
    def tiles(self, count: int) -> Iterator[Callable[[], None]]:
        """Yield what says that one of the tiles of an image is answered; threads may each have an image."""
        own, answered = threading.get_ident(), 0

        def answer() -> None:
            nonlocal answered
            answered += 1
            with self._lock:
                self._parts[own] = answered / count
                self._show(f"tile {answered} of {count}")

        try:
            yield answer
        finally:
            with self._lock:
                self._parts.pop(own, None)

    def _show(self, note: str = "") -> None:
        self._shown = max(self._shown, self._frames + sum(self._parts.values()))
        if self.advance is not None:
            self.advance(self._shown, note)


class Closed(Exception):
    """There will be no room any more: the work is being stopped."""


class Room:
    """Bounds how many pixels are worked on at a time; an image that is larger goes alone."""

    def __init__(self, most: int) -> None:
        self.most, self.taken, self.is_closed = most, 0, False
        self._changed = threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Hold room for so many pixels, once there is that much; raises Closed where there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_closed or not self.taken or self.taken + pixels <= self.most)
            self.require_open()
            self.taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self.taken -= pixels
                self._changed.notify_all()

    def require_open(self) -> None:
        """Raise Closed where the work is being stopped."""
        if self.is_closed:
            raise Closed

    def close(self) -> None:
        """Let nothing in that has not begun."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()


@contextmanager
def handing_over_quickly() -> Iterator[None]:
    """Let a thread that comes back from the network wait a tenth as long for one that holds the interpreter.

    It is the whole process that does so, and so for whoever owns it: not for a library, whose calls may overlap.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def look_ahead(
    frames: Iterable[Frame], work: Callable[[Frame], Result], workers: int
) -> Generator[Look[Frame, Result], None, None]:
    """Yield each frame's look in order, while up to ``workers`` later frames are worked on by as many threads.

    A result that was not used when the next look is asked for is discarded, as are all that are left where the looks
    are closed; no thread outlives them.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tskd-predict")
    waiting: deque[Look[Frame, Result]] = deque()
    try:
        for frame in frames:
            waiting.append(Look(frame, pool.submit(work, frame)))
            if len(waiting) > workers:
                yield waiting[0]
                waiting[0].discard()
                waiting.popleft()
        while waiting:
            yield waiting[0]
            waiting[0].discard()
            waiting.popleft()
    finally:
        for look in waiting:
            look.discard()
        pool.shutdown()
