"""Confidence is the mean margin near what was found: checked against a plain loop and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tskd.deploy.confidence import confidence, of_volume


def by_loop(labels: np.ndarray, probabilities: np.ndarray) -> float:
    border = max(1, round(max(labels.shape) / 64))
    margins = []
    for row, column in np.ndindex(*labels.shape):
        window = labels[max(row - border, 0) : row + border + 1, max(column - border, 0) : column + border + 1]
        if window.any():
            first, second = sorted(probabilities[:, row, column])[:-3:-1]
            margins.append(first - second)
    return float(np.mean(margins))


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("shape", [(20, 31), (130, 9)])
def test_it_is_the_mean_margin_over_the_mask_and_a_border(classes: int, shape: tuple[int, int]) -> None:
    drawn = np.random.default_rng(classes).random((classes + 1, *shape), dtype=np.float32)
    probabilities = drawn / drawn.sum(axis=0)
    labels = np.zeros(shape, np.uint8)
    labels[0:3, 2:5] = labels[shape[0] - 2, shape[1] - 1] = classes
    assert confidence(labels, probabilities) == pytest.approx(by_loop(labels, probabilities), rel=1e-5)


def test_where_nothing_was_found_the_least_certain_hundredth_counts() -> None:
    lesion = np.zeros((10, 20), np.float32)
    lesion[3, 4], lesion[5, 6] = 0.4, 0.3  # two of 200 pixels: margins 0.2 and 0.4
    found = confidence(np.zeros((10, 20), np.uint8), np.stack([1 - lesion, lesion]))
    assert found == pytest.approx(0.3)


def test_a_volume_is_as_sure_as_the_slices_that_show_something() -> None:
    assert of_volume([0.2, 0.8, 1.0], [30, 10, 0]) == pytest.approx(0.35)
    assert of_volume([0.2, 0.4], [0, 0]) == pytest.approx(0.3)
