"""MoCo v3's parts against values worked out by hand, by scipy and by its formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from tskd.losses.pretraining import info_nce
from tskd.models.description import NetworkDescription
from tskd.models.moco import MomentumContrast, build_mlp, momentum_at
from tskd.models.registry import build_model

SIZE = 32


def build_moco(backbone: str = "vit_tiny_patch16_224", *, steps: int = 10, momentum: float = 0.9) -> MomentumContrast:
    torch.manual_seed(0)
    arguments = {"backbone": backbone, "decoder": "plain"}
    student: Any = build_model(NetworkDescription("timm", arguments, ("one",), SIZE))
    return MomentumContrast(student, hidden=32, width=16, momentum=momentum, steps=steps)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("temperature", "first"), [(0.2, 0), (1.0, 0), (0.2, 3)])
def test_the_loss_is_that_of_scipy(temperature: float, first: int) -> None:
    queries, keys = random(3, 8, seed=2) - 0.5, random(7, 8, seed=3) - 0.5
    unit = [v.numpy() / np.linalg.norm(v.numpy(), axis=1, keepdims=True) for v in (queries, keys)]
    scores = log_softmax(unit[0] @ unit[1].T / temperature, axis=1)
    expected = -2 * temperature * np.mean([scores[i, first + i] for i in range(3)])
    assert info_nce(queries, keys, temperature=temperature, first=first).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_orthogonal_keys_by_hand() -> None:
    """Cosine 1 to the own key and 0 to the two others."""
    eye = torch.eye(3)
    expected = 2 * 0.5 * math.log(1 + 2 * math.exp(-1 / 0.5))
    assert info_nce(5 * eye, 0.1 * eye, temperature=0.5).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("start", [0.9, 0.99])
def test_momentum_rises_from_its_start_to_one_by_half_a_cosine(start: float) -> None:
    found = [float(momentum_at(torch.tensor(step), 8, start)) for step in range(9)]
    expected = [1 - 0.5 * (1 + math.cos(math.pi * step / 8)) * (1 - start) for step in range(9)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert found[0] == pytest.approx(start)
    assert found[8] == pytest.approx(1)
    assert found == sorted(found)


def test_the_momentum_copy_follows_by_the_formula_before_keys_are_made() -> None:
    moco = build_moco(steps=4)
    name = "model.blocks.3.mlp.fc1.weight"
    copied, own = dict(moco.momentum_encoder.named_buffers())[name], dict(moco.student.encoder.named_parameters())[name]
    with torch.no_grad():
        own.add_(0.1)  # as an optimiser step would
    first, second, images = copied.clone(), own.detach().clone(), random(4, 3, SIZE, SIZE)
    moco.train()(images, images)
    torch.testing.assert_close(copied, 0.9 * first + 0.1 * second)
    with torch.no_grad():
        own.add_(0.1)
    first, second = copied.clone(), own.detach().clone()
    keys = moco(images, images).keys
    momentum = 1 - 0.5 * (1 + math.cos(math.pi / 4)) * 0.1
    torch.testing.assert_close(copied, momentum * first + (1 - momentum) * second)
    planes = moco.student.normalise(images)
    torch.testing.assert_close(moco.keys((planes, planes))[0], keys[0])


def test_before_training_and_in_evaluation_the_momentum_copy_is_the_encoder_itself() -> None:
    moco = build_moco().eval()
    images = random(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        moco(images, images)
        features = moco.student.encoder(moco.student.normalise(images))[-1]
        assert torch.equal(moco.momentum_encoder(moco.student.normalise(images))[-1], features)
    assert int(moco.updates) == 0


def test_keys_carry_no_gradient_and_queries_reach_all_but_the_patch_embedding() -> None:
    moco = build_moco().train()
    queries, keys = moco(random(4, 3, SIZE, SIZE), random(4, 3, SIZE, SIZE, seed=5))
    assert not any(key.requires_grad for key in keys)
    loss = info_nce(queries[0], keys[1], temperature=0.2) + info_nce(queries[1], keys[0], temperature=0.2)
    loss.backward()
    without = {name for name, p in moco.named_parameters() if p.grad is None or not p.grad.any()}
    frozen = {name for name, _ in moco.student.named_parameters() if "patch_embed" in name or "decoder" in name}
    assert {name.removeprefix("student.") for name in without} == frozen


def test_a_checkpoint_holds_the_momentum_copy_and_the_optimiser_does_not_know_it() -> None:
    moco = build_moco()
    buffers = {name for name, _ in moco.named_buffers()}
    for name, _ in moco.student.encoder.named_parameters():
        assert f"momentum_encoder.{name}" in buffers
    for name, _ in moco.projector.named_parameters():
        assert f"momentum_projector.{name}" in buffers
    assert not [name for name, _ in moco.named_parameters() if name.startswith("momentum")]
    assert "updates" in buffers


def test_a_convolutional_student_trains_whole() -> None:
    """The frozen patch embedding is a transformer's affair."""
    moco = build_moco("resnet10t")
    assert all(parameter.requires_grad for parameter in moco.student.encoder.parameters())
    assert moco.train()(random(4, 3, SIZE, SIZE), random(4, 3, SIZE, SIZE)).queries[0].shape == (4, 16)


def test_projector_and_predictor_have_the_published_layers() -> None:
    """Three and two linear layers without bias, each with batch norm, the last of them without scale and shift."""
    kinds = [type(layer).__name__ for layer in build_mlp(4, 8, 8, 2)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    layers: Any = build_mlp(4, 8, 2)
    assert [(layer.in_features, layer.out_features, layer.bias) for layer in layers[0::3]] == [
        (4, 8, None),
        (8, 2, None),
    ]
    assert [layer.affine for layer in layers[1::3]] == [True, False]
