"""What a bundle's network says of its own answers, and which of them somebody should look at.

Its file answers two numbers beside the mask: how sure it is of the mask, and how unlike the image is to those that it
was trained on. Limits for both were chosen on images that are no test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tskd.deploy.network_file import Answer

TABLE = "doubt.csv"
"""Of a run's test images: how sure the model is of each, beside its Dice."""
MEANING = "mean probability of the answered class over what was found (over the whole image where nothing was)"
UNSURE, UNFAMILIAR = "unsure", "unlike the training images"


@dataclass(frozen=True)
class DoubtRule:
    """The part ``doubt`` of ``model.json``."""

    temperature: float
    """What logits are divided by before the softmax."""
    calibrated_on: int
    """Validation images that the temperature was fitted on; 0: there were none, and it is 1."""
    look_below: float
    """Confidence below which an answer is to be looked at."""
    look_share: float
    """How many of the images that the limit was chosen on lie below it."""
    chosen_on: str
    """validation, unlabelled or training: the images that the limit was chosen on."""
    chosen_images: int
    familiar_images: int
    """Images that unfamiliarity is measured from; 0: the network offers no features, and it is not measured."""
    false_alarms: float | None
    """How many images of left-out training cases are called unlike the training images."""


def remark(answer: Answer, *, look_below: float) -> str:
    """Return why somebody should look at an answer; empty where nothing speaks for it."""
    reasons = []
    if answer.confidence < look_below:
        reasons.append(UNSURE)
    if answer.unfamiliarity is not None and answer.unfamiliarity > 1:
        reasons.append(UNFAMILIAR)
    return ", ".join(reasons)


def of_volume(confidences: Sequence[float], found: Sequence[int]) -> float:
    """Return one number for slices: their mean weighted by the pixels found in each; plain where nothing was found."""
    weights = np.array(found, float)
    return float(np.average(confidences, weights=weights if weights.any() else None))
