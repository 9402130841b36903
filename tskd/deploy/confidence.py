"""How sure the network was: one number a slice, from its own probabilities, which are not calibrated.

The one place that says so: whoever calibrates replaces :func:`confidence` and :data:`MEANING`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MEANING = (
    "mean difference between the two largest probabilities, over what was found and a border around it (over the least "
    "certain hundredth of the image where nothing was found); 0 to 1, not calibrated: use it to compare images, not as "
    "a chance of being right"
)
CALIBRATED = False
_BORDER = 64  # the border is the longer side divided by this
_LEAST_CERTAIN = 0.01


def confidence(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return :data:`MEANING` for labels (H, W) and probabilities (K + 1, H, W)."""
    margin = _margin(probabilities)
    near = _near(labels > 0)
    if near.any():
        return float(margin[near].mean())
    count = max(1, round(margin.size * _LEAST_CERTAIN))
    return float(np.partition(margin.ravel(), count - 1)[:count].mean())


def of_volume(confidences: Sequence[float], found: Sequence[int]) -> float:
    """Return one number for slices: their mean weighted by the pixels found in each; plain where nothing was found."""
    weights = np.array(found, float)
    return float(np.average(confidences, weights=weights if weights.any() else None))


def _margin(probabilities: np.ndarray) -> np.ndarray:
    """Return the largest minus the second largest of (K + 1, H, W), by planes: sorting takes forty times as long."""
    best, second = probabilities[0], np.full_like(probabilities[0], -np.inf)
    for one in probabilities[1:]:
        second, best = np.maximum(second, np.minimum(best, one)), np.maximum(best, one)
    return best - second


def _near(found: np.ndarray) -> np.ndarray:
    """Return an area (H, W) and the squares around its pixels: whether a window holds any is a difference of sums."""
    if not found.any():
        return found
    border = max(1, round(max(found.shape) / _BORDER))
    for axis in (0, 1):
        turned = np.moveaxis(found, axis, 0)
        sums = np.pad(turned, ((border + 1, border), (0, 0))).cumsum(axis=0, dtype=np.int32)
        found = np.moveaxis(sums[2 * border + 1 :] > sums[: -2 * border - 1], 0, axis)
    return found
