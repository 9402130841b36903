"""Was this image trained on? The attack by loss alone, on what a federation has made.

A network fits what it was trained on better than what it never saw. Whoever has an image, its mask and the network can
guess by the loss (Yeom et al. 2018, arXiv 1709.01604). Stronger attacks exist: an AUC near 0.5 is no proof of privacy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tskd.artifacts import Artifact
from tskd.data.prepared import Prepared, squeeze_mask
from tskd.engine.batches import to_images
from tskd.federated.run import FederatedRun
from tskd.losses.segmentation import label_loss
from tskd.metrics.intervals import LEAST_CASES, RESAMPLES, percentile_interval
from tskd.models.registry import load_model
from tskd.models.timm_segmenter import resize_logits
from tskd.seeding import numpy_generator


@dataclass(frozen=True)
class Losses:
    """The losses of some images, (N,), and the case that each is of."""

    values: np.ndarray
    cases: Sequence[str]


@dataclass(frozen=True)
class Attack:
    """How well the loss tells trained images from others."""

    auc: float
    """Probability that the trained image of a random pair has the lower loss; 0.5: no better than a coin."""
    ci95: tuple[float, float] | None
    members: int
    others: int


def attack(pairs: Sequence[tuple[Losses, Losses]], *, seed: int) -> Attack:
    """Return the AUC of the guess "the lower loss was trained on", a mean over pairs of (trained on, never seen).

    The interval is a bootstrap over the cases of both sides; there is none where a side has too few of them.
    """
    found = [
        _auc(members, others, numpy_generator(seed, "membership", place))
        for place, (members, others) in enumerate(pairs)
    ]
    sides = [(len(set(members.cases)), len(set(others.cases))) for members, others in pairs]
    replicates = np.mean([drawn for _, drawn in found], axis=0)
    enough = min(min(one) for one in sides) >= LEAST_CASES
    interval = percentile_interval(replicates, n=sum(min(one) for one in sides)) if enough else None
    members, others = (sum(len(pair[side].values) for pair in pairs) for side in (0, 1))
    return Attack(float(np.mean([auc for auc, _ in found])), interval, members, others)


def _auc(members: Losses, others: Losses, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Return the AUC and its bootstrap replicates (R,)."""
    difference = others.values[None] - members.values[:, None]
    wins = 0.5 * (1 + np.sign(difference))
    one, other = _drawn(members.cases, rng), _drawn(others.cases, rng)
    replicates = np.einsum("ri,ij,rj->r", one, wins, other, optimize=True) / (one.sum(axis=1) * other.sum(axis=1))
    return float(wins.mean()), replicates


def _drawn(cases: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Return how often each image is in each resample of the cases, (R, N)."""
    names, place = np.unique(np.asarray(cases), return_inverse=True)
    counts: np.ndarray = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    return counts[:, place].astype(float)


def image_losses(model: nn.Module, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the training loss of each image by itself, (N,): ``images`` (N, S, S, 3) and ``masks`` (N, S, S) uint8."""
    device = next(model.parameters()).device
    found = []
    for image, mask in zip(images, masks, strict=True):
        with torch.inference_mode():
            logits = model(to_images(image[None]).to(device)).logits
            target = torch.from_numpy(np.asarray(mask)[None]).long().to(device)
            found.append(float(label_loss(resize_logits(logits, mask.shape), target)["loss"]))
    return np.array(found)


def losses_at(prepared: Prepared, model: nn.Module) -> tuple[Losses, Losses]:
    """Return the losses of a site's training images, and of its test images, both at the size of its arrays."""
    trained, tested = prepared.rows("train"), prepared.rows("test")
    masks = np.stack([squeeze_mask(prepared.native_mask(int(row)), prepared.image_size) for row in tested])
    sides = (trained, prepared.masks[trained]), (tested, masks)
    members, others = (
        Losses(image_losses(model, prepared.images[rows], known), [prepared.records[row].case for row in rows])
        for rows, known in sides
    )
    return members, others


def attacked(run: FederatedRun, model: Artifact) -> Mapping[str, Attack]:
    """Return the attack at each site by the model that it uses, and under ``all`` the mean over sites."""
    pairs = {
        name: losses_at(site.own.prepared, load_model(run.model_at(model, name).path).eval())
        for name, site in run.sites.items()
    }
    seed = run.recipe.seed
    return {
        **{name: attack([pair], seed=seed) for name, pair in pairs.items()},
        "all": attack([*pairs.values()], seed=seed),
    }
