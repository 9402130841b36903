"""Does a model know when it is wrong? Calibration, and how well its confidence orders its answers by their Dice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tskd.metrics.intervals import LEAST_CASES, percentile_interval
from tskd.seeding import numpy_generator

BINS = 15
RESAMPLES = 2000


@dataclass
class Calibration:
    """Counts of pixels by how sure the model is of them: the expected calibration error of many images, streamed.

    Source: C. Guo et al., On calibration of modern neural networks, ICML 2017, equation 3.
    """

    pixels: np.ndarray
    sure: np.ndarray
    """Sum of the probabilities of the answered class in each bin."""
    right: np.ndarray

    @classmethod
    def empty(cls) -> Calibration:
        """Return one without pixels."""
        return cls(np.zeros(BINS), np.zeros(BINS), np.zeros(BINS))

    def add(self, probability: np.ndarray, right: np.ndarray) -> None:
        """Count pixels (N,): the probability of the class that is answered, and whether it is the true one."""
        places = np.minimum((probability * BINS).astype(int), BINS - 1)
        self.pixels += np.bincount(places, minlength=BINS)
        self.sure += np.bincount(places, weights=probability, minlength=BINS)
        self.right += np.bincount(places, weights=right, minlength=BINS)

    @property
    def error(self) -> float | None:
        """Mean over pixels of |how often it is right - how sure it is|, by bins; None without pixels."""
        total = self.pixels.sum()
        return float(np.abs(self.right - self.sure).sum() / total) if total else None


@dataclass(frozen=True)
class Ordering:
    """How well confidence orders images by their Dice."""

    rank_correlation: float
    """Spearman's, over images."""
    ci95: tuple[float, float] | None
    """Bootstrap over cases; None for fewer than six."""
    area: float
    """Under the risk-coverage curve, risk being 1 - Dice: lower is better."""
    area_at_random: float
    """Of an order that knows nothing."""
    area_at_best: float
    """Of the order by Dice itself."""


def order_by_confidence(
    confidence: Sequence[float], dice: Sequence[float], cases: Sequence[str], *, seed: int
) -> Ordering | None:
    """Return how well confidence orders images; None where there are fewer than three, or all are alike."""
    sure, good, groups = np.asarray(confidence), np.asarray(dice), np.asarray(cases)
    if len(sure) < 3 or np.ptp(sure) == 0 or np.ptp(good) == 0:
        return None
    return Ordering(
        float(stats.spearmanr(sure, good).statistic),
        _interval(sure, good, groups, seed),
        float(risk_by_coverage(sure, good).mean()),
        float(1 - good.mean()),
        float(risk_by_coverage(good, good).mean()),
    )


def risk_by_coverage(confidence: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """Return the mean of 1 - Dice over the n surest images, for n from 1 to all (Geifman and El-Yaniv, 2017)."""
    risk = 1 - dice[np.argsort(-confidence, kind="stable")]
    return np.cumsum(risk) / np.arange(1, len(risk) + 1)


def _interval(sure: np.ndarray, good: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float] | None:
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    if len(members) < LEAST_CASES:
        return None
    rng = numpy_generator(seed, "doubt, bootstrap over cases")
    found = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[one] for one in rng.integers(len(members), size=len(members))])
        ranks = stats.rankdata(np.stack([sure[rows], good[rows]]), axis=1)
        spread = ranks.std(axis=1)
        if spread.all():
            found.append(np.corrcoef(ranks)[0, 1])
    return percentile_interval(np.asarray(found), n=len(members)) if found else None
