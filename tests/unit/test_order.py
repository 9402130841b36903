from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tskd.engine.order import batch_order, order_with_foreground, part_of

COUNTS = st.integers(1, 40)
SIZES = st.integers(1, 50)


@settings(deadline=None)
@given(COUNTS, SIZES, st.integers(0, 2**62))
def test_every_epoch_is_a_permutation_whatever_the_batch_size(count: int, batch_size: int, seed: int) -> None:
    steps = -(-3 * count // batch_size)
    stream = np.concatenate([batch_order(count, batch_size, step, seed) for step in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(deadline=None)
@given(COUNTS, st.integers(1, 12), st.integers(0, 9))
def test_a_batch_depends_on_its_step_alone(count: int, batch_size: int, step: int) -> None:
    """The stream is the same however it is cut: a step can be asked for without those before it."""
    stream = np.concatenate([batch_order(count, 1, position, 5) for position in range((step + 1) * batch_size)])
    assert np.array_equal(batch_order(count, batch_size, step, 5), stream[step * batch_size :])


def test_epochs_and_seeds_differ() -> None:
    first, second = batch_order(50, 50, 0, 1), batch_order(50, 50, 1, 1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, batch_order(50, 50, 0, 2))


def test_the_order_is_the_same_on_every_machine() -> None:
    """Written down once: a checkpoint may be taken up by another process, machine or version of this package."""
    assert [batch_order(5, 4, step, 3).tolist() for step in range(3)] == [[3, 2, 4, 1], [0, 1, 3, 0], [4, 2, 3, 1]]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6))
def test_parts_are_equal_and_make_up_the_batch(parts: int, size: int) -> None:
    indices = batch_order(7, parts * size, 0, 0)
    cut = [indices[part_of(indices, part, parts)] for part in range(parts)]
    assert {len(rows) for rows in cut} == {size}
    assert np.array_equal(np.concatenate(cut), indices)


def test_distinct_batches_hold_no_image_twice_and_miss_none_for_long() -> None:
    batches = [batch_order(10, 4, step, 0, distinct=True) for step in range(20)]
    assert all(len(set(batch.tolist())) == 4 for batch in batches)
    assert [len({*a.tolist(), *b.tolist()}) for a, b in zip(batches[::2], batches[1::2])] == [8] * 10, "one epoch"
    assert set(np.concatenate(batches).tolist()) == set(range(10))


HOLDING = [np.array([0, 1, 2, 3, 4, 5]), np.array([], dtype=np.int64), np.array([7])]
"""Of 10 images six show the first class, none the second, one the third."""


def drawn(share: float, steps: int, batch_size: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and wanted classes of so many batches as one sequence."""
    batches = [order_with_foreground(10, HOLDING, share, batch_size, step, 3) for step in range(steps)]
    return np.concatenate([one for one, _ in batches]), np.concatenate([one for _, one in batches])


@settings(deadline=None)
@given(st.sampled_from([0.1, 0.25, 0.33, 0.5, 1.0]), st.integers(1, 9))
def test_a_share_of_the_images_is_drawn_for_the_classes_by_turns(share: float, batch_size: int) -> None:
    indices, wanted = drawn(share, 60, batch_size)
    assert (wanted > 0).sum() == np.floor(len(wanted) * share + 1e-9), "neither more nor less"
    chosen = wanted[wanted > 0]
    assert chosen.tolist() == ([1, 3] * len(chosen))[: len(chosen)], "the second class is nowhere to be seen"
    assert all(index in HOLDING[number - 1] for index, number in zip(indices, wanted) if number)


def test_each_image_of_a_class_comes_once_before_any_comes_twice() -> None:
    indices, wanted = drawn(0.5, 12)
    of_the_first = indices[wanted == 1]
    assert len(of_the_first) == 12
    assert sorted(of_the_first[:6]) == sorted(of_the_first[6:]) == HOLDING[0].tolist()
    usual = indices[wanted == 0]
    assert sorted(usual[:10]) == sorted(usual[10:20]) == list(range(10)), "the others go on where they were"


def test_foreground_is_spread_over_the_parts_of_a_batch() -> None:
    """Two processes that each take half of the batch see equally many."""
    _, wanted = order_with_foreground(10, HOLDING, 0.25, 16, 5, 0)
    assert [int((half > 0).sum()) for half in np.split(wanted, 2)] == [2, 2]


def test_a_step_with_foreground_can_be_asked_for_without_those_before_it() -> None:
    indices, wanted = drawn(0.33, 9)
    seventh = order_with_foreground(10, HOLDING, 0.33, 4, 7, 3)
    assert np.array_equal(seventh[0], indices[28:32])
    assert np.array_equal(seventh[1], wanted[28:32])
    assert np.array_equal(drawn(0.33, 3, 12)[0], indices), "however it is cut"


def test_without_any_class_the_order_is_the_usual_one() -> None:
    indices, wanted = order_with_foreground(10, [np.array([], dtype=np.int64)], 0.5, 4, 2, 3)
    assert np.array_equal(indices, batch_order(10, 4, 2, 3))
    assert not wanted.any()
