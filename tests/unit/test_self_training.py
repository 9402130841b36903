"""Self-training: what is mixed in the image is mixed in what the student should say of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tskd.engine import ImageBatches
from tskd.losses.self_training import Answers, boxes, sure
from tskd.models.mean_teacher import MeanTeacher
from tskd.recipe.schema import AugmentConfig, SelfTrainingConfig
from tskd.stages.own_answers import STEPS, PairedBatches
from tskd.types import UNLABELLED, Batch, SegmentationOutput, StepFn

SIDE = 16


class Reader(nn.Module):
    """Says of every pixel what its red channel says: class 1 where it is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(20.0))

    def forward(self, images: Tensor) -> SegmentationOutput:
        return SegmentationOutput((), (2 * images[:, :1] - 1) * self.sure)


def batch_of(known: Tensor, unknown: Tensor, masks: Tensor) -> Batch:
    """Two labelled and two unlabelled images that show such masks in red; labels beside them."""
    images = torch.cat([known, unknown])[:, None].float().expand(-1, 3, -1, -1)
    labels = torch.cat([masks, torch.full_like(masks, UNLABELLED)])
    return Batch(images, images, labels, noise=torch.rand(2, 4, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def planes() -> Callable[[int], Tensor]:
    return lambda seed: torch.randint(0, 2, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mix", sorted(STEPS))
def test_what_is_mixed_has_the_answer_of_the_image_it_comes_from(mix: str, planes: Callable[[int], Tensor]) -> None:
    """A box in the image and none in the mask, or of another image: the reader, who is right, would be charged."""
    step: StepFn = STEPS[mix](SelfTrainingConfig(steps=10))
    module = MeanTeacher(Reader(), decay=0.9).train()
    losses = step(module, batch_of(planes(0), planes(1), planes(0)))
    assert losses["label_loss"].item() == pytest.approx(0, abs=1e-3)
    assert losses["self_loss"].item() == pytest.approx(0, abs=1e-3)
    wrong = step(module, batch_of(planes(0), planes(1), 1 - planes(0)))
    assert wrong["label_loss"].item() > 1, "labels count"
    assert wrong["self_loss"].item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("mix", sorted(STEPS))
def test_answers_weigh_nothing_at_first_and_their_weight_after_three_tenths(
    mix: str, planes: Callable[[int], Tensor]
) -> None:
    step = STEPS[mix](SelfTrainingConfig(steps=10, weight=0.7))
    module = MeanTeacher(Reader(), decay=0.9)
    module.teacher.sure.neg_()  # an average that says the opposite of the student
    module.updates += 3
    losses = step(module.eval(), batch_of(planes(0), planes(1), planes(0)))
    assert losses["loss"].item() == pytest.approx((losses["label_loss"] + 0.7 * losses["self_loss"]).item(), rel=1e-5)
    assert losses["self_loss"].item() > 1
    module.updates.zero_()
    losses = step(module, batch_of(planes(0), planes(1), planes(0)))
    assert losses["loss"].item() == pytest.approx(losses["label_loss"].item(), abs=1e-6)


@pytest.mark.parametrize("mix", sorted(STEPS))
def test_the_average_is_asked_about_the_plain_image(mix: str, planes: Callable[[int], Tensor]) -> None:
    """The student's view says the opposite here: asked about that, the average would agree with the student."""
    module = MeanTeacher(Reader(), decay=0.9).train()
    batch = batch_of(planes(0), planes(1), planes(0))
    losses = STEPS[mix](SelfTrainingConfig(steps=10))(module, batch._replace(views=1 - batch.images))
    assert losses["self_loss"].item() > 1


@pytest.mark.parametrize("mix", sorted(STEPS))
def test_the_weight_of_answers_does_not_grow_beyond_its_own(mix: str, planes: Callable[[int], Tensor]) -> None:
    module = MeanTeacher(Reader(), decay=0.9)
    module.teacher.sure.neg_()
    module.updates += 9
    losses = STEPS[mix](SelfTrainingConfig(steps=10, weight=0.7))(
        module.eval(), batch_of(planes(0), planes(1), planes(0))
    )
    assert losses["loss"].item() == pytest.approx((losses["label_loss"] + 0.7 * losses["self_loss"]).item(), rel=1e-5)


def test_the_average_follows_once_a_step_however_many_parts_it_has() -> None:
    module = MeanTeacher(nn.Conv2d(1, 1, 1), decay=0.99, parts=2).train()
    for _ in range(4):
        module(torch.zeros(1, 1, 2, 2))
    assert int(module.updates) == 2


def test_parts_of_a_paired_batch_make_up_the_whole() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    augment = AugmentConfig(rotate=0, scale=0, shift=0, photometric=0)
    known, unknown = (
        ImageBatches(images, masks, list("abcde"), 4, augment, seed=3) for masks in (images[..., 0] // 128, None)
    )
    source = PairedBatches(known, unknown, seed=7)
    whole, first, second = source(2, 0, 1), source(2, 0, 2), source(2, 1, 2)
    assert whole.masks is not None
    assert (whole.masks[4:] == UNLABELLED).all()
    assert not (whole.masks[:4] == UNLABELLED).any()
    for name in ("images", "masks"):
        (one, other), (more, others) = (getattr(part, name).chunk(2) for part in (first, second))
        assert torch.equal(torch.cat([one, more, other, others]), getattr(whole, name))
    assert first.noise is not None
    assert second.noise is not None
    assert torch.equal(torch.cat([first.noise, second.noise]), whole.noise)


def test_the_average_follows_weights_and_statistics_and_carries_no_gradient() -> None:
    """A forgotten batch-norm statistic, or an average that the optimiser moves."""
    module = MeanTeacher(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), decay=0.99).train()
    before = module.teacher[0].weight.clone()
    with torch.no_grad():
        module.student[0].weight.add_(1)
        module.student[1].running_mean.fill_(5)
    module(torch.randn(2, 1, 4, 4))
    assert torch.allclose(module.teacher[0].weight, before + 0.9)  # the first decay is 1 / 10
    assert module.teacher[1].running_mean.item() == pytest.approx(4.5)
    assert {name.partition(".")[0] for name, _ in module.named_parameters()} == {"student"}
    assert not module.teacher[1].training


def test_boxes_lie_inside_and_are_as_large_as_asked() -> None:
    drawn = boxes(torch.rand(5000, 4, generator=torch.Generator().manual_seed(0)), (40, 60), (0.1, 0.3))
    share = drawn.float().mean(dim=(1, 2))
    assert drawn.shape == (5000, 40, 60)
    assert share.min() > 0.08
    assert share.max() < 0.33
    rows, columns = drawn.any(dim=2).sum(dim=1), drawn.any(dim=1).sum(dim=1)
    assert torch.equal(rows * columns, drawn.sum(dim=(1, 2))), "one whole box each"
    assert drawn.float().mean(dim=0).min() > 0, "every pixel is reached"


def test_pixels_of_which_the_average_is_not_sure_are_left_out() -> None:
    answers = Answers(torch.tensor([[[1, 0]]]), torch.tensor([[[0.9, 0.6]]]))
    assert sure(answers, 0.8).tolist() == [[[1, UNLABELLED]]]
