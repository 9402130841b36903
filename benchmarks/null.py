"""How often do two methods that are equal differ "significantly"? p of Wilcoxon and the interval, simulated.

    python benchmarks/null.py

Every training of a method has a mean of its own (spread of seeds) and cases that it does better or worse (spread over
cases); both methods draw from the same distribution, so that no difference is true. Where seeds do not differ a test at
5 % is to find one in 5 % of the simulations; where they do, Wilcoxon over cases, which takes the trainings as given,
finds the luck of these trainings, and an interval over seeds and cases should not. With one seed neither can.
"""

from __future__ import annotations

import argparse

import numpy as np
from measure import print_results

from tskd.metrics.comparison import difference_interval, wilcoxon

SETTINGS = [
    (seeds, cases, spread) for seeds, cases in ((1, 152), (3, 75), (3, 152), (5, 152)) for spread in (0.0, 0.02, 0.03)
]
"""Seeds, test cases (HC18's 75, BUSI's 152), standard deviation of a training's mean Dice."""
OVER_CASES = 0.2
"""Standard deviation of a case's Dice between two trainings of one method, on top of their means."""


def null_difference(rng: np.random.Generator, *, seeds: int, cases: int, spread: float) -> np.ndarray:
    """Return the Dice differences (seeds, cases) of two equal methods."""
    first, second = (rng.normal(0, spread, (seeds, 1)) + rng.normal(0, OVER_CASES, (seeds, cases)) for _ in range(2))
    return first - second


def rejections(seeds: int, cases: int, spread: float, *, trials: int, resamples: int) -> tuple[float, float]:
    """Return in which share of ``trials`` p is below 0.05, and in which the 95 % interval excludes 0."""
    rng = np.random.default_rng(0)
    small = outside = 0
    for trial in range(trials):
        difference = null_difference(rng, seeds=seeds, cases=cases, spread=spread)
        interval = difference_interval(difference, seed=trial, resamples=resamples)
        assert interval is not None
        small += wilcoxon(difference) < 0.05
        outside += interval[0] > 0 or interval[1] < 0
    return small / trials, outside / trials


def main() -> None:
    """Print a line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="5 simulations of each, to see that it runs")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    trials = 5 if given.quick else given.trials
    rows = []
    for seeds, cases, spread in SETTINGS:
        small, outside = rejections(seeds, cases, spread, trials=trials, resamples=given.resamples)
        rows.append({
            "seeds": seeds, "cases": cases, "spread of seeds": spread, "p < 0.05, %": round(100 * small, 1),
            "interval without 0, %": round(100 * outside, 1),
        })  # fmt: skip
    print_results(rows, as_json=given.json, threads=1)


if __name__ == "__main__":
    main()
