"""LoRA on query and value alone: against the closed formula, and against the network without adapters."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import SamConfig, SamModel, SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from tskd.errors import UserError
from tskd.models.backbones import build_encoder, fit_backbone
from tskd.models.lora import (
    adapter_state,
    add_lora,
    load_adapter_state,
    lora_targets,
    set_adaptation,
    split_qkv,
)
from tskd.models.sam import SamSegmenter
from tskd.models.timm_segmenter import TimmSegmenter

VIT = {"num_classes": 0, "img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}
TRANSFORMERS = ("vit_tiny_patch16_224", "eva02_tiny_patch14_224", "sam")


class Classifier(nn.Module):
    """The smallest model with an encoder and something outside it."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images))


class SamPooled(SamVisionEncoder):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).last_hidden_state[:, :, 0, 1]


def build(name: str) -> Classifier:
    torch.manual_seed(0)
    if name == "sam":
        config = SamVisionConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, window_size=2, output_channels=16
        )
        config.global_attn_indexes = [1]
        encoder = SamPooled(config)
    elif name.startswith("tf_efficientnet"):
        encoder = timm.create_model(name, num_classes=0)
    else:
        encoder = timm.create_model(name, **VIT)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)  # zero biases would hide a bias that got lost
    return Classifier(encoder, 16 if name == "sam" else encoder.num_features).eval()


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def train_step(model: nn.Module) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):  # A moves from the second step on: B is zero at first
        model(images()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_split_encoder_answers_like_the_fused_one(name: str) -> None:
    model = build(name)
    before = model(images())
    assert len(split_qkv(model)) == 2
    torch.testing.assert_close(model(images()), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "size"), [
    ("swin_tiny_patch4_window7_224", 64), ("tiny_vit_5m_224", 64), ("efficientformer_l1", 224),
    ("maxvit_rmlp_pico_rw_256", 64), ("gcvit_xxtiny", 64), ("pvt_v2_b0", 64), ("sam2_hiera_tiny", 64),
    ("tnt_s_legacy_patch16_224", 32),
])  # fmt: skip
def test_the_parts_of_a_fused_projection_are_what_they_are_called(name: str, size: int) -> None:
    """Softmax does not see all keys shifted by one vector; it sees queries and values shifted."""
    torch.manual_seed(0)
    encoder = build_encoder(fit_backbone(name, size)).double().eval()
    fused = [encoder.get_submodule(one.rpartition(".")[0]) for one in split_qkv(encoder)]
    first = {(type(owner), getattr(owner, "use_global", None)): owner for owner in reversed(fused)}
    seen: dict[nn.Module, tuple[Any, ...]] = {}
    for owner in first.values():
        owner.register_forward_pre_hook(lambda module, given: seen.setdefault(module, given) and None)
    with torch.no_grad():
        encoder(torch.rand(1, 3, size, size, dtype=torch.float64))
        for owner, given in seen.items():
            answer = owner(*given)
            assert shifted(owner, "k", given).allclose(answer, rtol=0, atol=1e-9)
            for part in ("q", "v"):
                assert not shifted(owner, part, given).allclose(answer, rtol=0, atol=1e-6)
    assert seen


def shifted(owner: nn.Module, part: str, given: tuple[Any, ...]) -> Tensor:
    """Return the attention's answer where one vector is added to every query, key or value."""
    layers = {
        name.rpartition(".")[2]: module for name, module in owner.named_modules() if isinstance(module, nn.Linear)
    }
    if part not in layers:  # the global query of GCViT comes from outside
        return torch.full((1,), torch.inf, dtype=torch.float64)
    layer = layers[part]
    vector = torch.linspace(-3, 3, layer.out_features, dtype=torch.float64)
    hook = layer.register_forward_hook(lambda _, __, output: output + vector)
    answer: Tensor = owner(*given)
    hook.remove()
    return answer


@pytest.mark.parametrize("name", [*TRANSFORMERS, "tf_efficientnet_lite0"])
def test_adapters_change_nothing_before_training_and_something_after_it(name: str) -> None:
    model = build(name)
    before = model(images())
    set_adaptation(model, "lora", rank=2)
    torch.testing.assert_close(model(images()), before, rtol=1e-5, atol=1e-5)
    nudge_adapters(model)
    assert (model(images()) - before).abs().max() > 1e-3


def nudge_adapters(model: nn.Module) -> None:
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.5)


