from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tskd.metrics.intervals import bootstrap_mean, expanded_level, resampled_means


def test_same_seed_same_interval_other_seed_other_interval() -> None:
    values = np.random.default_rng(0).normal(size=20)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_interval_holds_the_mean_and_tells_n() -> None:
    interval = bootstrap_mean(np.array([0.2, 0.5, 0.9, 0.8, 0.4, 0.8]), seed=0)
    assert interval.ci95 is not None
    assert interval.mean == pytest.approx(0.6)
    assert interval.ci95[0] < 0.6 < interval.ci95[1]
    assert "n = 6" in str(interval)


def test_five_cases_have_no_interval() -> None:
    interval = bootstrap_mean(np.array([0.2, 0.4, 0.3, 0.1, 0.5]), seed=0)
    assert (interval.mean, interval.ci95, interval.n) == (pytest.approx(0.3), None, 5)
    assert "too few cases" in str(interval)


@pytest.mark.parametrize("values", [[], [0.5, np.nan, 0.7], [[0.1, 0.2]]])
def test_missing_scores_are_never_skipped(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite values"):
        bootstrap_mean(np.array(values), seed=0)


def test_percentiles_are_read_at_the_t_quantile() -> None:
    """For n = 5 by hand: t = 2.7764, times sqrt(5 / 4) = 3.1042 normal standard deviations."""
    assert expanded_level(5) == pytest.approx(1 - 2 * stats.norm.cdf(-3.10415), abs=1e-5)
    assert expanded_level(10_000) == pytest.approx(0.95, abs=1e-4)


@pytest.mark.parametrize("n", [2, 3, 6, 10, 49, 50, 51, 152, 5000])
def test_the_expanded_level_is_that_of_scipy(n: int) -> None:
    t = stats.t.ppf(0.975, n - 1)
    assert expanded_level(n) == pytest.approx(1 - 2 * stats.norm.cdf(-np.sqrt(n / (n - 1)) * t), abs=1e-7)


def test_chunks_of_resamples_add_up() -> None:
    values = np.random.default_rng(0).normal(size=500_000)
    means = resampled_means(values, rng=np.random.default_rng(1), resamples=19)
    assert means.shape == (19,)
    assert np.std(means) == pytest.approx(1 / np.sqrt(500_000), rel=0.5)


@pytest.mark.parametrize("cases", [6, 15])
def test_covers_the_true_mean_of_skewed_scores(cases: int) -> None:
    """Dice-like Beta(8, 1.5) scores: 95 % intervals must hold the true mean 91 to 98 times of 100."""
    rng = np.random.default_rng(0)
    truth, trials = 8 / 9.5, 400
    hits = 0
    for trial in range(trials):
        interval = bootstrap_mean(rng.beta(8, 1.5, size=cases), seed=trial, resamples=1000)
        assert interval.ci95 is not None
        hits += interval.ci95[0] <= truth <= interval.ci95[1]
    assert 0.91 <= hits / trials <= 0.98
