"""The attack by loss finds what a network has learned by heart, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("flwr")

from tskd.federated.membership import Losses, attack, image_losses
from tskd.losses.segmentation import label_loss
from tskd.types import SegmentationOutput

CASES = [f"case {number}" for number in range(20)]


def losses(values: np.ndarray) -> Losses:
    return Losses(values, CASES[: len(values)])


def test_losses_that_are_all_lower_are_all_found_and_all_higher_ones_the_other_way_round() -> None:
    low, high = losses(np.linspace(0, 1, 20)), losses(np.linspace(2, 3, 20))
    found = attack([(low, high)], seed=0)
    assert (found.auc, found.ci95) == (1.0, (1.0, 1.0))
    assert attack([(high, low)], seed=0).auc == 0.0


def test_losses_of_one_kind_are_a_coin_and_the_interval_says_how_sure_that_is() -> None:
    rng = np.random.default_rng(0)
    found = attack([(losses(rng.normal(size=20)), losses(rng.normal(size=20))) for _ in range(8)], seed=0)
    assert found.auc == pytest.approx(0.5, abs=0.06)
    assert found.ci95 is not None
    assert found.ci95[0] < 0.5 < found.ci95[1]
    assert attack([(losses(np.ones(9)), losses(np.ones(9)))], seed=0).auc == 0.5  # ties


def test_images_of_one_case_are_drawn_together() -> None:
    """Ten images each of two cases are two cases: too few for an interval, however many images."""
    two = Losses(np.arange(20.0), ["a"] * 10 + ["b"] * 10)
    assert attack([(two, losses(np.arange(20.0)))], seed=0).ci95 is None


class Table(nn.Module):
    """A network that learns one answer for each image that it knows by its first pixel, and one for all others."""

    def __init__(self, known: int) -> None:
        super().__init__()
        self.answers = nn.Parameter(torch.zeros(known + 1, 1, 8, 8))

    def forward(self, images: torch.Tensor) -> SegmentationOutput:
        place = (images[:, 0, 0, 0] * 255).round().long().clamp(max=len(self.answers) - 1)
        return SegmentationOutput((), self.answers[place])


def test_a_network_that_has_learned_by_heart_betrays_its_images() -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(20)
    masks = rng.integers(0, 2, (20, 8, 8), dtype=np.uint8)
    model = Table(10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    for _ in range(30):
        optimizer.zero_grad()
        label_loss(model(planes[:10]).logits, torch.from_numpy(masks[:10]).long())["loss"].backward()
        optimizer.step()
    members, others = (losses(image_losses(model, images[part], masks[part])) for part in (slice(10), slice(10, 20)))
    assert attack([(members, others)], seed=0).auc == 1.0
