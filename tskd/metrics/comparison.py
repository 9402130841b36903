"""Paired comparison of methods on the same test cases over seeds: differences, tests, ranks, wins.

Scores are (S, C): one a seed and case, the case's own mean over its images and classes. Seeds and cases are crossed:
each seed's run is scored on the same cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from tskd.metrics.intervals import LEAST_CASES, RESAMPLES, percentile_interval
from tskd.seeding import numpy_generator

Scores = Mapping[str, np.ndarray]
_CHUNK = 1_000_000
"""Draws of cases at a time."""
_ROUNDING = 1e-9
"""0.51 - 0.50 is a little more than 0.01 in binary."""


@dataclass(frozen=True)
class Measure:
    """A score of a case, and what its differences mean."""

    name: str
    """What tables call it."""
    tie_margin: float
    """A case whose score differs by at most this is a tie; in the measure's unit."""
    higher_is_better: bool = True
    largest: float = math.inf
    """No difference, and no end of an interval, is beyond it."""


DICE = Measure("dice", tie_margin=0.01, largest=1.0)
HD95 = Measure("hd95", tie_margin=1.0, higher_is_better=False)
"""In pixels or millimetres; tables add which."""


@dataclass(frozen=True)
class PairTest:
    """One line of tests.csv: ``method`` against ``baseline``."""

    measure: str
    method: str
    baseline: str
    difference: float
    """Mean over cases and seeds of method - baseline, in the measure's unit."""
    ci95_low: float | None
    """None: fewer than ``LEAST_CASES`` cases."""
    ci95_high: float | None
    p_wilcoxon: float
    """Two-sided, on per-case means over seeds: of these trainings, whatever other seeds would do."""
    p_holm: float
    """Corrected for all tests of its table; not a number until these are known."""
    wins: int
    """Cases where the method is better by more than the tie margin."""
    ties: int
    losses: int
    tie_margin: float
    n_cases: int
    n_seeds: int


@dataclass(frozen=True)
class MeanRank:
    """A method's rank among all, 1 the best, tied methods share the mean of their ranks; mean over cases."""

    measure: str
    method: str
    mean_rank: float
    mean_score: float
    n_cases: int


def compare_methods(
    scores: Scores, measure: Measure, *, seed: int, baseline: str | None = None
) -> tuple[PairTest, ...]:
    """Test every method against ``baseline``, or every pair where it is None, with Holm's correction over the table.

    ``scores`` maps a method to (S, C), cases in one order. Raises ValueError for fewer than two methods, shapes that
    differ, values that are not finite, or an unknown baseline.
    """
    _check(scores)
    if baseline is not None and baseline not in scores:
        raise ValueError(f"no scores of the baseline {baseline!r}; there are {', '.join(scores)}")
    pairs = combinations(scores, 2) if baseline is None else ((name, baseline) for name in scores if name != baseline)
    return with_holm(
        [pair_test((method, other), scores[method] - scores[other], measure, seed=seed) for method, other in pairs]
    )


def pair_test(pair: tuple[str, str], difference: np.ndarray, measure: Measure, *, seed: int) -> PairTest:
    """Test the ``difference`` (S, C) of a method and its baseline, whose names ``pair`` has."""
    low, high = difference_interval(difference, seed=seed) or (None, None)
    gain = difference if measure.higher_is_better else -difference
    wins, ties, losses = win_tie_loss(gain, margin=measure.tie_margin)
    return PairTest(
        measure=measure.name,
        method=pair[0],
        baseline=pair[1],
        difference=float(difference.mean()),
        ci95_low=None if low is None else max(low, -measure.largest),
        ci95_high=None if high is None else min(high, measure.largest),
        p_wilcoxon=wilcoxon(difference),
        p_holm=math.nan,
        wins=wins,
        ties=ties,
        losses=losses,
        tie_margin=measure.tie_margin,
        n_cases=difference.shape[1],
        n_seeds=difference.shape[0],
    )


def with_holm(tests: Sequence[PairTest]) -> tuple[PairTest, ...]:
    """Return the tests of one table with their corrected p values."""
    corrected = holm(np.array([test.p_wilcoxon for test in tests]))
    return tuple(replace(test, p_holm=float(p)) for test, p in zip(tests, corrected, strict=True))


