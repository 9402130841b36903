"""Losses against numpy, scipy and numbers worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from tskd.losses.distance import attention_transfer, feature_cosine, feature_mse, logit_kl, relation, soft_dice
from tskd.losses.segmentation import deep_label_loss, label_loss
from tskd.types import UNLABELLED


def expected_label_loss(logits: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """Cross-entropy averaged per image over known pixels; 1 - (2 sum pt + 1) / (sum p^2 + sum t^2 + 1) per image and
    foreground class."""
    scores = np.concatenate([np.zeros_like(logits[:, :1]), logits], axis=1)
    surprises, dices = [], []
    for image, mask in zip(scores, masks):
        known = mask != UNLABELLED
        rows = log_softmax(image, axis=0)[:, known]
        surprises.append(-np.mean([rows[label, i] for i, label in enumerate(mask[known])]))
        for index in range(1, len(image)):
            p, t = softmax(image, axis=0)[index][known], (mask[known] == index).astype(float)
            dices.append(1 - (2 * (p * t).sum() + 1) / ((p**2).sum() + (t**2).sum() + 1))
    return float(np.mean(surprises)), float(np.mean(dices))


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("unlabelled", [False, True])
def test_label_loss(classes: int, unlabelled: bool) -> None:
    generator = np.random.default_rng(classes)
    logits = generator.normal(size=(3, classes, 5, 7)) * 2
    masks = generator.integers(0, classes + 1, (3, 5, 7))
    masks[0] = np.where(masks[0] == classes, 0, masks[0])  # the last class is absent from the first image
    if unlabelled:
        masks[1, :3] = UNLABELLED
        masks[2, 0, 0] = UNLABELLED
    cross_entropy, dice = expected_label_loss(logits, masks)
    loss = label_loss(torch.from_numpy(logits), torch.from_numpy(masks))
    assert float(loss["cross_entropy"]) == pytest.approx(cross_entropy, rel=1e-6)
    assert float(loss["dice_loss"]) == pytest.approx(dice, rel=1e-6)
    assert float(loss["loss"]) == pytest.approx(0.2 * cross_entropy + 0.8 * dice, rel=1e-6)


def test_label_loss_of_two_pixels_on_paper() -> None:
    """Logits 0 and 0: p = 1/2 each; one of both is the class. CE = ln 2, Dice = (2 * 1/2 + 1) / (1/2 + 1 + 1) = 4/5."""
    loss = label_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 0]]]))
    assert float(loss["cross_entropy"]) == pytest.approx(np.log(2))
    assert float(loss["dice_loss"]) == pytest.approx(0.2)
    assert float(loss["loss"]) == pytest.approx(0.2 * np.log(2) + 0.8 * 0.2)


def test_deep_supervision_weighs_levels_as_nnu_net_does() -> None:
    """Its four levels at 128 px, of 1, 1/2, 1/4 and 1/8: 8, 4, 2 and 1 fifteenths."""
    generator = np.random.default_rng(2)
    scales = generator.normal(size=(4, 2, 1, 6, 6))
    masks = generator.integers(0, 2, (2, 6, 6))
    ours = deep_label_loss([torch.from_numpy(logits) for logits in scales], torch.from_numpy(masks))
    parts = [expected_label_loss(logits, masks) for logits in scales]
    cross_entropy, dice = (np.dot([8, 4, 2, 1], column) / 15 for column in zip(*parts))
    assert float(ours["cross_entropy"]) == pytest.approx(cross_entropy, rel=1e-6)
    assert float(ours["loss"]) == pytest.approx(0.2 * cross_entropy + 0.8 * dice, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logit_kl(temperature: float) -> None:
    generator = np.random.default_rng(0)
    student, teacher = 3 * generator.normal(size=(2, 2, 3, 4, 4))
    zero = np.zeros((2, 1, 4, 4))
    log_q = log_softmax(np.concatenate([zero, student], axis=1) / temperature, axis=1)
    log_p = log_softmax(np.concatenate([zero, teacher], axis=1) / temperature, axis=1)
    expected = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
    answer = logit_kl(torch.from_numpy(student), torch.from_numpy(teacher), temperature=temperature)
    assert float(answer) == pytest.approx(expected, rel=1e-6)


def test_feature_mse_on_paper() -> None:
    """Teacher channels (1, 3) standardise to (-1, 1) and (4, 4) to (0, 0); the student answers 0 and (1, 2)."""
    teacher = torch.tensor([[1.0, 4.0], [3.0, 4.0]]).reshape(1, 2, 1, 2)
    student = torch.tensor([[0.0, 1.0], [0.0, 2.0]]).reshape(1, 2, 1, 2)
    assert float(feature_mse(student, teacher)) == pytest.approx((1 + 1 + 1 + 4) / 4, rel=1e-4)


def test_feature_mse_against_numpy() -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 2, 8, 3, 3)) * 5 + 1
    spread = np.sqrt(teacher.var(axis=1, keepdims=True) + 1e-5)
    expected = ((student - (teacher - teacher.mean(axis=1, keepdims=True)) / spread) ** 2).mean()
    assert float(feature_mse(torch.from_numpy(student), torch.from_numpy(teacher))) == pytest.approx(expected)


def test_attention_transfer_on_paper() -> None:
    """Sums of squares over channels (3, 4) and (5, 0), to unit length: (0.6, 0.8) and (1, 0)."""
    student = torch.tensor([3.0, 4.0]).sqrt().reshape(1, 1, 1, 2)
    teacher = torch.tensor([[1.0, 0.0], [2.0, 0.0]]).reshape(1, 2, 1, 2)
    assert float(attention_transfer(student, teacher)) == pytest.approx((0.6 - 1) ** 2 + 0.8**2, rel=1e-6)


def test_relation_on_paper() -> None:
    """Two positions, orthogonal in the student, at 60 degrees in the teacher: both off-diagonal pairs differ by 1/2."""
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).reshape(1, 2, 1, 2)
    teacher = torch.tensor([[1.0, 0.5], [0.0, 0.75**0.5]]).reshape(1, 2, 1, 2)
    assert float(relation(student, teacher)) == pytest.approx(2 * 0.25 / 4, rel=1e-5)


def test_cosine_on_paper() -> None:
    """Angles of 0 and 90 degrees."""
    student = torch.tensor([[1.0, 1.0], [1.0, 0.0]]).reshape(1, 2, 1, 2)
    teacher = torch.tensor([[5.0, 0.0], [5.0, 2.0]]).reshape(1, 2, 1, 2)
    assert float(feature_cosine(student, teacher)) == pytest.approx(0.5)


def test_soft_dice_on_paper() -> None:
    """One class, two pixels: student 1/2, 1/2; teacher 0.9, 0.1. 1 - (2 * 0.5 + 1) / (0.5 + 0.82 + 1)."""
    teacher = torch.tensor([0.9, 0.1]).logit().reshape(1, 1, 1, 2)
    assert float(soft_dice(torch.zeros(1, 1, 1, 2), teacher)) == pytest.approx(1 - 2 / 2.32, rel=1e-5)
