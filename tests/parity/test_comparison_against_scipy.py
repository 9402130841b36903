"""The comparison's statistics against scipy, worked examples and, for intervals, simulated truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tskd.metrics.comparison import (
    DICE,
    HD95,
    compare_methods,
    degrees_of_freedom,
    difference_interval,
    holm,
    pair_test,
    rank_table,
    wilcoxon,
    win_tie_loss,
)

A = np.array([[0.80, 0.70, 0.91, 0.64, 0.75, 0.88], [0.82, 0.72, 0.89, 0.60, 0.77, 0.86]])
B = np.array([[0.75, 0.71, 0.85, 0.60, 0.70, 0.80], [0.77, 0.71, 0.85, 0.56, 0.72, 0.82]])
C = np.full_like(A, 0.5)


def test_wilcoxon_is_scipys_on_case_means() -> None:
    expected = stats.wilcoxon(A.mean(axis=0), B.mean(axis=0)).pvalue
    assert wilcoxon(A - B) == pytest.approx(expected)


def test_wilcoxon_by_hand() -> None:
    """Five positive differences without ties: the two tails of 2^5 sign patterns hold 2 of 32."""
    assert wilcoxon(np.array([[1.0, 2.0, 3.0, 4.0, 5.0]])) == pytest.approx(2 / 32)


def test_equal_methods_differ_by_chance_alone() -> None:
    assert wilcoxon(A - A) == 1.0
    few = np.array([[0.0] * 15 + [0.1, 0.2, 0.3, 0.4, 0.5]])
    assert wilcoxon(few) == pytest.approx(2 / 32), "the least that five cases can give; 0.04 by a normal distribution"
    seeds = np.array([[0.3, 0.1, 0.2], [-0.1, 0.1, 0.2], [-0.2, 0.1, 0.2]])
    assert wilcoxon(seeds) == wilcoxon(seeds[:, 1:]), "a mean of -9e-18 is none"


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, then 0.03 x 2 is under the step before and keeps it; 0.9 x 1."""
    np.testing.assert_allclose(holm(np.array([0.02, 0.9, 0.01, 0.03])), [0.06, 0.9, 0.04, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.7])), [1.0, 1.0])


def test_win_tie_loss_counts_cases_with_a_margin() -> None:
    gain = np.array([[0.02, 0.005, -0.02, 0.03], [0.02, -0.005, -0.04, -0.03]])
    assert win_tie_loss(gain, margin=0.01) == (1, 2, 1)
    assert win_tie_loss(np.array([[0.51, 0.50]]) - np.array([[0.50, 0.51]]), margin=0.01) == (0, 2, 0)


def test_every_pair_is_tested_and_corrected_over_the_table() -> None:
    tests = compare_methods({"a": A, "b": B, "c": C}, DICE, seed=0)
    assert [(test.method, test.baseline) for test in tests] == [("a", "b"), ("a", "c"), ("b", "c")]
    np.testing.assert_allclose([test.p_holm for test in tests], holm(np.array([test.p_wilcoxon for test in tests])))
    first = tests[0]
    assert first.difference == pytest.approx((A - B).mean())
    assert first.ci95_low is not None
    assert first.ci95_high is not None
    assert first.ci95_low < first.difference < first.ci95_high
    assert (first.wins, first.ties, first.losses) == (5, 1, 0)
    assert (first.n_cases, first.n_seeds) == (6, 2)


def test_no_interval_leaves_what_the_measure_allows() -> None:
    """Two seeds that disagree: t with one degree of freedom is twelve standard errors to each side."""
    difference = np.array([[0.9] * 8, [0.1] * 8])
    free = pair_test(("a", "b"), difference, replace(DICE, largest=math.inf), seed=0)
    assert free.ci95_high is not None
    assert free.ci95_high > 1
    held = pair_test(("a", "b"), difference, DICE, seed=0)
    assert (held.ci95_low, held.ci95_high) == (-1, 1)


def test_baseline_is_the_second_of_every_pair() -> None:
    tests = compare_methods({"a": A, "b": B, "c": C}, DICE, seed=0, baseline="b")
    assert [(test.method, test.baseline) for test in tests] == [("a", "b"), ("c", "b")]
    assert tests[1].difference < 0


def test_smaller_distances_win() -> None:
    (test,) = compare_methods({"a": A, "b": B}, replace(HD95, tie_margin=0.01), seed=0)
    assert (test.wins, test.losses) == (0, 5)
    assert test.difference > 0


