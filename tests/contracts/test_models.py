"""Every model with every decoder: what stages, export and serving rely on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tskd.errors import UserError
from tskd.models.decoders import DECODERS
from tskd.models.description import Adaptation, AdaptationName, NetworkDescription
from tskd.models.registry import MODELS, adapt, build_model, load_model, save_model
from tskd.recipe.schema import Recipe

SIZE = 64
CLASSES = ("kidney", "tumour")
BACKBONES = {"vit": "vit_tiny_patch16_224", "convolutional": "mobilenetv3_small_050"}


def description(kind: str, **arguments: Any) -> NetworkDescription:
    return NetworkDescription(kind, arguments, CLASSES, SIZE)


CASES = {
    **{
        f"timm-{name}-{decoder}": description("timm", backbone=backbone, decoder=decoder)
        for name, backbone in BACKBONES.items()
        for decoder in DECODERS
        if name != "vit" or decoder not in ("unet", "unet_fine")  # it gives one scale: refused
    },
    "dynunet": description("dynunet", channels=[8, 16, 32]),
    "ensemble": description(
        "ensemble",
        members=[
            description("timm", backbone=BACKBONES["convolutional"], decoder="pyramid").as_dict(),
            description("dynunet", channels=[8, 16, 32]).as_dict(),
        ],
        flip=[True, False],
    ),
    "dynunet-supervised": description("dynunet", channels=[8, 16, 32, 32, 32], supervised=2),
}
NEEDS_FILES = {"sam"}
"""Kinds that are built from a checkpoint; their contract is tested beside their parity."""


@pytest.fixture(params=CASES)
def described(request: pytest.FixtureRequest) -> NetworkDescription:
    return CASES[request.param]


def built(described: NetworkDescription) -> nn.Module:
    torch.manual_seed(0)
    return build_model(described)


def images(batch: int, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def test_every_kind_has_a_case_here() -> None:
    assert {case.kind for case in CASES.values()} == MODELS.keys() - NEEDS_FILES


def test_logits_come_at_the_inputs_size_and_features_as_declared(described: NetworkDescription) -> None:
    model = built(described).eval()
    for height, width in ((SIZE, SIZE), (50, 77), (129, 128), (1, 1)):
        with torch.inference_mode():
            features, logits = model(images(2, height, width))
        assert logits.shape == (2, len(CLASSES), height, width)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        assert tuple(plane.shape[1] for plane in features) == model.feature_dims
        sides = [plane.shape[-1] for plane in features]
        assert sides == sorted(sides, reverse=True), "shallow to deep"


def test_backward_reaches_every_parameter(described: NetworkDescription) -> None:
    """A parameter without a gradient would stop training in several processes."""
    model = built(described).train()
    features, logits = model(images(2))
    supervised = features[1:] if described.kind == "dynunet" else ()
    sum((one.square().mean() for one in supervised), logits.square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_the_images_of_a_batch_do_not_see_each_other(described: NetworkDescription) -> None:
    model = built(described).eval()
    batch = images(3, 48, 80)
    with torch.inference_mode():
        together = model(batch).logits
        alone = torch.cat([model(batch[i : i + 1]).logits for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_answer_depends_on_the_image(described: NetworkDescription) -> None:
    model = built(described).eval()
    with torch.inference_mode():
        assert not torch.allclose(model(images(1)).logits, model(1 - images(1)).logits, atol=1e-5)


def test_a_saved_model_answers_with_the_same_bits(described: NetworkDescription, tmp_path: Path) -> None:
    model = built(described).train()
    model(images(4))  # batch norm statistics move and must be saved
    save_model(tmp_path, model, described, file="student.safetensors")
    loaded = load_model(tmp_path)
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(images(2)).logits, model.eval()(images(2)).logits)
    assert json.loads((tmp_path / "model.json").read_text())["classes"] == list(CLASSES)


@pytest.mark.parametrize("adaptation", ["lora", "probe", "full"])
@pytest.mark.parametrize("backbone", BACKBONES.values())
def test_an_adapted_teacher_is_its_base_and_what_was_trained(
    adaptation: AdaptationName, backbone: str, tmp_path: Path
) -> None:
    base = tmp_path / "base.safetensors"
    start = description("timm", backbone=backbone, decoder="pyramid")
    save_backbone(built(start), base)
    described = replace(start, weights=str(base), adaptation=Adaptation(adaptation, rank=2))
    model = built(described)
    trained = adapt(model, described)
    train_a_little(model)
    save_model(tmp_path, model, described, file="adapter.safetensors")
    torch.manual_seed(99)  # nothing may hang on how the decoder was drawn
    loaded = load_model(tmp_path)
    with torch.inference_mode():
        assert torch.equal(loaded(images(2)).logits, model.eval()(images(2)).logits)
    assert any(name.startswith("encoder.") for name in trained) == (adaptation != "probe")


def save_backbone(model: nn.Module, path: Path) -> None:
    """Write the encoder's tensors under timm's names; a transformer's are one level down."""
    state = model.get_submodule("encoder").state_dict()
    save_file({name.removeprefix("model."): tensor.contiguous() for name, tensor in state.items()}, path)


