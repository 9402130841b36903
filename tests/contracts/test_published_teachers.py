"""Every kind of file that people have becomes a teacher that learns: adapters in the encoder, our decoder in full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import published
from tskd.models.registry import adapt, build_model
from tskd.recipe.schema import TeacherConfig
from tskd.stages.teacher import choose_teacher


@pytest.mark.parametrize(
    "shapes", [published.mobile_sam, published.dinov2, published.dinov3, published.sam2, published.radimagenet_resnet50]
)
def test_every_kind_becomes_a_teacher_with_adapters(tmp_path: Path, shapes: Callable[[], published.Shapes]) -> None:
    file = tmp_path / "weights.pth"
    torch.save(published.fill(shapes()), file)
    source = choose_teacher(TeacherConfig(weights=str(file), rank=2), ("lesion",), 64, download=False)
    model = build_model(source.description)
    trained = adapt(model, source.description)
    assert any("lora_A" in name for name in trained)
    model(torch.rand(2, 3, 64, 64)).logits.square().mean().backward()
    # distributed training waits for ever for a trained parameter that gets no gradient
    assert {name for name, tensor in model.named_parameters() if tensor.grad is not None} == set(trained)