def test_ranks_share_ties_as_scipy_does() -> None:
    table = rank_table({"c": C, "b": A.copy(), "a": A}, DICE)
    assert [(row.method, row.mean_rank) for row in table] == [("b", 1.5), ("a", 1.5), ("c", 3.0)]
    assert rank_table({"c": C, "a": A}, HD95)[0].method == "c"


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": A}, "at least two methods"),
        ({"a": A, "b": B[:, :4]}, "one shape"),
        ({"a": A[0], "b": B[0]}, "one shape"),
        ({"a": A, "b": np.where(B > 0.8, np.nan, B)}, "not finite numbers: b"),
    ],
)
def test_scores_that_do_not_pair_are_refused(scores: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_methods(scores, DICE, seed=0)


def test_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'z'; there are a, b"):
        compare_methods({"a": A, "b": B}, DICE, seed=0, baseline="z")


def test_five_cases_have_no_interval() -> None:
    assert difference_interval(A[:, :5], seed=0) is None
    assert difference_interval(A, seed=0) is not None


def test_degrees_of_freedom_by_hand() -> None:
    """Seeds that differ alone: S - 1. Cases that differ alone: C - 1. Variances 1/2 of two seeds and 1/2 of three
    cases: 1 / (1/4 + 1/8) = 8/3."""
    ones = np.ones((2, 3))
    assert degrees_of_freedom(np.array([[0.0], [1.0]]) * ones) == pytest.approx(1)
    assert degrees_of_freedom(np.array([[0.0, 1.0, 2.0]]) * ones) == pytest.approx(2)
    both = np.array([[0.0], [np.sqrt(2)]]) + np.sqrt(1.5) * np.array([[-1.0, 0.0, 1.0]])
    assert degrees_of_freedom(both) == pytest.approx(8 / 3)
    assert degrees_of_freedom(ones) == 2, "no variance at all"


def test_an_interval_over_seeds_alone_by_hand() -> None:
    """Two seeds that answer -1 and 1 in each of six cases: draws of seeds give -1, 0 or 1, spread by the square root
    of 2 and by the t quantile of one degree of freedom over that of five."""
    found = difference_interval(np.array([[-1.0], [1.0]]) * np.ones((2, 6)), seed=0)
    end = np.sqrt(2) * stats.t.ppf(0.975, 1) / stats.t.ppf(0.975, 5)
    assert found == pytest.approx((-end, end))


def test_many_seeds_do_not_shorten_the_interval_of_few_cases() -> None:
    """Ten seeds at -1 and ten at 1: the percentile read for six cases (2.8 standard deviations) is 16 of 20 draws.
    Seeds that differ alone have 19 degrees of freedom, more than six cases, and that makes nothing narrower."""
    found = difference_interval(np.array([[-1.0], [1.0]] * 10) * np.ones((20, 6)), seed=0)
    end = np.sqrt(20 / 19) * (2 * 16 / 20 - 1)
    assert found == pytest.approx((-end, end))


@pytest.mark.parametrize(
    ("seeds", "cases", "between_seeds", "least"),
    [
        *((1, 20, 0.0, 0.91), (3, 30, 0.2, 0.91), (10, 60, 0.3, 0.91), (3, 150, 0.1, 0.91), (2, 60, 0.3, 0.91)),
        (3, 60, 1.0, 0.86),
    ],
)
def test_intervals_cover_the_true_difference(seeds: int, cases: int, between_seeds: float, least: float) -> None:
    """Differences = seed effect + case effect + noise around 0; in the last setting seeds outweigh cases by far."""
    rng = np.random.default_rng(0)
    trials = 300
    hits = 0
    for trial in range(trials):
        effects = rng.normal(0, between_seeds, (seeds, 1)) + rng.normal(0, 1, (1, cases))
        interval = difference_interval(effects + rng.normal(0, 0.7, (seeds, cases)), seed=trial, resamples=800)
        assert interval is not None
        hits += interval[0] <= 0 <= interval[1]
    assert least <= hits / trials <= 0.985


def test_wilcoxon_finds_the_luck_of_seeds_where_the_interval_does_not() -> None:
    """Equal methods: three trainings each, whose mean Dice spreads by 0.025, on 150 cases that each differ by 0.2.

    Per-case means have a standard error of 0.2 sqrt(2 / 450) = 0.013 and the seeds' means one of 0.025 sqrt(2 / 3) =
    0.020: a z of standard deviation sqrt(1 + (0.020 / 0.013)^2) = 1.85 is beyond 1.96 in 29 % of the trials.
    """
    rng = np.random.default_rng(0)
    trials = 200
    small = outside = 0
    for trial in range(trials):
        first, second = (rng.normal(0, 0.025, (3, 1)) + rng.normal(0, 0.2, (3, 150)) for _ in range(2))
        interval = difference_interval(first - second, seed=trial, resamples=800)
        assert interval is not None
        small += wilcoxon(first - second) < 0.05
        outside += not interval[0] <= 0 <= interval[1]
    assert small / trials == pytest.approx(0.29, abs=0.08)
    assert outside / trials < 0.1


def test_case_difficulty_shared_by_seeds_is_not_averaged_away() -> None:
    """The same cases scored thrice are no more cases: repeating seeds must not shorten the interval."""
    one = np.random.default_rng(0).normal(size=(1, 40))
    alone, repeated = (difference_interval(scores, seed=0) for scores in (one, one.repeat(3, axis=0)))
    assert alone is not None
    assert repeated is not None
    assert repeated[1] - repeated[0] == pytest.approx(alone[1] - alone[0], rel=0.05)
