from __future__ import annotations

import numpy as np
import pytest

from tskd.metrics.bias_variance import Decomposition, ErrorDecomposer, mean_decomposition
from tskd.types import UNLABELLED


def probabilities(foreground: float) -> np.ndarray:
    """One class, one pixel: background and foreground."""
    return np.array([1 - foreground, foreground]).reshape(2, 1, 1)


def decompose(mask: np.ndarray, runs: list[np.ndarray]) -> Decomposition:
    decomposer = ErrorDecomposer(mask, classes=len(runs[0]) - 1)
    for run in runs:
        decomposer.add(run)
    return decomposer.result()


def test_two_runs_by_hand() -> None:
    """Foreground 0.6 and 0.8, label 1: errors 2 x 0.16 and 2 x 0.04; mean 0.7, variance 0.02 a channel."""
    found = decompose(np.ones((1, 1), np.uint8), [probabilities(0.6), probabilities(0.8)])
    assert found.error == pytest.approx(0.2)
    assert found.variance == pytest.approx(2 * 0.02)
    assert found.bias2 == pytest.approx(2 * (0.3**2 - 0.01))
    assert found.remainder == pytest.approx(0, abs=1e-12)
    assert found.runs == 2


def test_runs_that_agree_have_no_variance_and_right_ones_no_bias() -> None:
    mask = np.ones((1, 1), np.uint8)
    agreed = decompose(mask, [probabilities(0.5)] * 3)
    assert (agreed.variance, agreed.bias2) == (0, pytest.approx(0.5))
    right = decompose(mask, [probabilities(1.0)] * 3)
    assert (right.error, right.bias2, right.variance) == (0, 0, 0)


def test_error_is_the_sum_of_its_parts_on_several_classes() -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 4, (6, 5)).astype(np.uint8)
    runs = [rng.dirichlet(np.ones(4), size=(6, 5)).transpose(2, 0, 1) for _ in range(5)]
    found = decompose(mask, runs)
    target = np.eye(4)[mask].transpose(2, 0, 1)
    assert found.error == pytest.approx(np.mean([((run - target) ** 2).sum(axis=0).mean() for run in runs]))
    assert found.variance == pytest.approx(np.var(runs, axis=0, ddof=1).sum(axis=0).mean())
    assert found.remainder == pytest.approx(0, abs=1e-12)


def test_bias_does_not_depend_on_the_number_of_runs() -> None:
    """Runs scatter by 0.1 around 0.7 for label 1: bias2 is 2 x 0.09 whether there are 3 runs or 30."""
    rng = np.random.default_rng(0)
    mask = np.ones((300, 300), np.uint8)
    for runs in (3, 30):
        drawn = [0.7 + 0.1 * rng.standard_normal((300, 300)) for _ in range(runs)]
        found = decompose(mask, [np.stack([1 - one, one]) for one in drawn])
        assert found.bias2 == pytest.approx(0.18, abs=0.002)
        assert found.variance == pytest.approx(0.02, abs=0.001)


def test_unlabelled_pixels_are_left_out() -> None:
    mask = np.array([[1, UNLABELLED]], np.uint8)
    runs = [np.array([[[0.5, x]], [[0.5, 1 - x]]]) for x in (0.0, 1.0)]
    found = decompose(mask, runs)
    assert (found.error, found.variance) == (pytest.approx(0.5), 0)


def test_what_cannot_be_decomposed_is_refused() -> None:
    decomposer = ErrorDecomposer(np.ones((2, 2), np.uint8), classes=1)
    with pytest.raises(ValueError, match=r"\(1, 2, 2\), expected \(2, 2, 2\)"):
        decomposer.add(np.zeros((1, 2, 2)))
    decomposer.add(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="two runs"):
        decomposer.result()
    with pytest.raises(ValueError, match="no labelled pixel"):
        ErrorDecomposer(np.full((2, 2), UNLABELLED, np.uint8), classes=1)


def test_images_count_the_same_and_need_the_same_runs() -> None:
    one, other = Decomposition(0.4, 0.3, 0.1, 0.0, 3), Decomposition(0.2, 0.1, 0.1, 0.0, 3)
    mean = mean_decomposition([one, other])
    assert (mean.error, mean.bias2, mean.variance, mean.runs) == pytest.approx((0.3, 0.2, 0.1, 3))
    with pytest.raises(ValueError, match="same number of runs"):
        mean_decomposition([one, Decomposition(0.2, 0.1, 0.1, 0.0, 4)])
