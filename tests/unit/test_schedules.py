from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tskd.engine.schedules import learning_rate_factor, parameter_groups
from tskd.models.timm_segmenter import TimmSegmenter


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0, 1))
def test_the_rate_rises_to_one_and_falls_without_reaching_zero(steps: int, warmup: float) -> None:
    factors = [learning_rate_factor(step, steps, warmup) for step in range(steps)]
    top = factors.index(max(factors))
    assert factors[top] == pytest.approx(1)
    assert all(a < b for a, b in pairwise(factors[: top + 1]))
    assert all(a >= b for a, b in pairwise(factors[top:]))
    assert min(factors) > 0, "a step at rate 0 is wasted"


class Student(nn.Module):
    """Names as in a student: a transformer of two blocks and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.model = nn.Module()
        self.encoder.model.pos_embed = nn.Parameter(torch.zeros(1, 4, 3))
        self.encoder.model.cls_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.encoder.model.patch_embed = nn.Conv2d(3, 3, 1)
        self.encoder.model.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.decoder = nn.Module()
        self.decoder.blocks = nn.ModuleList([nn.Linear(3, 3)])


def rates_and_decays(module: nn.Module, layer_decay: float, encoder_lr: float = 1.0) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(module, lr=1.0, weight_decay=0.1, layer_decay=layer_decay, encoder_lr=encoder_lr)
    names = {id(p): name for name, p in module.named_parameters()}
    assert all(group["lr"] == group["base_lr"] for group in groups)
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_early_blocks_learn_slower_and_vectors_are_not_decayed() -> None:
    assert rates_and_decays(Student(), layer_decay=0.5) == {
        "encoder.model.pos_embed": (0.25, 0.0),
        "encoder.model.cls_token": (0.25, 0.0),
        "encoder.model.patch_embed.weight": (0.25, 0.1),
        "encoder.model.patch_embed.bias": (0.25, 0.0),
        "encoder.model.blocks.0.weight": (0.5, 0.1),
        "encoder.model.blocks.0.bias": (0.5, 0.0),
        "encoder.model.blocks.1.weight": (1.0, 0.1),
        "encoder.model.blocks.1.bias": (1.0, 0.0),
        "decoder.blocks.0.weight": (1.0, 0.1),
        "decoder.blocks.0.bias": (1.0, 0.0),
    }


@pytest.mark.parametrize(("backbone", "stem", "head"), [
    ("test_efficientnet", "conv_stem", ""), ("resnet10t", "conv1", ""), ("test_convnext", "stem", ""),
    ("test_vit", "patch_embed", "model.norm."), ("regnetx_002", "stem", ""),
    ("swin_tiny_patch4_window7_224", "patch_embed", ""), ("tiny_vit_5m_224", "patch_embed", ""),
    ("sam2_hiera_tiny", "(patch|pos)_embed", ""), ("hiera_tiny_224", "(patch|pos)_embed", ""),
    ("vit_small_r26_s32_224", "(patch|pos)_embed", ""), ("coat_lite_tiny", "patch_embed1", ""),
    ("volo_d1_224", "patch_embed", ""), ("nest_tiny", "patch_embed", ""), ("densenet121", "features.conv0", ""),
])  # fmt: skip
def test_rates_rise_with_the_depth_of_every_kind_of_encoder(backbone: str, stem: str, head: str) -> None:
    """A trained stem that learns as fast as a random head forgets first what all images share."""
    with torch.device("meta"):
        student = TimmSegmenter(backbone=backbone, decoder="plain", classes=1, image_size=64)
    rates = {name: rate for name, (rate, _) in rates_and_decays(student, layer_decay=0.5).items()}
    encoder = {name: rate for name, rate in rates.items() if name.startswith("encoder.")}
    order = list(encoder.values())
    assert order == sorted(order), "parameters come in the order of the forward pass"
    assert {rate for name, rate in rates.items() if re.match(rf"encoder\.(model\.)?{stem}", name)} == {min(order)}
    assert min(order) <= 0.5**2 * max(order)
    assert all(rate == 1.0 for name, rate in rates.items() if name not in encoder or (head and head in name))


@pytest.mark.parametrize(("backbone", "spared"), [
    ("swin_tiny_patch4_window7_224", "relative_position_bias_table"), ("tiny_vit_5m_224", "attention_biases"),
    ("sam2_hiera_tiny", "pos_embed(_window)?"), ("vit_small_patch14_reg4_dinov2", "(pos_embed|cls_token|reg_token)"),
    ("vit_tiny_patch16_dinov3_qkvb", "(cls_token|reg_token)"), ("mvitv2_tiny", "rel_pos_[hw]"),
])  # fmt: skip
def test_tables_and_tokens_are_not_decayed_and_matrices_are(backbone: str, spared: str) -> None:
    with torch.device("meta"):
        student = TimmSegmenter(backbone=backbone, decoder="plain", classes=1, image_size=64)
    decays = {name: decay for name, (_, decay) in rates_and_decays(student, layer_decay=1.0).items()}
    shapes = {name: tensor.ndim for name, tensor in student.named_parameters()}
    tables = {name for name, decay in decays.items() if decay == 0 and shapes[name] > 1}
    assert tables == {name for name in decays if re.search(rf"\b{spared}$", name)}
    assert tables


def test_the_encoders_factor_is_for_the_encoder_alone_and_on_top_of_the_decay_by_layers() -> None:
    rates = {name: rate for name, (rate, _) in rates_and_decays(Student(), layer_decay=0.5, encoder_lr=0.2).items()}
    assert rates["encoder.model.pos_embed"] == pytest.approx(0.05)
    assert rates["encoder.model.blocks.1.weight"] == pytest.approx(0.2)
    assert rates["decoder.blocks.0.weight"] == 1.0


def test_without_layer_decay_all_learn_alike() -> None:
    assert {rate for rate, _ in rates_and_decays(Student(), layer_decay=1.0).values()} == {1.0}


def test_frozen_parameters_are_in_no_group() -> None:
    module = Student()
    module.encoder.requires_grad_(False)
    assert set(rates_and_decays(module, layer_decay=0.5)) == {"decoder.blocks.0.weight", "decoder.blocks.0.bias"}