def test_adapters_add_alpha_over_rank_times_b_a_to_query_and_value_and_nothing_to_key() -> None:
    model = build("vit_tiny_patch16_224")
    set_adaptation(model, "lora", rank=2, alpha=6.0)
    nudge_adapters(model)
    attention = model.encoder.get_submodule("blocks.0.attn.qkv")
    tokens = torch.rand(5, 24, generator=torch.Generator().manual_seed(2))
    for part in ("q", "v"):
        layer: Any = attention.get_submodule(part)
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert product.abs().max() > 0
        change = layer(tokens) - layer.get_base_layer()(tokens)
        torch.testing.assert_close(change, 3.0 * tokens @ product.T, rtol=1e-4, atol=1e-5)
    assert type(attention.get_submodule("k")) is nn.Linear


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_training_moves_adapters_and_head_but_no_pretrained_tensor(name: str) -> None:
    model = build(name)
    adaptation = set_adaptation(model, "lora", rank=2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    train_step(model)
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == set(adaptation.trainable)
    adapters = {key for key in moved if key.startswith("encoder.")}
    assert len(adapters) == 2 * 2 * 2  # blocks, q and v, A and B
    assert all(".qkv.q.lora_" in key or ".qkv.v.lora_" in key for key in adapters)


@pytest.mark.parametrize("rank", [1, 4])
def test_rank_r_adds_36864_r_parameters_to_sam_vit_b(rank: int) -> None:
    with torch.device("meta"):
        model = SamSegmenter(SamModel(SamConfig()), classes=2, image_size=512)
        before = sum(parameter.numel() for parameter in model.encoder.parameters())
        adaptation = set_adaptation(model, "lora", rank=rank)
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) - before == 36_864 * rank
    decoder = sum(parameter.numel() for parameter in model.decoder.parameters())
    assert adaptation.parameters == 36_864 * rank + decoder


def test_networks_without_attention_get_adapters_on_their_1x1_convolutions() -> None:
    encoder = build("tf_efficientnet_lite0").encoder
    modules = dict(encoder.named_modules())
    targets = lora_targets(encoder)
    assert "blocks.1.0.conv_pw" in targets
    assert {(modules[name].kernel_size, modules[name].groups) for name in targets} == {((1, 1), 1)}


def test_a_probe_trains_the_head_alone_and_keeps_batch_norm_statistics() -> None:
    model = build("tf_efficientnet_lite0")
    before = model(images())
    adaptation = set_adaptation(model, "probe")
    assert adaptation.trainable == ("head.weight", "head.bias")
    assert adaptation.parameters == 2 * 1280 + 2
    model.train()
    model(images())
    torch.testing.assert_close(model.eval()(images()), before, rtol=1e-4, atol=1e-4)


def test_full_adaptation_trains_every_parameter() -> None:
    model = build("vit_tiny_patch16_224")
    assert set_adaptation(model, "full").trainable == tuple(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("adaptation", ["lora", "probe", "full"])
def test_saved_adapters_rebuild_the_trained_model_on_the_same_base(adaptation: str) -> None:
    trained, rebuilt = build("tf_efficientnet_lite0"), build("tf_efficientnet_lite0")
    set_adaptation(trained, adaptation, rank=2)
    trained.train()
    trained(images())  # with full adaptation this moves the batch norm statistics
    nudge_adapters(trained)
    nn.init.normal_(trained.head.weight)
    set_adaptation(rebuilt, adaptation, rank=2)
    load_adapter_state(rebuilt, adapter_state(trained))
    assert torch.equal(rebuilt.eval()(images()), trained.eval()(images()))


def test_saved_adapters_hold_nothing_of_the_frozen_base() -> None:
    model = build("vit_tiny_patch16_224")
    adaptation = set_adaptation(model, "lora", rank=2)
    assert set(adapter_state(model)) == set(adaptation.trainable)


def test_adapters_of_another_model_are_refused_and_named() -> None:
    model = build("vit_tiny_patch16_224")
    set_adaptation(model, "lora", rank=2)
    state = adapter_state(model)
    state["head.weight"] = torch.zeros(5, 24)
    state["stranger"] = state.pop("head.bias")
    before = model.head.weight.clone()
    told = r"1 missing \(head\.bias\); 1 of another shape \(head\.weight\); 1 unexpected \(stranger\)"
    with pytest.raises(UserError, match=told):
        load_adapter_state(model, state)
    assert torch.equal(model.head.weight, before)


def test_batch_norm_of_rows_is_frozen_as_that_of_planes() -> None:
    torch.manual_seed(0)
    model = TimmSegmenter("levit_128s", "pyramid", classes=1, image_size=64)
    model.train()(torch.rand(4, 3, 64, 64))  # statistics of their own
    planes = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = model.eval().encode(planes)[-1]
        set_adaptation(model, "probe")
        torch.testing.assert_close(model.train().encode(planes)[-1], before, rtol=1e-4, atol=1e-5)


def test_impossible_adaptations_are_refused() -> None:
    with pytest.raises(UserError, match="rank 0"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), rank=0, targets=["0"])
    with pytest.raises(UserError, match="probe or full"):
        lora_targets(nn.Conv2d(3, 3, 3))
    model = build("vit_tiny_patch16_224")
    set_adaptation(model, "lora", rank=1)
    with pytest.raises(ValueError, match="already"):
        set_adaptation(model, "lora", rank=1)
