"""How sure the network was: one number a slice, from its own probabilities, which are not calibrated.

The one place that says so: whoever calibrates replaces :func:`confidence` and :data:`MEANING`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

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
    best = np.partition(probabilities, -2, axis=0)[-2:]
    margin = best[1] - best[0]
    near = _near(labels > 0)
    if near.any():
        return float(margin[near].mean())
    count = max(1, round(margin.size * _LEAST_CERTAIN))
    return float(np.partition(margin.ravel(), count - 1)[:count].mean())


def of_volume(confidences: Sequence[float], found: Sequence[int]) -> float:
    """Return one number for slices: their mean weighted by the pixels found in each; plain where nothing was found."""
    weights = np.array(found, float)
    return float(np.average(confidences, weights=weights if weights.any() else None))


def _near(found: np.ndarray) -> np.ndarray:
    """Return an area (H, W) and what lies around it."""
    if not found.any():
        return found
    border = max(1, round(max(found.shape) / _BORDER))
    grown = Image.fromarray(found.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * border + 1))
    return np.asarray(grown) > 0
