"""The denoiser: sizes it takes, gradients everywhere, conditions that matter, checkpointing that changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor

from tskd.errors import UserError
from tskd.models.pan_unet import PanUNet
from tskd.models.swin_unet import (
    NULL_LABEL,
    PRESETS,
    Denoiser,
    SwinUNet,
    SwinUNetSize,
    check_image_size,
    fits,
    window_of,
)

SIZE = replace(PRESETS["tiny"], channels=16, heads=(0, 2, 2))
PAN_SIZE = SwinUNetSize(32, (1, 2), (2, 1), heads=(0, 2), windows=(4, 4), published=True)
KINDS = pytest.mark.parametrize("kind", [SwinUNet, PanUNet])


def awake(model: Denoiser) -> Denoiser:
    """Give the zero-initialised layers small random weights, so that every path carries a signal."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def build(kind: type[SwinUNet | PanUNet] = SwinUNet, **settings: int | bool) -> Denoiser:
    torch.manual_seed(0)
    size = PAN_SIZE if kind is PanUNet else SIZE
    return awake(kind(size, image_size=16, channels=1, **settings))  # type: ignore[arg-type]


@pytest.fixture
def noisy() -> Tensor:
    return torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [16, 48, 64, 80, 96])
def test_the_answer_has_the_shape_of_the_image(image_size: int, channels: int) -> None:
    model = SwinUNet(SIZE, image_size=image_size, channels=channels)
    noisy = torch.randn(1, channels, image_size, image_size)
    assert model(noisy, torch.tensor([5])).shape == noisy.shape


@pytest.mark.parametrize(
    ("preset", "image_size", "millions", "swin_blocks"),
    [("tiny", 64, 1.8, 6), ("small", 128, 18, 8), ("base", 256, 59, 8), ("pan", 256, 116, 28)],
)
def test_every_preset_builds_at_its_size(preset: str, image_size: int, millions: float, swin_blocks: int) -> None:
    with torch.device("meta"):
        model = (PanUNet if PRESETS[preset].published else SwinUNet)(PRESETS[preset], image_size=image_size)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.05)
    assert sum(isinstance(part, SwinTransformerBlock) for part in model.modules()) == swin_blocks


@KINDS
def test_a_new_model_predicts_zero(kind: type[SwinUNet | PanUNet]) -> None:
    model = kind(PAN_SIZE if kind is PanUNet else SIZE, image_size=16, channels=1)
    assert not model(torch.randn(2, 1, 16, 16), torch.tensor([0, 999])).any()


@KINDS
def test_every_parameter_gets_a_gradient(kind: type[SwinUNet | PanUNet], noisy: Tensor) -> None:
    model = build(kind, num_classes=2)
    model(noisy, torch.tensor([3, 700]), torch.tensor([1, NULL_LABEL])).square().sum().backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


@KINDS
def test_the_time_step_changes_the_answer_of_its_own_image_only(kind: type[SwinUNet | PanUNet], noisy: Tensor) -> None:
    model = build(kind).eval()
    early, late = model(noisy, torch.tensor([10, 10])), model(noisy, torch.tensor([10, 900]))
    torch.testing.assert_close(early[0], late[0])
    assert (early[1] - late[1]).abs().max() > 1e-3


@KINDS
def test_labels_change_the_answer_and_no_labels_means_the_null_label(
    kind: type[SwinUNet | PanUNet], noisy: Tensor
) -> None:
    model, steps = build(kind, num_classes=2).eval(), torch.tensor([10, 10])
    absent = model(noisy, steps)
    torch.testing.assert_close(absent, model(noisy, steps, torch.tensor([NULL_LABEL, NULL_LABEL])))
    labelled = model(noisy, steps, torch.tensor([0, 1]))
    assert (labelled - absent).flatten(1).abs().amax(1).min() > 1e-3


@KINDS
def test_checkpointing_changes_neither_answer_nor_gradients(kind: type[SwinUNet | PanUNet], noisy: Tensor) -> None:
    plain, frugal = build(kind), build(kind, checkpointing=True)
    gradients = []
    for model in (plain, frugal):
        model(noisy, torch.tensor([3, 700])).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_level_of_one_block_shifts_its_windows_in_the_decoder() -> None:
    """A level of one block still shifts its windows in one half of the U, so that their borders are crossed."""
    model = SwinUNet(SIZE, image_size=64, channels=1)
    shifts = [level.swin[0].block.shift_size for level in (model.encoder[1], model.decoder[1])]
    assert shifts == [(0, 0), (4, 4)]


@pytest.mark.parametrize(("grid", "largest", "window"), [(8, 8, 8), (5, 8, 5), (24, 8, 8), (12, 8, 6), (22, 8, None)])
def test_windows_tile_the_grid_or_are_refused(grid: int, largest: int, window: int | None) -> None:
    assert window_of(grid, largest) == window


def test_a_size_that_does_not_fit_is_refused_with_sizes_that_do() -> None:
    with pytest.raises(UserError, match="100 px") as failure:
        SwinUNet(SIZE, image_size=100)
    named = [int(word) for word in str(failure.value).split("do:")[1].strip(" .").split(", ")]
    assert 96 in named
    assert all(fits(SIZE, side) for side in named)


@pytest.mark.parametrize("image_size", [0, -64, 4])
def test_sizes_below_the_smallest_are_refused(image_size: int) -> None:
    with pytest.raises(UserError, match="nearest"):
        check_image_size(SIZE, image_size)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="for \\(1, 16, 16\\)"):
        build()(torch.zeros(1, 1, 32, 32), torch.tensor([0]))


def test_labels_are_refused_by_a_model_without_classes(noisy: Tensor) -> None:
    with pytest.raises(ValueError, match="without classes"):
        build()(noisy, torch.tensor([0, 0]), torch.tensor([0, 1]))
