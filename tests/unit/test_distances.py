from __future__ import annotations

import pytest
import torch

from tskd.errors import UserError
from tskd.losses.distance import (
    DECODER_LOSSES,
    ENCODER_LOSSES,
    attention_transfer,
    choose,
    feature_mse,
    kl_dice,
    logit_kl,
    logit_mse,
    match_grid,
    match_size,
    relation,
    soft_dice,
)


def features(channels: int = 6, size: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(seed))


def test_the_teachers_scale_and_offset_do_not_matter() -> None:
    student, teacher = features(), features(seed=1)
    torch.testing.assert_close(
        feature_mse(student, 1000 * teacher + 7), feature_mse(student, teacher), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("loss", [attention_transfer, relation])
def test_channels_may_differ(loss: object) -> None:
    assert loss(features(4), features(9)) > 0  # type: ignore[operator]


def test_relations_are_blind_to_a_rotation_of_the_channels() -> None:
    teacher = features()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2))).Q
    turned = torch.einsum("dc,bchw->bdhw", rotation, teacher)
    assert relation(turned, teacher) < 1e-10


def test_relations_of_large_grids_are_pooled() -> None:
    large = features(size=24)
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    torch.testing.assert_close(relation(large, features(size=24, seed=1)), relation(pooled, features(size=24, seed=1)))


def test_the_temperature_softens_both_sides() -> None:
    student, teacher = features(2), features(2, seed=1)
    torch.testing.assert_close(soft_dice(3 * student, 3 * teacher, temperature=3.0), soft_dice(student, teacher))


def test_kl_dice_is_the_sum() -> None:
    student, teacher = features(2), features(2, seed=1)
    expected = logit_kl(student, teacher, temperature=2.0) + soft_dice(student, teacher, temperature=2.0)
    assert kl_dice(student, teacher, temperature=2.0) == expected


def test_gradients_of_kl_keep_their_size_over_temperatures() -> None:
    """Hinton's reason for the factor T squared: for T far above the logits the gradient tends to that of a mean
    squared error, independent of T."""
    norms = []
    for temperature in (100.0, 200.0):
        student = features(2).requires_grad_()
        logit_kl(student, features(2, seed=1), temperature=temperature).backward()
        assert student.grad is not None
        norms.append(student.grad.norm())
    torch.testing.assert_close(norms[0], norms[1], rtol=0.02, atol=0)


def test_the_temperature_divides_logits_in_mse() -> None:
    student, teacher = features(2), features(2, seed=1)
    torch.testing.assert_close(logit_mse(student, teacher, temperature=2.0), logit_mse(student, teacher) / 4)


def test_a_small_structure_counts_in_dice_more_than_in_kl() -> None:
    teacher = torch.full((1, 1, 64, 64), -8.0)
    teacher[..., 30:32, 30:32] = 8.0
    blind = torch.full_like(teacher, -8.0)
    assert logit_kl(blind, teacher) < 0.02
    assert soft_dice(blind, teacher) > 0.7


def test_names_are_chosen_or_refused_with_the_choices() -> None:
    assert choose(ENCODER_LOSSES, "mse", "distill.encoder_loss") is feature_mse
    with pytest.raises(
        UserError, match=r"distill.decoder_loss: 'l2' is not known. Choose one of: dice, kl, kl_dice, mse"
    ):
        choose(DECODER_LOSSES, "l2", "distill.decoder_loss")


def test_features_are_matched_to_a_coarser_and_a_finer_grid() -> None:
    planes = features(size=8)
    assert match_grid(planes, torch.Size((8, 8))) is planes
    for side in (4, 2):  # at half the side bilinear interpolation is an average too, at a quarter it is none
        pooled = torch.nn.functional.avg_pool2d(planes, 8 // side)
        torch.testing.assert_close(match_grid(planes, torch.Size((side, side))), pooled)
    constant = torch.full((1, 3, 4, 4), 2.5)
    torch.testing.assert_close(match_grid(constant, torch.Size((7, 7))), torch.full((1, 3, 7, 7), 2.5))
    torch.testing.assert_close(match_grid(planes, torch.Size((16, 16))).mean(), planes.mean(), rtol=0.1, atol=0.02)


def test_logits_are_antialiased_where_they_shrink() -> None:
    """At half the width a pixel is a triangle over four: the first one has 3/7, 3/7 and 1/7 of its first three."""
    logits = torch.tensor([0.0, 0.0, 7.0, 0.0]).expand(1, 1, 4, 4)
    torch.testing.assert_close(match_size(logits, torch.Size((4, 2)))[0, 0, 0], torch.tensor([1.0, 3.0]))
    assert match_size(logits, torch.Size((4, 4))) is logits
    assert match_size(logits[:, :0], torch.Size((2, 3))).shape == (1, 0, 2, 3)
