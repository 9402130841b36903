"""Frames of many inputs, read one after the other and answered several at a time; they come back in their order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from tskd.deploy.network_file import Answer

Frame = TypeVar("Frame")
MOST_PIXELS = 16_000_000
"""Read and not yet taken: an answer needs some 35 bytes a pixel while it is made. One larger image goes alone."""


@dataclass(frozen=True)
class Look(Generic[Frame]):
    """One frame, what was read and what the network makes of it."""

    frame: Frame
    image: np.ndarray | None
    problem: Exception | None
    """Why the image could not be read."""
    future: Future[Answer] | None

    def taken(self) -> tuple[np.ndarray, Answer]:
        """Return image and answer, waiting for it; raises what reading or asking raised."""
        if self.problem is not None:
            raise self.problem
        assert self.image is not None
        assert self.future is not None
        return self.image, self.future.result()


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def look_ahead(
    frames: Iterable[Frame], read: Callable[[Frame], np.ndarray], ask: Callable[[np.ndarray], Answer], workers: int
) -> Generator[Look[Frame], None, None]:
    """Yield each frame's look in order, while up to ``workers`` later ones are answered.

    Reading stays in the thread that takes the looks, as decoders ask for; ``ask`` has to bear several threads.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tskd-predict")
    waiting: deque[Look[Frame]] = deque()
    try:
        for frame in frames:
            waiting.append(_look(frame, read, lambda image: pool.submit(ask, image)))
            while len(waiting) > workers or _pixels(waiting) > MOST_PIXELS:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _look(
    frame: Frame, read: Callable[[Frame], np.ndarray], submit: Callable[[np.ndarray], Future[Answer]]
) -> Look[Frame]:
    try:
        image = read(frame)
    except Exception as error:  # noqa: BLE001 it belongs to this frame, and is raised when its turn comes
        return Look(frame, None, error, None)
    return Look(frame, image, None, submit(image))


def _pixels(looks: Iterable[Look[Frame]]) -> int:
    return sum(look.image.shape[0] * look.image.shape[1] for look in looks if look.image is not None)
