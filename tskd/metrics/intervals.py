"""Bootstrap confidence intervals over cases: the case is the unit that was sampled, so it is the unit resampled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tskd.seeding import numpy_generator

RESAMPLES = 10_000
LEAST_CASES = 6
"""Below this number no interval is reported: a bootstrap's means never leave the range of the values, and the range of
five values misses the mean more often than 95 % allow (2 x 0.5 ** 5 = 6 %, were they symmetric)."""


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval and the number of cases behind it."""

    mean: float
    ci95: tuple[float, float] | None
    """None: fewer than ``LEAST_CASES`` cases."""
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({interval_text(self.ci95)}, n = {self.n})"


def interval_text(bounds: Sequence[float | None] | None, show: Callable[[float], str] = "{:.3f}".format) -> str:
    """Return an interval in words, each bound as ``show`` prints it; there is none for fewer than ``LEAST_CASES``."""
    low, high = bounds or (None, None)
    return "too few cases" if low is None or high is None else f"{show(low)} to {show(high)}"


def expanded_level(n: int) -> float:
    """Return the level at which to read bootstrap percentiles so that ``n`` values cover at 95 %.

    The bootstrap spread is too small by sqrt((n - 1) / n) and ignores that the variance is estimated; reading the
    percentiles further out by the t quantile repairs both (the "expanded percentile" interval: T. Hesterberg, What
    teachers should know about the bootstrap, The American Statistician 69(4), 2015, section 5.3). On skewed Dice-like
    values it covered better than the plain percentile and the BCa interval at 5 to 40 cases.
    """
    return math.erf(math.sqrt(n / (n - 1)) * _t_quantile(0.95, n - 1) / math.sqrt(2))


def _t_quantile(level: float, freedom: int) -> float:
    """Return t between whose -t and t Student's distribution has the share ``level``, to seven digits.

    With t = sqrt(freedom) tan(angle) its density over the angle is cos(angle) ** (freedom - 1). scipy has it too, and
    is 115 MB that the light part, which scores a clinic's own scans, would install for this alone.
    """
    farthest = math.pi / 2 if freedom < 50 else min(math.pi / 2, 12 / math.sqrt(freedom))
    angle = np.linspace(0, farthest, 20_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(level * below[-1], below, angle)))


def percentile_interval(replicates: np.ndarray, *, n: int) -> tuple[float, float]:
    """Return the expanded 95 % percentile interval of bootstrap ``replicates`` (R,) of a mean over ``n`` values."""
    tail = (1 - expanded_level(n)) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_mean(values: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Return the mean of ``values`` (n,), one a case, with its 95 % bootstrap interval.

    The same values and seed give the same interval. Raises ValueError for no values or values that are not finite: a
    case without a score is a defect of the caller, never something to skip.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs a list of finite values, one a case, not shape {values.shape}: {values!r}")
    n = values.size
    if n < LEAST_CASES:
        return Interval(float(values.mean()), None, n)
    replicates = resampled_means(values, rng=numpy_generator(seed, "bootstrap"), resamples=resamples)
    return Interval(float(values.mean()), percentile_interval(replicates, n=n), n)


def resampled_means(values: np.ndarray, *, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Return the means (resamples,) of draws with replacement from ``values`` (n,), in chunks of bounded memory."""
    n = values.size
    chunk = max(1, 4_000_000 // n)
    means = [
        values[rng.integers(0, n, size=(min(chunk, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, chunk)
    ]
    return np.concatenate(means)
