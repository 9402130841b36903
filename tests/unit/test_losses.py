from __future__ import annotations

import torch

from tskd.losses.classes import class_probabilities, hard_prediction, with_background
from tskd.losses.segmentation import label_loss
from tskd.types import UNLABELLED


def random_case(classes: int = 3, batch: int = 4, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(batch, classes, size, size, generator=generator)
    masks = torch.randint(0, classes + 1, (batch, size, size), generator=generator)
    masks[0, : size // 2] = UNLABELLED
    masks[1, 0, 0] = UNLABELLED
    return logits, masks


def test_the_background_is_a_zero_logit_in_front() -> None:
    logits, _ = random_case()
    assert torch.equal(with_background(logits)[:, 1:], logits)
    assert with_background(logits)[:, 0].abs().max() == 0
    torch.testing.assert_close(class_probabilities(logits).sum(dim=1), torch.ones(4, 8, 8))


def test_one_class_is_a_sigmoid() -> None:
    logits, _ = random_case(classes=1)
    torch.testing.assert_close(class_probabilities(logits)[:, 1:], logits.sigmoid())


def test_the_prediction_is_background_where_all_logits_are_negative() -> None:
    logits = torch.tensor([[-1.0, 2.0, 0.5], [-0.5, 1.0, 3.0]]).reshape(1, 2, 1, 3)
    assert hard_prediction(logits).tolist() == [[[0, 1, 2]]]
    assert hard_prediction(logits).dtype == torch.uint8


def test_a_batch_cut_in_parts_has_the_same_loss_also_with_unlabelled_pixels() -> None:
    logits, masks = random_case()
    whole = label_loss(logits, masks)
    parts = [label_loss(logits[i : i + 1], masks[i : i + 1]) for i in range(4)]
    for name, value in whole.items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), value)


def test_unlabelled_pixels_change_nothing_and_get_no_gradient() -> None:
    logits, masks = random_case()
    hidden = (masks == UNLABELLED)[:, None].expand_as(logits)
    changed = logits.masked_fill(hidden, 50.0).requires_grad_()
    loss = label_loss(changed, masks)["loss"]
    torch.testing.assert_close(loss, label_loss(logits, masks)["loss"])
    loss.backward()
    assert changed.grad is not None
    assert changed.grad[hidden].abs().max() == 0
    assert changed.grad[~hidden].abs().min() > 0


def test_an_image_without_any_label_is_no_error() -> None:
    logits, masks = random_case()
    logits.requires_grad_()
    loss = label_loss(logits, torch.full_like(masks, UNLABELLED))["loss"]
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_the_loss_falls_to_zero_at_the_truth_and_stays_finite_at_extremes() -> None:
    _, masks = random_case()
    truth = torch.nn.functional.one_hot(masks.where(masks != UNLABELLED, 0), 4).permute(0, 3, 1, 2)[:, 1:].float()
    sure = 200 * truth - 100
    assert label_loss(sure, masks)["loss"] < 1e-6
    for logits in (torch.zeros(4, 3, 8, 8), 1e4 * sure, -1e4 * sure):
        assert label_loss(logits, masks)["loss"].isfinite()
    assert label_loss(-sure, masks)["loss"] > 1


def test_gradient_descent_finds_an_absent_and_a_present_class() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.long)
    masks[:, 2:5, 2:5] = 1
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        label_loss(logits, masks)["loss"].backward()
        optimizer.step()
    assert torch.equal(hard_prediction(logits).long(), masks)
