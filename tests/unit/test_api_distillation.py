"""Distillation from Python: what its folder is for, what it refuses, and how it leaves the networks of its user."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tskd

SIZE = 32
ENGINE = {"accelerator": "cpu"}
QUICK: dict[str, Any] = {"steps": 1, "batch_size": 2, "ema": 0.0, "engine": ENGINE}
IMAGES = np.random.default_rng(0).integers(0, 255, (4, SIZE, SIZE, 3), dtype=np.uint8)
MASKS = (IMAGES[..., 0] > 128).astype(np.uint8)


class Small(nn.Module):
    """A network with a part that offers features."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU())
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.interpolate(self.head(self.encoder(images)), size=images.shape[-2:])


def distilled(**changes: Any) -> Any:
    given: dict[str, Any] = {"images": IMAGES, **QUICK, **changes}
    return tskd.distill(given.pop("teacher", None) or Small(), given.pop("student", None) or Small(1), **given)


def labelled(**changes: Any) -> dict[str, Any]:
    return {"labels": (IMAGES[:2], MASKS[:2]), "finetune": {"steps": 1, "batch_size": 2}, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 255 - IMAGES}, "other: images"),
        (labelled(labels=(IMAGES[2:], MASKS[:2])), "other: labels"),
        (labelled(labels=(IMAGES[:2], 1 - MASKS[:2])), "other: labels"),
        ({"engine": {**ENGINE, "precision": "bf16-mixed"}}, "other: precision"),
        ({"student_features": None}, "other: features"),
    ],
)
def test_a_folder_of_another_distillation_is_refused(changes: Mapping[str, Any], words: str, tmp_path: Path) -> None:
    """Red where the student that lies there is answered, though it never saw what is given now."""
    common = labelled(out=tmp_path)
    distilled(**common)
    with pytest.raises(tskd.UserError, match=words):
        distilled(**{**common, **changes})
    distilled(**common)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images with masks, a quarter of them for validation."""
    root = tmp_path_factory.mktemp("data")
    for number in range(12):
        for part, pixels in (("images", IMAGES), ("masks", MASKS * 255)):
            (root / part).mkdir(exist_ok=True)
            Image.fromarray(np.roll(pixels[number % 4], number, axis=0)).save(root / part / f"{number}.png")
    return root


def test_a_data_folder_read_otherwise_is_another_distillation(folder: Path, tmp_path: Path) -> None:
    """Red where settings of ``data`` that leave the training images as they are change what validates."""
    common = {"images": folder, "image_size": SIZE, "out": tmp_path}
    distilled(**common)
    with pytest.raises(tskd.UserError, match="other: data"):
        distilled(**common, data={"split_seed": 1})


def test_a_start_that_is_better_is_kept(folder: Path) -> None:
    """Red where ``keep_start`` is taken and forgotten: the weights after a wild step are answered."""
    common = {"images": folder, "image_size": SIZE, "labels": True}
    finetune = {"steps": 1, "batch_size": 2, "lr": 10.0, "keep_start": True}
    line = distilled(**common, finetune=finetune).history.query("stage == 'finetune'").iloc[0]
    assert line["step"] == 0
    assert line["val_score"] >= 0


def test_layer_decay_slows_the_first_blocks() -> None:
    """Red where the setting is taken and forgotten, or its default for transformers slows every network."""

    def change(**finetune: float) -> float:
        student = Blocks()
        given = {"steps": 1, "batch_size": 2, "weight_decay": 0.0, **finetune}
        distilled(student=student, lr=1e-12, **labelled(finetune=given))
        moved = student.encoder["blocks"][0].weight - Blocks().encoder["blocks"][0].weight
        return float(moved.abs().max().detach())

    assert change(layer_decay=0.1) == pytest.approx(0.1 * change(), rel=0.01)


class Blocks(Small):
    """A network whose encoder has blocks with timm's names."""

    def __init__(self) -> None:
        super().__init__(seed=2)
        self.encoder = nn.ModuleDict({"blocks": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1))})

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder["blocks"](images))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache": "on", "views": 2, "rounds": 3}, "cache, views, rounds: for runs alone"),
        (labelled(finetune={"scratch_lr": 0.1}), "finetune.scratch_lr: for runs alone"),
        (labelled(finetune={"layer_decay": 0.5}), "no part `encoder` with blocks"),
        (labelled(finetune={"keep_start": True}), "finetune.keep_start: weights are chosen by"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(tskd.UserError, match=words):
        distilled(**changes)


def test_the_networks_are_left_as_they_were() -> None:
    """Red where a hook keeps all later answers and cannot be saved with its network, or a teacher no longer trains."""
    teacher, student = Small(), Small(1)
    teacher.encoder.eval()
    teacher.head.bias.requires_grad_(False)
    result = distilled(teacher=teacher, student=student)
    assert result.features
    torch.save([teacher, student], io.BytesIO())
    assert (teacher.training, teacher.encoder.training) == (True, False)
    assert [one.requires_grad for one in teacher.parameters()] == [True, True, True, False]
    assert result.predict(IMAGES).shape == (4, SIZE, SIZE)


def test_one_name_is_one_class_and_no_images_have_no_masks() -> None:
    result = distilled(classes="lesion")
    assert result.classes == ("lesion",)
    assert result.predict([]).shape == (0, SIZE, SIZE)
    with pytest.raises(tskd.UserError, match="cannot be read by index"):
        result.predict("folder")


def test_a_refused_call_leaves_nothing_in_the_networks() -> None:
    teacher, student = Small(), Small(1)
    with pytest.raises(tskd.UserError, match="channels"):
        distilled(teacher=teacher, student=student, classes=3)
    torch.save([teacher, student], io.BytesIO())  # which cannot be with a hook
