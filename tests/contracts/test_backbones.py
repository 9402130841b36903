"""One timm backbone of each family: it is fitted, answers, trains, is adapted and exported, or refused at once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from torch import Tensor, nn

from tskd.deploy.network_file import ask, open_session
from tskd.deploy.onnx_export import Deployed, write_onnx
from tskd.errors import UserError
from tskd.models.backbones import fit_backbone, has_one_scale
from tskd.models.description import NetworkDescription
from tskd.models.lora import set_adaptation
from tskd.models.registry import build_model
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.recipe.schema import TeacherConfig
from tskd.stages.network_answers import network_answer
from tskd.stages.teacher import describe_teacher

SIZE, LARGER = 64, 96
ONE_SCALE = [
    "vit_small_patch32_224", "vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_dinov3_qkvb", "eva02_tiny_patch14_224",
    "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224", "cait_xxs24_224", "xcit_nano_12_p8_224",
    "gmlp_ti16_224",
]  # fmt: skip
PYRAMIDS = [
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "convnext_zepto_rms", "convnextv2_atto", "resnet10t",
    "regnetx_002", "mobilenetv3_small_050", "mobilenetv4_conv_small", "tiny_vit_5m_224", "hiera_tiny_224",
    "sam2_hiera_tiny", "mvitv2_tiny", "pvt_v2_b0", "coat_tiny", "coatnet_nano_rw_224", "maxvit_pico_rw_256",
    "levit_128s", "fastvit_t8", "mambaout_femto", "nextvit_small", "davit_tiny", "volo_d1_224", "edgenext_xx_small",
]  # fmt: skip
WINDOWED = ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "tiny_vit_5m_224", "hiera_tiny_224"]
EXPORTED = ["hiera_made_up_shallow", "convnext_zepto_rms", "eva02_made_up_shallow"]
"""Windows of five axes, convolutions channels last, a side other than the images'; others were tried once (LOG.md)."""


@register_model
def hiera_made_up_shallow(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build hiera_tiny_224 with a third of its blocks: the exporter takes a second for each, and they are alike."""
    return timm.create_model("hiera_tiny_224", pretrained, stages=(1, 1, 1, 1), **settings)


@register_model
def eva02_made_up_shallow(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build eva02_tiny_patch14_224 with a sixth of its blocks, for the same reason."""
    return timm.create_model("eva02_tiny_patch14_224", pretrained, depth=2, **settings)


def build(backbone: str, size: int) -> TimmSegmenter:
    torch.manual_seed(0)
    decoder = "detail" if has_one_scale(backbone) else "pyramid"
    return TimmSegmenter(backbone, decoder, classes=2, image_size=size)


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(size))


