from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tskd.engine.order import batch_order, part_of

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
