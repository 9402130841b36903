"""Frames are answered several at a time and come back in order, with memory that does not grow."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tskd.deploy import looking
from tskd.deploy.looking import look_ahead
from tskd.deploy.network_file import Answer
from tskd.errors import UserError


def answered(image: np.ndarray) -> Answer:
    return Answer(image[..., 0], image[None, ..., 0].astype(np.float32), 1.0)


def picture(value: int, side: int = 2) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def test_the_slowest_first_answer_does_not_change_the_order() -> None:
    def slow_at_first(image: np.ndarray) -> Answer:
        time.sleep(0.05 if image[0, 0, 0] == 0 else 0)
        return answered(image)

    looks = look_ahead(range(6), picture, slow_at_first, 3)
    assert [(look.frame, look.taken()[1].classes[0, 0]) for look in looks] == [(n, n) for n in range(6)]


def test_answers_are_made_side_by_side() -> None:
    """Each waits for the other: one at a time would never end."""
    both = threading.Barrier(2, timeout=10)

    def together(image: np.ndarray) -> Answer:
        both.wait()
        return answered(image)

    assert [look.taken()[0][0, 0, 0] for look in look_ahead(range(4), picture, together, 2)] == [0, 1, 2, 3]


def test_what_cannot_be_read_or_answered_is_raised_in_its_turn() -> None:
    def read(number: int) -> np.ndarray:
        if number == 1:
            raise UserError("1 is damaged")
        return picture(number)

    def ask(image: np.ndarray) -> Answer:
        if image[0, 0, 0] == 2:
            raise ValueError("2 fails")
        return answered(image)

    first, second, third, fourth = look_ahead(range(4), read, ask, 2)
    assert first.taken()[0][0, 0, 0] == 0
    with pytest.raises(UserError, match="1 is damaged"):
        second.taken()
    with pytest.raises(ValueError, match="2 fails"):
        third.taken()
    assert fourth.taken()[0][0, 0, 0] == 3


@pytest.mark.parametrize(("side", "ahead"), [(2, 3), (40, 1), (200, 0)])
def test_no_more_is_read_ahead_than_there_are_workers_or_pixels_allowed(
    side: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand large images in memory at once ended the process."""
    monkeypatch.setattr(looking, "MOST_PIXELS", 2000)
    read: list[int] = []

    def reading(number: int) -> np.ndarray:
        read.append(number)
        return picture(number, side)

    looks: Iterator[Any] = look_ahead(range(10), reading, answered, 3)
    for number in range(5):
        assert next(looks).frame == number
        assert len(read) - (number + 1) <= ahead


def test_stopping_ends_what_waits() -> None:
    asked: list[int] = []

    def ask(image: np.ndarray) -> Answer:
        asked.append(int(image[0, 0, 0]))
        time.sleep(0.01)
        return answered(image)

    looks = look_ahead(range(100), picture, ask, 2)
    next(looks)
    looks.close()
    assert len(asked) <= 4
    assert not [one for one in threading.enumerate() if one.name.startswith("tskd-predict")]
