"""How good a set of synthetic images is: distance of distributions, distance to training images, diversity.

All functions take plain arrays: features (N, D) of any network, or pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tskd.metrics.intervals import RESAMPLES
from tskd.seeding import numpy_generator

FEW_IMAGES = 500
"""Below this number on either side the kernel distance is too uncertain to rank generators."""
LEAST_IMAGES = 4
"""With fewer on either side no distance between two sets can be estimated."""
QUANTILES = (0.01, 0.05, 0.5, 0.95)
CHUNK = 512
PIXEL_BYTES = 64_000_000


@dataclass(frozen=True)
class Kid:
    """A kernel Inception distance with its interval; negative values are possible, the estimate is unbiased."""

    mean: float
    ci95: tuple[float, float]
    n: int
    """Images in the smaller set."""
    warning: str | None
    """Told where the sets are too small to rely on."""


@dataclass(frozen=True)
class Psnr:
    """Likeness in pixels of each image to its nearest reference: high values mean copying, not quality."""

    decibels: np.ndarray
    """(N,), infinite for an exact copy."""
    mse: np.ndarray
    """(N,) on pixels in [0, 1]."""
    nearest: np.ndarray
    """(N,) index of the reference."""


def kid(
    features_a: np.ndarray, features_b: np.ndarray, *, seed: int, subsets: int = 200, subset_size: int = 1000
) -> Kid:
    """Return the kernel distance between two sets of features (N, D) and (M, D).

    The mean over random subsets of the unbiased squared MMD with the kernel (x.y / D + 1)^3: M. Binkowski et al.,
    Demystifying MMD GANs, ICLR 2018, section 4. Subsets hold at most half of the smaller set. The interval comes from
    subsampling (D. Politis, J. Romano, Annals of Statistics 22(4), 1994): deviations of subsets of m images without
    replacement, times sqrt(m / (n - m)), stand for those of all n. Raises ValueError for fewer than 4 images.
    """
    n = min(len(features_a), len(features_b))
    if n < LEAST_IMAGES or features_a.shape[1:] != features_b.shape[1:]:
        raise ValueError(
            f"features {features_a.shape} and {features_b.shape}: {LEAST_IMAGES} images of one width are needed"
        )
    size = min(subset_size, n // 2)
    rng = numpy_generator(seed, "kid")
    estimates = np.array([_subset_distance(features_a, features_b, size=size, rng=rng) for _ in range(subsets)])
    mean = float(estimates.mean())
    low, high = np.quantile((estimates - mean) * np.sqrt(size / (n - size)), [0.025, 0.975])
    warning = f"only {n} images: the distance is uncertain under {FEW_IMAGES}" if n < FEW_IMAGES else None
    return Kid(mean, (float(mean - high), float(mean - low)), n, warning)


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Return the unbiased squared maximum mean discrepancy of (n, D) and (m, D) under the cubic kernel.

    A. Gretton et al., A kernel two-sample test, JMLR 13, 2012, equation 3; may be negative.
    """
    n, m = len(a), len(b)
    within_a, within_b, between = _cubic(a, a), _cubic(b, b), _cubic(a, b)
    own_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    own_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(own_a + own_b - 2 * between.mean())


def nearest(queries: np.ndarray, references: np.ndarray, *, chunk: int = CHUNK) -> tuple[np.ndarray, np.ndarray]:
    """Return index and squared Euclidean distance (N,) of each query's (N, D) nearest reference (M, D).

    Memory is bounded by ``chunk`` x M. The products that find the neighbour lose digits for near copies, so the
    distance to the neighbour found is computed again from the difference.
    """
    references = np.asarray(references, dtype=np.float32)
    lengths = (references**2).sum(axis=1)
    found, distances = [], []
    for start in range(0, len(queries), chunk):
        part = np.asarray(queries[start : start + chunk], dtype=np.float32)
        index = (lengths - 2 * part @ references.T).argmin(axis=1)
        found.append(index)
        distances.append(((part - references[index]) ** 2).sum(axis=1))
    return np.concatenate(found), np.concatenate(distances)


def psnr_to_nearest(images: np.ndarray, references: np.ndarray) -> Psnr:
    """Return PSNR and MSE of uint8 images (N, ...) to the nearest of the references (M, ...) in pixels.

    For unconditional samples there is no paired reference, so this measures likeness to training images: the higher,
    the nearer to a copy. Raises ValueError when the shapes of the images differ.
    """
    if images.shape[1:] != references.shape[1:] or images.dtype != np.uint8 or references.dtype != np.uint8:
        raise ValueError(f"uint8 images of one size are needed, not {images.shape[1:]} and {references.shape[1:]}")
    flat = references.reshape(len(references), -1).astype(np.float32) / 255
    chunk = max(1, PIXEL_BYTES // (4 * flat.shape[1]))
    index, mse = np.zeros(len(images), dtype=np.int64), np.zeros(len(images))
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        pixels = images[part].reshape(-1, flat.shape[1]).astype(np.float32) / 255
        index[part], squared = nearest(pixels, flat)
        mse[part] = squared / flat.shape[1]
    with np.errstate(divide="ignore"):
        return Psnr(-10 * np.log10(mse), mse, index)


def mean_distance(features: np.ndarray, *, seed: int, pairs: int = RESAMPLES) -> float:
    """Return the mean Euclidean distance between ``pairs`` random pairs of different rows (N, D); N at least 2."""
    rng = numpy_generator(seed, "pairs")
    first = rng.integers(0, len(features), size=pairs)
    second = (first + rng.integers(1, len(features), size=pairs)) % len(features)
    distances = [
        np.linalg.norm(features[first[k : k + CHUNK]] - features[second[k : k + CHUNK]], axis=1)
        for k in range(0, pairs, CHUNK)
    ]
    return float(np.concatenate(distances).mean())


def diversity(features: np.ndarray, references: np.ndarray, *, seed: int) -> float:
    """Return the mean pairwise distance of ``features`` (N, D) over that of ``references`` (M, D).

    About 1: as diverse as the references; near 0: one image repeated. Raises ValueError for fewer than two rows or
    references that are all the same.
    """
    if min(len(features), len(references)) < 2:
        raise ValueError("diversity needs two images a set at least")
    scale = mean_distance(references, seed=seed)
    if scale == 0:
        raise ValueError("all references are the same: there is no diversity to compare with")
    return mean_distance(features, seed=seed) / scale


def summarise(values: np.ndarray) -> dict[str, Any]:
    """Return n, mean and quantiles of the finite values, and how many are not (PSNR of an exact copy)."""
    finite = values[np.isfinite(values)]
    summary: dict[str, Any] = {"n": len(values), "infinite": len(values) - len(finite)}
    if len(finite):
        summary["mean"] = float(finite.mean())
        summary["quantiles"] = {str(share): float(np.quantile(finite, share)) for share in QUANTILES}
    return summary


def _subset_distance(a: np.ndarray, b: np.ndarray, *, size: int, rng: np.random.Generator) -> float:
    return squared_mmd(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])


def _cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    products: np.ndarray = a.astype(np.float64) @ b.astype(np.float64).T
    return (products / a.shape[1] + 1) ** 3
