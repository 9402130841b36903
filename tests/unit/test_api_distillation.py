"""Distillation from Python: what its folder is for, what it refuses, and how it leaves the networks of its user."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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


def test_a_data_folder_read_otherwise_is_another_distillation(tmp_path: Path) -> None:
    """Red where settings of ``data`` that leave the training images as they are change what validates."""
    root = tmp_path / "data"
    for number, (image, mask) in enumerate(zip(np.concatenate([IMAGES] * 3), np.concatenate([MASKS] * 3))):
        write(root / "images" / f"{number}.png", np.roll(image, number, axis=0))
        write(root / "masks" / f"{number}.png", np.roll(mask, number, axis=0) * 255)
    common = {"images": root, "image_size": SIZE, "out": tmp_path / "out"}
    distilled(**common)
    with pytest.raises(tskd.UserError, match="other: data"):
        distilled(**common, data={"split_seed": 1})


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


def test_a_refused_call_leaves_nothing_in_the_networks() -> None:
    teacher, student = Small(), Small(1)
    with pytest.raises(tskd.UserError, match="channels"):
        distilled(teacher=teacher, student=student, classes=3)
    torch.save([teacher, student], io.BytesIO())  # which cannot be with a hook


def write(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
