"""Every distillation loss by name: what the loop and the methods rely on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tskd.losses.distance import DECODER_LOSSES, ENCODER_LOSSES, feature_mse

Loss = Callable[[Tensor, Tensor], Tensor]
ALL = [pytest.param(loss, id=f"encoder-{name}") for name, loss in ENCODER_LOSSES.items()] + [
    pytest.param(loss, id=f"decoder-{name}") for name, loss in DECODER_LOSSES.items()
]
DECODER = list(DECODER_LOSSES.values())


def planes(seed: int, *, batch: int = 4, channels: int = 3, size: int = 6) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def perfect(loss: Loss, teacher: Tensor) -> Tensor:
    """Return the student's answer that cannot be better: the teacher's, standardised over channels for ``mse``."""
    if loss is not feature_mse:
        return teacher
    return F.layer_norm(teacher.movedim(1, -1), teacher.shape[1:2]).movedim(-1, 1)


@pytest.mark.parametrize("loss", ALL)
def test_zero_for_the_perfect_answer_and_positive_elsewhere(loss: Loss) -> None:
    teacher = planes(0)
    assert float(loss(perfect(loss, teacher), teacher)) == pytest.approx(0, abs=1e-6)
    assert float(loss(planes(1), teacher)) > 1e-2
    assert loss(planes(1), teacher).shape == ()


@pytest.mark.parametrize("loss", ALL)
def test_the_perfect_answer_is_a_minimum(loss: Loss) -> None:
    """No small step away from it lowers the loss."""
    teacher = planes(0).double()
    best = perfect(loss, teacher)
    for seed in range(5):
        nearby = best + 1e-2 * planes(10 + seed).double()
        assert float(loss(nearby, teacher)) > float(loss(best, teacher))


@pytest.mark.parametrize("loss", ALL)
def test_the_gradient_reaches_the_student_and_follows_from_its_values_alone(loss: Loss) -> None:
    student, teacher = planes(1).requires_grad_(), planes(0)
    loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().amax(dim=(1, 2, 3)).min() > 0, "every image counts"
    assert teacher.grad is None


@pytest.mark.parametrize("loss", ALL)
def test_a_batch_cut_in_two_gives_the_mean_of_the_halves(loss: Loss) -> None:
    student, teacher = planes(1), planes(0)
    halves = [loss(a, b) for a, b in zip(student.chunk(2), teacher.chunk(2))]
    torch.testing.assert_close(torch.stack(halves).mean(), loss(student, teacher))


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
def test_finite_where_the_student_or_the_teacher_is_constant(loss: Loss, value: float) -> None:
    """Also the gradient: a dead student's features are all zero, a sure teacher's logits are far from it."""
    flat = torch.full((2, 3, 6, 6), value)
    for first, second in ((flat, planes(0, batch=2)), (planes(0, batch=2), flat), (flat, flat)):
        student = first.clone().requires_grad_()
        answer = loss(student, second)
        answer.backward()
        assert answer.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", ALL)
def test_gradient_descent_lowers_it(loss: Loss) -> None:
    student, teacher = planes(1).requires_grad_(), planes(0)
    first = loss(student, teacher).item()
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss(student, teacher).backward()
        optimizer.step()
    assert loss(student, teacher).item() < 0.2 * first


@pytest.mark.parametrize("loss", DECODER)
def test_decoder_losses_take_a_temperature_and_one_class(loss: Callable[..., Tensor]) -> None:
    one = planes(1)[:, :1]
    assert float(loss(one, planes(0)[:, :1], temperature=2.0)) > 0
    assert float(loss(one, one, temperature=2.0)) == pytest.approx(0, abs=1e-6)
