"""Students beside ViT-Tiny: hybrids and convolutional networks with the decoder unet, each to its exported file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tskd.deploy.network_file import ask, open_session
from tskd.deploy.onnx_export import Deployed, write_onnx
from tskd.models.description import NetworkDescription
from tskd.models.registry import build_model
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.stages.label_training import label_step
from tskd.stages.network_answers import network_answer
from tskd.types import Batch

PAGE = Path(__file__).parents[2] / "docs/reference/recipe.md"
SIZE = 64
MOST = 8_000_000
"""Parameters of a student that is to be shipped."""
WITH_UNET = [
    "efficientvit_b0", "efficientvit_b1", "repvit_m0_9", "mobilevitv2_050", "tiny_vit_5m_224", "mobilenetv4_conv_small",
    "tf_efficientnet_lite0", "resnet18",
]  # fmt: skip
STUDENTS = [*((backbone, "unet") for backbone in WITH_UNET), ("vit_tiny_patch16_224", "detail")]
EXPORTED_ELSEWHERE = {
    "efficientvit_b1": "the blocks of efficientvit_b0, wider",
    "vit_tiny_patch16_224": "by every run",
    "mobilenetv4_conv_small": "tf_efficientnet_lite0 has its layers: convolutions, batch norm, ReLU",
    "resnet18": "the blocks of resnet10t, whose U-Net becomes a bundle in test_method_runs.py",
}
"""The exporter takes up to ten seconds a network."""


def build(backbone: str, decoder: str, image_size: int = SIZE) -> TimmSegmenter:
    torch.manual_seed(0)
    patch = {"patch": 8} if decoder == "detail" else {}
    arguments = {"backbone": backbone, "decoder": decoder, **patch}
    model = build_model(NetworkDescription("timm", arguments, ("a",), image_size))
    assert isinstance(model, TimmSegmenter)
    return model


def batch() -> Batch:
    """Bright squares on noise."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(4, SIZE, SIZE, dtype=torch.int64)
    masks[:, 10:40, 20:50] = 1
    views: Tensor = 0.5 * torch.rand(4, 3, SIZE, SIZE, generator=generator) + 0.5 * masks[:, None]
    return Batch(views, views, masks)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "decoder"), [*STUDENTS, ("mobilenetv3_small_050", "unet_fine")])
def test_a_student_learns_and_its_exported_file_answers_as_it_does(backbone: str, decoder: str, tmp_path: Path) -> None:
    model = build(backbone, decoder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = label_step(model, batch())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    if backbone in EXPORTED_ELSEWHERE:
        return
    write_onnx(Deployed(model), tmp_path / "model.onnx")
    image = np.random.default_rng(0).integers(0, 256, (75, 90, 3), np.uint8)
    ours, theirs = network_answer(model, image), ask(open_session(tmp_path / "model.onnx"), image)
    assert np.abs(ours.probabilities - theirs.probabilities).max() < 1e-4
    assert ours.probabilities[1].std() > 1e-4, "an answer that is the same everywhere would show nothing"


def test_the_sizes_that_are_told_are_those_of_the_networks() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| `(?:unet|detail)`[^|]* \| ([\d.]+) M", PAGE.read_text("utf-8"), flags=re.M))
    sizes = {backbone: count(build(backbone, decoder, 128)) for backbone, decoder in STUDENTS}
    assert told == {backbone: f"{size / 1e6:.2f}" for backbone, size in sizes.items()}
    assert [backbone for backbone, size in sizes.items() if size > MOST] == ["resnet18"]


def count(model: TimmSegmenter) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