def train_a_little(model: nn.Module) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images(4)).logits.square().mean().backward()
        optimizer.step()


def test_weights_of_another_backbone_are_refused_not_loaded_in_part(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_backbone(built(CASES["timm-convolutional-plain"]), base)
    with pytest.raises(UserError, match=r"does not fit vit_tiny_patch16_224: \d+ missing .* It is EfficientNet"):
        build_model(replace(CASES["timm-vit-plain"], weights=str(base)))


def test_a_student_can_start_from_a_file(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    first = built(CASES["timm-vit-detail"])
    save_backbone(first, base)
    torch.manual_seed(5)
    second = build_model(replace(CASES["timm-vit-detail"], weights=str(base)))
    with torch.inference_mode():
        pairs = zip(first.eval()(images(1)).features, second.eval()(images(1)).features)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_weights_of_another_image_size_keep_their_positions(tmp_path: Path) -> None:
    """The class token's row stays; the grid is resampled, so that a position keeps its place in the image."""
    base, whole = tmp_path / "base.safetensors", timm.create_model("vit_tiny_patch16_224", img_size=224)
    save_file(whole.state_dict(), base)
    student: Any = build_model(replace(CASES["timm-vit-plain"], weights=str(base)))
    found = student.encoder.model.pos_embed.detach()
    token, table = whole.pos_embed.detach().split([1, 14 * 14], dim=1)
    grid = table.reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    smaller = F.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True)
    expected = torch.cat([token, smaller.permute(0, 2, 3, 1).reshape(1, 16, -1)], dim=1)
    torch.testing.assert_close(found, expected)


def test_supervised_levels_answer_while_it_trains_and_not_in_use() -> None:
    """Finest first, each at the network's size; what is coarser is constant over more pixels."""
    model = built(CASES["dynunet-supervised"])
    features, logits = model.train()(images(1, 50, 77))
    assert [plane.shape for plane in features] == [(1, len(CLASSES), SIZE, SIZE)] * 3
    assert logits.shape == (1, len(CLASSES), 50, 77)
    blocks = [plane.detach().unfold(2, 4, 4).unfold(3, 4, 4).flatten(4) for plane in features]
    uneven = [float(block.std(dim=-1).max()) for block in blocks]
    assert uneven[0] > 1e-3
    assert uneven[1] > 1e-3
    assert uneven[2] == pytest.approx(0, abs=1e-6)
    assert len(model.eval()(images(1)).features) == 1


def test_a_decoder_that_joins_scales_refuses_an_encoder_of_one() -> None:
    with pytest.raises(
        UserError, match=r"decoder of a U-Net joins features of several sizes.* Choose the decoder detail"
    ):
        build_model(description("timm", backbone="vit_tiny_patch16_224", decoder="unet"))


def test_the_default_student_is_small() -> None:
    student = Recipe().student
    model = build_model(
        replace(description("timm", **student.model_dump(include={"backbone", "decoder"})), image_size=128)
    )
    assert sum(p.numel() for p in model.parameters()) <= 8_000_000


def test_an_unknown_backbone_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"no backbone 'vit_tinny_patch16_224'. Similar names: vit_tiny_patch16_224,"):
        build_model(description("timm", backbone="vit_tinny_patch16_224", decoder="plain"))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"model kind 'unet' is not known. Choose one of: dynunet, ensemble, sam, timm"):
        build_model(description("unet"))