def difference_interval(difference: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """Return the 95 % paired hierarchical bootstrap interval of the mean of ``difference`` (S, C).

    Every replicate draws seeds, then cases, both with replacement; a case drawn is drawn for all its seeds, because its
    difficulty is shared by them (A. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007). Drawing
    cases anew for each seed would average that difficulty away and give intervals that are too short. Seeds are few:
    their draws are spread by sqrt(S / (S - 1)), which makes their variance unbiased, and the interval is as wide as the
    t quantile of its degrees of freedom asks (:func:`degrees_of_freedom`); with three seeds that differ more than cases
    do it is more than twice as wide as without. With one seed only cases are drawn: the interval then says nothing
    about other seeds. None for fewer than ``LEAST_CASES`` cases.
    """
    seeds, cases = difference.shape
    if cases < LEAST_CASES:
        return None
    rng = numpy_generator(seed, "paired bootstrap")
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    if seeds > 1:
        seed_weights = 1 / seeds + np.sqrt(seeds / (seeds - 1)) * (seed_weights - 1 / seeds)
    replicates = np.concatenate(
        [
            (seed_part @ difference * rng.multinomial(cases, np.full(cases, 1 / cases), size=len(seed_part))).mean(
                axis=1
            )
            for seed_part in np.array_split(seed_weights, math.ceil(resamples * cases / _CHUNK))  # of bounded memory
        ]
    )
    mean, spread = difference.mean(), 1.0
    if seeds > 1:
        spread = stats.t.ppf(0.975, degrees_of_freedom(difference)) / stats.t.ppf(0.975, cases - 1)
    return percentile_interval(mean + max(spread, 1.0) * (replicates - mean), n=cases)


def degrees_of_freedom(difference: np.ndarray) -> float:
    """Return those of the variance of the mean of ``difference`` (S, C), which seeds and cases both add to.

    S - 1 where seeds differ alone, C - 1 where cases do, more where both do (F. Satterthwaite, Biometrics Bulletin
    2(6), 1946).
    """
    seeds, cases = difference.shape
    parts = difference.mean(axis=1).var(ddof=1) / seeds, difference.mean(axis=0).var(ddof=1) / cases
    if not any(parts):
        return float(cases - 1)
    return float(sum(parts) ** 2 / (parts[0] ** 2 / (seeds - 1) + parts[1] ** 2 / (cases - 1)))


def wilcoxon(difference: np.ndarray) -> float:
    """Return the two-sided signed-rank p value of per-case means of ``difference`` (S, C); 1 if all are zero.

    Cases without a difference are dropped first (Wilcoxon's own rule): with zeros among them scipy would leave the
    exact distribution, which it takes of up to 50 cases without ties, and of 13 with ties.
    Seeds count as fixed: equal methods whose trainings differ have small p far too often (``benchmarks/null.py``).
    """
    means = difference.mean(axis=0)
    differing = means[np.abs(means) > _ROUNDING]
    return float(stats.wilcoxon(differing).pvalue) if differing.size else 1.0


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p values corrected for being several (S. Holm, Scandinavian Journal of Statistics 6(2), 1979)."""
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def win_tie_loss(gain: np.ndarray, *, margin: float) -> tuple[int, int, int]:
    """Count cases by their mean gain (S, C) over seeds: above ``margin``, within it, below."""
    means, beyond = gain.mean(axis=0), margin + _ROUNDING
    wins, losses = int((means > beyond).sum()), int((means < -beyond).sum())
    return wins, means.size - wins - losses, losses


def rank_table(scores: Scores, measure: Measure) -> tuple[MeanRank, ...]:
    """Return every method's mean rank over cases, the best first; shapes and errors as in :func:`compare_methods`."""
    _check(scores)
    means = np.stack([score.mean(axis=0) for score in scores.values()])
    ranks = stats.rankdata(-means if measure.higher_is_better else means, axis=0).mean(axis=1)
    rows = [
        MeanRank(measure.name, method, float(rank), float(score.mean()), means.shape[1])
        for method, rank, score in zip(scores, ranks, means, strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: row.mean_rank))


def _check(scores: Scores) -> None:
    shapes = {name: score.shape for name, score in scores.items()}
    if len(shapes) < 2 or len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"at least two methods with scores of one shape (seeds, cases) are needed, not {shapes}")
    broken = [name for name, score in scores.items() if not np.isfinite(score).all()]
    if broken:
        raise ValueError(f"scores that are not finite numbers: {', '.join(broken)}")
