"""Distil networks of other people: a U-Net of smp learns from a MONAI network, stops, and goes on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from tskd.api.distillation import distill, network_digest
from tskd.data.phantoms import draw_phantom
from tskd.errors import Paused, UserError

SIZE, COUNT = 32, 12
QUICK: dict[str, Any] = {"batch_size": 4, "ema": 0.0, "engine": {"accelerator": "cpu", "checkpoint_seconds": 0}}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([draw_phantom("oral_ulcer", number, size=SIZE, seed=3).image for number in range(COUNT)])


class Bright(nn.Module):
    """A teacher whose answer is known: red pixels are the lesion."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 40 * (images[:, :1] - images[:, 1:2] - 0.2)


def student() -> nn.Module:
    torch.manual_seed(0)
    return smp.Unet("mobilenet_v2", encoder_depth=3, decoder_channels=(16, 8, 8), encoder_weights=None, classes=1)


def test_the_student_learns_the_teachers_answers(images: np.ndarray) -> None:
    """Red where the loss looks at the wrong network, the student is a copy, or predictions ignore its weights."""
    teacher, learner = Bright(), student()
    with torch.no_grad():
        truth = teacher(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)[:, 0] > 0
    result = distill(teacher, learner, images, steps=120, lr=3e-3, **{**QUICK, "batch_size": 8})
    agreed = (result.predict(images) == truth.numpy()).mean()
    assert agreed > max(truth.float().mean(), 1 - truth.float().mean()) + 0.1, "better than one class everywhere"
    assert result.student is learner
    assert not result.features, "the teacher offers none"
    assert "encoder_loss" not in result.history


def test_features_are_distilled_where_both_offer_some(images: np.ndarray) -> None:
    teacher = smp.FPN("mobilenet_v2", encoder_weights=None, classes=2)
    learner = smp.Unet("mobilenet_v2", encoder_weights=None, classes=2)
    result = distill(teacher, learner, list(images), steps=3, classes=["ulcer"], **QUICK)
    assert result.features
    assert result.classes == ("ulcer",)
    assert result.history["encoder_loss"].notna().all()


def test_a_stopped_call_goes_on_and_ends_with_the_same_weights(images: np.ndarray, tmp_path: Path) -> None:
    """Red where the state is not kept, or the resumed call takes other batches."""
    settings = {**QUICK, "steps": 8, "finetune": {"steps": 6, "batch_size": 4}}
    labels = (images[:4], (images[:4, ..., 0] > 128).astype(np.uint8))
    teacher = BasicUNet(2, 3, 2, features=(4, 4, 4, 4, 4, 4))
    whole = distill(teacher, student(), images, labels=labels, **settings)
    assert list(whole.history["stage"].unique()) == ["distill", "finetune"]
    with pytest.raises(Paused):
        distill(teacher, student(), images, labels=labels, out=tmp_path, minutes=0, **settings)
    torch.manual_seed(99)  # another start must not matter: the state says where it was
    again = smp.Unet("mobilenet_v2", encoder_depth=3, decoder_channels=(16, 8, 8), encoder_weights=None, classes=1)
    resumed = distill(teacher, again, images, labels=labels, out=tmp_path, **settings)
    assert network_digest(resumed.student) == network_digest(whole.student)
    with pytest.raises(UserError, match="holds another distillation"):
        distill(teacher, student(), images, labels=labels, out=tmp_path, **{**settings, "steps": 9})
    (tmp_path / "distillation.json").write_text('{"distill": ')
    with pytest.raises(UserError, match=r"distillation\.json is damaged"):
        distill(teacher, student(), images, labels=labels, out=tmp_path, **settings)


def test_networks_that_disagree_are_refused(images: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"the student answers 3 channels. With 1 foreground"):
        distill(Bright(), smp.Unet("mobilenet_v2", encoder_weights=None, classes=3), images, **QUICK)
    with pytest.raises(UserError, match="Did you mean encoder_weight"):
        distill(Bright(), student(), images, encoder_wieght=1.0)
    with pytest.raises(UserError, match="classes above 1"):
        distill(Bright(), student(), images, labels=(images[:1], np.full((1, SIZE, SIZE), 3)), **QUICK)
