"""Bias and variance of predicted probabilities over training runs that differ in seed or label draw.

For R runs with probabilities p_r of one pixel and class and the label y (1 or 0), the mean squared error splits
exactly:

    mean_r (p_r - y)^2 = bias2 + variance
    variance = sum_r (p_r - mean)^2 / (R - 1)
    bias2    = (mean - y)^2 - variance / R

S. Geman, E. Bienenstock, R. Doursat, Neural networks and the bias/variance dilemma, Neural Computation 4(1), 1992,
section 2 (P. Domingos, ICML 2000, generalises it to other losses). Subtracting variance / R removes the part of the
variance that the squared distance of a mean over few runs still holds; without it a method looks the more biased the
fewer runs there are. bias2 may therefore be slightly negative. Labels are taken as noise-free: what annotators disagree
about sits in bias2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tskd.types import UNLABELLED


@dataclass(frozen=True)
class Decomposition:
    """Squared error of probabilities, summed over classes, mean over labelled pixels."""

    error: float
    """Mean over runs, measured by itself."""
    bias2: float
    variance: float
    remainder: float
    """error - bias2 - variance: zero but for rounding, since labels count as noise-free."""
    runs: int


class ErrorDecomposer:
    """Collects the probabilities of one image run by run; memory is three images whatever the number of runs."""

    def __init__(self, mask: np.ndarray, *, classes: int) -> None:
        """Take the mask (H, W) of class indices; ``UNLABELLED`` pixels are left out. Raises ValueError if all are."""
        self._labelled = mask != UNLABELLED
        if not self._labelled.any():
            raise ValueError("the mask has no labelled pixel: its error cannot be decomposed")
        present = mask[self._labelled]
        self._target = np.stack([present == label for label in range(classes + 1)]).astype(np.float64)
        self._mean = np.zeros_like(self._target)
        self._spread = np.zeros_like(self._target)
        self._error = 0.0
        self._runs = 0

    def add(self, probabilities: np.ndarray) -> None:
        """Add one run's probabilities (K + 1, H, W), background first. Raises ValueError for another shape."""
        expected = (len(self._target), *self._labelled.shape)
        if probabilities.shape != expected:
            raise ValueError(f"probabilities have shape {probabilities.shape}, expected {expected}, background first")
        values = probabilities[:, self._labelled].astype(np.float64)
        self._runs += 1
        # B. Welford, Technometrics 4(3), 1962: stable in one pass
        before = values - self._mean
        self._mean += before / self._runs
        self._spread += before * (values - self._mean)
        self._error += float(((values - self._target) ** 2).sum(axis=0).mean())

    def result(self) -> Decomposition:
        """Return the decomposition over the runs added. Raises ValueError for fewer than two."""
        if self._runs < 2:
            raise ValueError(f"bias and variance need two runs at least, {self._runs} given")
        variance = self._spread / (self._runs - 1)
        bias2 = (self._mean - self._target) ** 2 - variance / self._runs
        error = self._error / self._runs
        parts = float(bias2.sum(axis=0).mean()), float(variance.sum(axis=0).mean())
        return Decomposition(error, *parts, error - sum(parts), self._runs)


def mean_decomposition(images: Sequence[Decomposition]) -> Decomposition:
    """Return the mean over images, each counting the same. Raises ValueError for none or differing numbers of runs."""
    runs = {image.runs for image in images}
    if len(runs) != 1:
        raise ValueError(f"images must have the same number of runs, found {sorted(runs)}")
    terms = np.mean([(one.error, one.bias2, one.variance, one.remainder) for one in images], axis=0)
    error, bias2, variance, remainder = (float(term) for term in terms)
    return Decomposition(error, bias2, variance, remainder, runs.pop())