@pytest.fixture(scope="module", params=[*ONE_SCALE, *PYRAMIDS])
def backbone(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def built(backbone: str) -> TimmSegmenter:
    return build(backbone, SIZE)


def test_features_are_planes_shallow_to_deep_and_logits_finite(backbone: str, built: TimmSegmenter) -> None:
    sides = check_answer(copy.deepcopy(built), SIZE)
    assert (len(set(sides)) == 1) == (backbone in ONE_SCALE)


@pytest.mark.parametrize("backbone", WINDOWED)
def test_windows_that_do_not_divide_the_features_are_no_hindrance(backbone: str) -> None:
    check_answer(build(backbone, LARGER), LARGER)


def check_answer(model: TimmSegmenter, size: int) -> list[int]:
    """Return the sides of the features."""
    with torch.inference_mode():
        features, logits = model.eval()(images(size))
    assert logits.shape == (2, 2, size, size)
    assert logits.isfinite().all()
    assert tuple(plane.shape[1] for plane in features) == model.feature_dims
    assert all(plane.ndim == 4 and plane.shape[-2] == plane.shape[-1] for plane in features)
    sides = [plane.shape[-1] for plane in features]
    assert sides == sorted(sides, reverse=True)
    assert 3 / 4 * size <= model.image_size <= 3 / 2 * size
    return sides


def test_features_keep_their_place(built: TimmSegmenter) -> None:
    """What changes at the lower left of an image changes the deepest features there most: no axis is swapped."""
    model = copy.deepcopy(built).eval()
    before = images(SIZE)[:1]
    after = before.clone()
    after[..., SIZE // 2 :, : SIZE // 2] = 1 - after[..., SIZE // 2 :, : SIZE // 2]
    with torch.inference_mode():
        pairs = zip(model.encode(before), model.encode(after))
        change = next((a - b).abs().mean(dim=1)[0] for a, b in pairs)
    middle = -(-len(change) // 2)
    quarters = {
        "lower left": change[middle:, : len(change) - middle],
        "upper left": change[: len(change) - middle, : len(change) - middle],
        "upper right": change[: len(change) - middle, middle:],
        "lower right": change[middle:, middle:],
    }
    means = {name: float(quarter.mean()) for name, quarter in quarters.items()}
    assert max(means, key=lambda name: means[name]) == "lower left", means


def test_a_step_reaches_the_whole_encoder(built: TimmSegmenter) -> None:
    """A parameter without a gradient would stop training in several processes."""
    model = awake(built)
    model(images(SIZE)).logits.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    still = [name for name, grad in gradients.items() if grad is not None and grad.abs().max() == 0]
    assert [name for name in still if not name.endswith("attention_biases")] == []  # of LeViT's last grid, one token


def awake(built: TimmSegmenter) -> TimmSegmenter:
    """Return a copy without stochastic depth and without residual branches that start at zero and pass nothing back."""
    model = copy.deepcopy(built).eval()
    for parameter in model.parameters():
        if parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.1)
    return model


def test_an_adapted_encoder_starts_as_it_was_and_only_adapters_move(built: TimmSegmenter) -> None:
    model = awake(built)
    with torch.inference_mode():
        before = model(images(SIZE)).logits
    set_adaptation(model, "lora", rank=2)
    kept = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    with torch.inference_mode():
        torch.testing.assert_close(model(images(SIZE)).logits, before, rtol=1e-4, atol=1e-5)
    step(model.train())
    moved = {name for name, tensor in model.encoder.state_dict().items() if not torch.equal(tensor, kept[name])}
    assert moved, "some adapters"
    assert all("lora_" in name for name in moved), "batch norm and base weights stay"


def step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images(SIZE)).logits.square().mean().backward()
    optimizer.step()


def test_tensors_have_the_names_of_timms_files(backbone: str, built: TimmSegmenter) -> None:
    """Weight files are loaded by name; timm's default feature extractor renames ``stages.0`` to ``stages_0``."""
    with torch.device("meta"):
        file = timm.create_model(backbone).state_dict()
    assert {name.removeprefix("model.") for name in built.encoder.state_dict()} <= file.keys()


FAMILIES = {
    "plain": (
        "vit_tiny_patch16_224", "deit_tiny_patch16_224", "beit_base_patch16_224", "beitv2_base_patch16_224",
        "eva02_tiny_patch14_224", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "cait_xxs24_224",
    ),
    "pyramid": (
        "swin_tiny_patch4_window7_224", "hiera_tiny_224", "convnextv2_atto", "pvt_v2_b0", "resnet10t",
        "tf_efficientnet_lite0", "maxvit_tiny_tf_224",
    ),
}  # fmt: skip


@pytest.mark.parametrize("backbone", [name for names in FAMILIES.values() for name in names])
def test_a_teacher_gets_the_decoder_that_its_features_ask_for(backbone: str) -> None:
    """BEiT and EVA are plain transformers that timm builds of other classes than ViT: a pyramid of one size is none."""
    config = TeacherConfig(name=f"timm/{backbone}", weights="random", adaptation="full")
    decoder = describe_teacher(config, download=False).arguments["decoder"]
    assert decoder == ("detail" if backbone in FAMILIES["plain"] else "pyramid")


def test_a_file_of_a_hierarchical_network_is_loaded(tmp_path: Path) -> None:
    file, size = tmp_path / "convnext.safetensors", 64
    whole = timm.create_model("convnextv2_atto")
    save_file(whole.state_dict(), file)
    arguments = {"backbone": "convnextv2_atto", "decoder": "pyramid"}
    model: Any = build_model(NetworkDescription("timm", arguments, ("one",), size, str(file))).eval()
    planes = images(size)
    with torch.inference_mode():
        expected = whole.eval().forward_intermediates(planes, intermediates_only=True)[-1]
        found = model.encoder(planes)[-1]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backbone", EXPORTED)
def test_the_exported_file_does_what_the_network_does(backbone: str, tmp_path: Path) -> None:
    model = build(backbone, SIZE).eval()
    write_onnx(Deployed(model), tmp_path / "model.onnx")
    image = np.random.default_rng(0).integers(0, 256, (75, 90, 3), np.uint8)
    ours, theirs = network_answer(model, image), ask(open_session(tmp_path / "model.onnx"), image)
    assert np.abs(ours.probabilities - theirs.probabilities).max() < 1e-4


@pytest.mark.parametrize(("backbone", "size", "side"), [
    ("vit_small_patch14_dinov2", 64, 70), ("vit_small_patch14_dinov2", 128, 126),
    ("vit_small_patch32_224", 48, 64), ("convnext_zepto_rms", 80, 96), ("swin_tiny_patch4_window7_224", 80, 80),
    ("inception_v4", 128, 128),
])  # fmt: skip
def test_the_side_is_the_nearest_that_leaves_no_pixel_out(backbone: str, size: int, side: int) -> None:
    """A patch of 14 px would drop 8 px at the right of 64; a convolution without padding drops a rim at any size."""
    assert fit_backbone(backbone, size).side == side


@register_model
def resnet_made_up_reading(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a network that reads a number as it runs, which the meta device has not (Gemma 4's encoder does)."""
    network = timm.create_model("test_resnet", pretrained, **settings)
    network.register_forward_pre_hook(read)
    return network


def read(_: nn.Module, given: tuple[Tensor, ...]) -> None:
    given[0].sum().item()


def test_a_network_that_reads_numbers_is_fitted_all_the_same() -> None:
    read, plain = fit_backbone("resnet_made_up_reading", SIZE), fit_backbone("test_resnet", SIZE)
    assert read._replace(backbone=plain.backbone) == plain


def test_fitting_draws_no_random_number() -> None:
    """Else a network would start from other weights where its backbone has been fitted before."""
    torch.manual_seed(3)
    fit_backbone.__wrapped__("xcit_nano_12_p16_224", 64)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))


@pytest.mark.parametrize(("backbone", "size", "works"), [
    ("efficientformer_l1", 64, 224), ("inception_v3", 32, 128),
])  # fmt: skip
def test_a_size_that_a_backbone_cannot_take_is_refused_with_one_that_it_can(
    backbone: str, size: int, works: int
) -> None:
    with pytest.raises(UserError, match=rf"{backbone}' cannot take images of {size} px .* It can take {works} px"):
        build(backbone, size)
    assert fit_backbone(backbone, works).side == works
