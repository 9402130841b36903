"""Central differential privacy of the averaged tensors: the unit is a site, whatever number of patients it has.

A site bounds the norm of its update, all sites weigh the same, and the server adds Gaussian noise to their mean
(McMahan et al. 2018, arXiv 1710.06963). Flower's strategy wrappers do the same but for three things that are needed
here: a site clips by its own recipe, not by what a message says; a site that does not answer leaves the round as it is
and the noise of the others larger; and noise comes from the operating system, not from numpy's global generator.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from tskd.federated.shared import Tensors
from tskd.recipe.schema import PrivacyConfig
from tskd.seeding import derive

RandomBytes = Callable[[int], bytes]
"""Returns so many random bytes."""
SYSTEM: RandomBytes = os.urandom
"""What a federation of machines draws its noise from: nobody can draw it again and take it off."""


def seeded(seed: int, round_: int) -> RandomBytes:
    """Return what a simulation draws a round's noise from: the same each time, so it protects nobody."""
    return np.random.default_rng(derive(seed, "noise", round_)).bytes


def clipped(learned: Tensors, received: Tensors, norm: float) -> dict[str, Tensor]:
    """Return what was learned with the update, all tensors as one vector, scaled down to a Euclidean norm at most."""
    update = {name: tensor.double() - received[name].double() for name, tensor in learned.items()}
    length = math.sqrt(sum(float(change.square().sum()) for change in update.values()))
    if length <= norm:
        return dict(learned)
    return {
        name: (received[name].double() + change * (norm / length)).to(learned[name].dtype)
        for name, change in update.items()
    }


def noisy(tensors: Tensors, deviation: float, draw: RandomBytes) -> dict[str, Tensor]:
    """Return the tensors, each number with independent Gaussian noise of the standard deviation."""
    return {
        name: (tensor.double() + deviation * _gaussian(tuple(tensor.shape), draw)).to(tensor.dtype)
        for name, tensor in sorted(tensors.items())
    }


def _gaussian(shape: tuple[int, ...], draw: RandomBytes) -> Tensor:
    """Return standard Gaussian numbers by the inverse of their distribution at 53 random bits each."""
    bits = np.frombuffer(draw(8 * math.prod(shape)), np.uint64) >> np.uint64(11)
    return torch.from_numpy(ndtri((bits + 0.5) * 2.0**-53).reshape(shape))


def epsilon(noise: float, rounds: int, delta: float) -> float:
    """Return epsilon after so many rounds in all of which a site takes part, at this delta.

    Two federations are neighbours where the update of one site is there in one and zero in the other. Where a site has
    other data in the other, the distance is twice that: the epsilon of half the noise. No sampling of sites is assumed.
    Rounds of Gaussian noise are one Gaussian mechanism, whose epsilon is known exactly (Balle and Wang 2018, arXiv
    1805.06530). dp-accounting's accountant of loss distributions finds it too, on a grid that at a noise of 0.01 fills
    24 GB of memory.
    """
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(noise / math.sqrt(rounds), delta))


def told_of(privacy: PrivacyConfig, rounds: int) -> dict[str, Any]:
    """Return what run.json says of privacy; no epsilon where there is no noise: the guarantee is none."""
    private = privacy.noise > 0
    return {
        **privacy.model_dump(mode="json"),
        "unit": "site",
        "delta": privacy.delta if private else None,
        "epsilon": round(epsilon(privacy.noise, rounds, privacy.delta), 4) if private else None,
    }
