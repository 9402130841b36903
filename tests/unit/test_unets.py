"""The strong U-Nets: their size, what supervises them, and what makes one artifact another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tskd.comparison.grid import GridRun
from tskd.comparison.plan import all_missing, plan_runs
from tskd.models.control import nnunet_channels
from tskd.models.registry import build_model
from tskd.recipe.schema import Recipe, UnetConfig, build_recipe
from tskd.stages.label_training import deep_label_step
from tskd.stages.unets import describe_unet
from tskd.types import Batch

PHANTOM = {"family": "dermoscopy", "train": 8, "test": 2, "size": 32}
TINY: dict[str, Any] = {
    "data": {"image_size": 32, "labels": 6, "phantom": PHANTOM},
    "teacher": {"name": "timm/resnet10t", "weights": "random", "adaptation": "full"},
    "unet": {"channels": [8, 8, 8], "steps": 5},
    "engine": {"accelerator": "cpu"},
}


@pytest.mark.parametrize(("side", "channels", "lowest"), [
    (32, (32, 64, 128, 256), 4), (96, (32, 64, 128, 256, 512), 6), (112, (32, 64, 128, 256, 512), 7),
    (128, (32, 64, 128, 256, 512, 512), 4), (256, (32, 64, 128, 256, 512, 512, 512), 4),
    (208, (32, 64, 128, 256, 512), 13),
])  # fmt: skip
def test_levels_and_channels_are_those_that_nnu_net_plans(side: int, channels: tuple[int, ...], lowest: int) -> None:
    """Halved while 4 px are left; 13 px cannot be halved."""
    assert nnunet_channels(side) == channels
    assert side // 2 ** (len(channels) - 1) == lowest


@pytest.mark.parametrize(("settings", "supervised"), [
    ({}, 3), ({"deep_supervision": False}, 0), ({"channels": (8, 8, 8)}, 0), ({"channels": (8, 8, 8, 8)}, 1),
])  # fmt: skip
def test_all_levels_but_the_two_lowest_are_supervised(settings: dict[str, Any], supervised: int) -> None:
    described = describe_unet(UnetConfig(**settings), classes=["a"], image_size=128)
    assert described.arguments["supervised"] == supervised


def test_a_step_trains_every_level() -> None:
    """A parameter without a gradient would stop training in several processes; crops are smaller than the network."""
    torch.manual_seed(0)
    config = UnetConfig(channels=(8, 8, 16, 16, 16))
    model = build_model(describe_unet(config, classes=["a"], image_size=64)).train()
    views = torch.rand(2, 3, 48, 48)
    deep_label_step(model, Batch(views, views, (views[:, 0] > 0.5).long()))["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def planned(stage: str, folder: Path, method: str, **changes: Any) -> str:
    """Return the name of the artifact of a stage that a recipe would make."""
    sections = {name: {**TINY.get(name, {}), **values} for name, values in changes.items()}
    recipe: Recipe = build_recipe({**TINY, "method": method, **sections}, "test")
    parts = all_missing(plan_runs([GridRun("run", {}, recipe)], folder)).values()
    (name,) = {part.name for part in parts if part.stage == stage}
    return name


def test_what_changes_the_network_or_its_training_is_another_artifact_and_how_it_was_named_is_not(
    tmp_path: Path,
) -> None:
    usual = planned("unet", tmp_path, "unet")
    assert planned("unet", tmp_path, "unet", unet={"deep_supervision": False}) == usual, "three levels: none is below"
    assert planned("unet", tmp_path, "unet", unet={"channels": [8, 8, 16]}) != usual
    assert planned("unet", tmp_path, "unet", unet={"steps": 6}) != usual
    equal = planned("unet", tmp_path, "unet", unet={"compute": "equal"})
    assert equal != usual
    assert planned("unet", tmp_path, "unet", unet={"compute": "equal", "steps": 6}) == equal


def test_a_teachers_decoder_is_a_part_of_it_and_auto_is_the_one_it_stands_for(tmp_path: Path) -> None:
    usual = planned("teacher", tmp_path, "teacher")
    assert planned("teacher", tmp_path, "teacher", teacher={"decoder": "pyramid"}) == usual
    assert planned("teacher", tmp_path, "teacher", teacher={"decoder": "unet"}) != usual
