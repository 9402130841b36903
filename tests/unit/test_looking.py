"""Frames are worked on several at a time and come back in order, with memory that does not grow."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from tskd.deploy.looking import Closed, Room, handing_over_quickly, look_ahead
from tskd.errors import UserError


@dataclass
class Result:
    """What was made of a frame, and how often it was discarded."""

    number: int
    discarded: list[int] = field(default_factory=list)
    is_used: bool = False

    def discard(self) -> None:
        if not self.is_used:
            self.discarded.append(self.number)


def alive() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("tskd-predict")]


def test_the_slowest_first_result_does_not_change_the_order() -> None:
    def slow_at_first(number: int) -> Result:
        time.sleep(0.05 if number == 0 else 0)
        return Result(number)

    looks = look_ahead(range(6), slow_at_first, 3)
    assert [(look.frame, look.taken().number) for look in looks] == [(n, n) for n in range(6)]
    assert alive() == []


def test_frames_are_worked_on_side_by_side() -> None:
    """Each waits for the other: one at a time would never end."""
    both = threading.Barrier(2, timeout=10)

    def together(number: int) -> Result:
        both.wait()
        return Result(number)

    assert [look.taken().number for look in look_ahead(range(4), together, 2)] == [0, 1, 2, 3]


def test_what_goes_wrong_is_raised_in_its_turn() -> None:
    def work(number: int) -> Result:
        if number == 1:
            raise UserError("1 is damaged")
        return Result(number)

    looks = look_ahead(range(3), work, 2)
    assert next(looks).taken().number == 0
    with pytest.raises(UserError, match="1 is damaged"):
        next(looks).taken()
    assert next(looks).taken().number == 2
    looks.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_is_begun_ahead_than_there_are_workers(workers: int) -> None:
    """Two thousand images in memory at once ended the process: red where all are handed to the threads at once."""
    begun: list[int] = []

    def work(number: int) -> Result:
        begun.append(number)
        return Result(number)

    looks = look_ahead(range(20), work, workers)
    for number in range(8):
        assert next(looks).taken().number == number
        time.sleep(0.005)
        assert len(begun) <= number + 1 + workers
    looks.close()


def test_a_result_that_was_passed_by_is_discarded_and_one_that_was_used_is_not() -> None:
    """Red where files of slices whose volume failed stay behind, hidden, in the results."""
    discarded: list[int] = []
    for look in look_ahead(range(5), lambda number: Result(number, discarded), 2):
        if look.frame % 2:
            look.taken().is_used = True
    assert discarded == [0, 2, 4]


def test_stopping_leaves_no_thread_and_no_result_behind() -> None:
    """Red where work goes on after Ctrl-C, or what it had written stays: that of the frame being waited for too."""
    begun, discarded, go_on = [], [], threading.Event()

    def work(number: int) -> Result:
        begun.append(number)
        if number:
            go_on.wait(10)
        return Result(number, discarded)

    looks = look_ahead(range(100), work, 2)
    next(looks).taken().is_used = True
    assert next(looks).frame == 1
    threading.Timer(0.02, go_on.set).start()
    looks.close()
    assert alive() == []
    assert sorted(discarded) == [one for one in sorted(begun) if one]
    assert len(begun) <= 4


def test_a_second_interrupt_while_the_first_is_waited_for_leaves_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where results are discarded by the thread that Ctrl-C ends."""
    go_on, begun, discarded = threading.Event(), list[int](), list[int]()
    shut = ThreadPoolExecutor.shutdown

    def interrupted(pool: ThreadPoolExecutor, wait: bool = True) -> None:
        shut(pool, wait=False)
        raise KeyboardInterrupt

    def work(number: int) -> Result:
        begun.append(number)
        if number:
            go_on.wait(10)
        return Result(number, discarded)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", interrupted)
    looks = look_ahead(range(3), work, 2)
    next(looks).taken().is_used = True
    until = time.monotonic() + 10
    while len(begun) < 3 and time.monotonic() < until:  # what has not begun is never made
        time.sleep(0.005)
    with pytest.raises(KeyboardInterrupt):
        looks.close()
    go_on.set()
    until = time.monotonic() + 10
    while (alive() or len(discarded) < 2) and time.monotonic() < until:
        time.sleep(0.005)
    assert sorted(discarded) == [1, 2]


def test_work_that_fails_while_it_is_stopped_ends_nothing_else() -> None:
    def work(number: int) -> Result:
        time.sleep(0.01)
        raise OSError("the disk is full")

    looks = look_ahead(range(10), work, 3)
    with pytest.raises(OSError, match="the disk is full"):
        next(looks).taken()
    looks.close()
    assert alive() == []


@pytest.mark.parametrize(("sizes", "most"), [([400] * 6, 2), ([600] * 6, 1), ([5000] * 3, 1), ([5000, 10, 5000], 1)])
def test_room_bounds_the_pixels_in_work_and_a_larger_image_goes_alone(sizes: list[int], most: int) -> None:
    """Red where large images are in memory together, or one that is too large waits for ever."""
    room, inside, seen = Room(1000), [0, 0], [0]
    lock = threading.Lock()

    def work(pixels: int) -> None:
        with room.of(pixels):
            with lock:
                inside[0] += 1
                inside[1] += pixels
                seen.append(inside[0])
                assert inside[0] == 1 or inside[1] <= 1000
            time.sleep(0.005)
            with lock:
                inside[0] -= 1
                inside[1] -= pixels

    with ThreadPoolExecutor(4) as pool:
        try:
            list(pool.map(work, sizes, timeout=10))
        finally:
            room.close()
    assert max(seen) == most


def test_a_closed_room_turns_away_who_waits() -> None:
    """Red where Ctrl-C waits until every large image that was queued is answered, one after the other."""
    room = Room(10)

    def wait() -> None:
        with room.of(10):
            raise AssertionError("went in")

    with ThreadPoolExecutor(1) as pool, room.of(10):
        waiting = pool.submit(wait)
        room.require_open()
        room.close()
        with pytest.raises(Closed):
            room.require_open()
        with pytest.raises(Closed):
            waiting.result(timeout=10)


def test_room_is_free_again_after_an_error() -> None:
    room = Room(10)
    with pytest.raises(UserError), room.of(10):
        raise UserError("damaged")
    with room.of(10):
        assert room.taken == 10


def test_the_interpreter_switches_as_before_once_the_work_is_done() -> None:
    before = sys.getswitchinterval()
    with handing_over_quickly():
        assert sys.getswitchinterval() < before
    assert sys.getswitchinterval() == before
    with pytest.raises(UserError), handing_over_quickly():
        raise UserError("damaged")
    assert sys.getswitchinterval() == before
