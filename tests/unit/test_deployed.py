"""The shipped graph answers what the network answers, at any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import register_model
from torch import nn

from tskd.deploy.network_file import ask, open_session
from tskd.deploy.onnx_export import Deployed, Doubts, write_onnx
from tskd.errors import RunFailed
from tskd.models.control import DynUNetSegmenter
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.stages.int8 import write_dynamic
from tskd.stages.network_answers import network_answer


@register_model
def vit_made_up_shallow(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build ViT-Tiny with a third of its blocks: the exporter takes time for each, and they are alike."""
    return timm.create_model("vit_tiny_patch16_224", pretrained, **{"depth": 4, **settings})


SIZES = [(32, 32), (33, 47), (96, 20), (1, 5)]


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def student() -> TimmSegmenter:
    torch.manual_seed(0)
    return TimmSegmenter("vit_made_up_shallow", "detail", classes=2, image_size=32).eval()


@pytest.fixture(scope="module")
def unet() -> DynUNetSegmenter:
    torch.manual_seed(0)
    return DynUNetSegmenter([8, 16, 32], classes=2, image_size=32).eval()


@pytest.fixture(scope="module")
def of_one_class() -> DynUNetSegmenter:
    torch.manual_seed(0)
    return DynUNetSegmenter([8, 16, 32], classes=1, image_size=32).eval()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("network", ["student", "unet", "of_one_class"])
def test_deployed_is_the_segmenter_with_softmax(
    network: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    segmenter, image = request.getfixturevalue(network), picture(*size)
    expected = network_answer(segmenter, image)
    with torch.inference_mode():
        classes, probabilities, _ = Deployed(segmenter)(torch.from_numpy(image))
    assert classes.dtype == torch.uint8
    assert (classes.numpy() == expected.classes).mean() > 0.999
    np.testing.assert_allclose(probabilities.numpy(), expected.probabilities, atol=1e-5)


@pytest.mark.parametrize("network", ["unet", "of_one_class"])
def test_probabilities_are_cooled_and_classes_are_not(network: str, request: pytest.FixtureRequest) -> None:
    """By temperature 2 the odds of a class against the background are the root of what they were."""
    image = torch.from_numpy(picture(33, 47))
    with torch.inference_mode():
        (plain, sure, _), (cooled, doubtful, _) = (
            Deployed(request.getfixturevalue(network), Doubts(temperature))(image) for temperature in (1.0, 2.0)
        )
    assert torch.equal(plain, cooled)
    torch.testing.assert_close(doubtful[1] / doubtful[0], (sure[1] / sure[0]).sqrt())
    torch.testing.assert_close(doubtful.sum(dim=0), torch.ones(33, 47))


@pytest.mark.slow
def test_onnx_file_answers_at_every_size_and_int8_follows(
    student: TimmSegmenter, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_onnx(Deployed(student), tmp_path / "model.onnx")
    write_dynamic(tmp_path / "model.onnx", tmp_path / "model.int8.onnx")
    assert capfd.readouterr() == ("", ""), "the exporter's chatter reached the user"
    session, int8 = open_session(tmp_path / "model.onnx", 1), open_session(tmp_path / "model.int8.onnx", 1)
    for size in SIZES:
        image = picture(*size)
        expected, answer = network_answer(student, image), ask(session, image)
        assert (answer.classes.dtype, answer.classes.shape) == (np.uint8, size)
        assert (answer.probabilities.dtype, answer.probabilities.shape) == (np.float32, (3, *size))
        np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-5)
        np.testing.assert_allclose(ask(int8, image).probabilities, expected.probabilities, atol=0.05)
    assert not (tmp_path / "model.onnx.data").exists()
    assert (tmp_path / "model.int8.onnx").stat().st_size < 0.5 * (tmp_path / "model.onnx").stat().st_size


@pytest.mark.slow
def test_a_u_net_is_shipped_as_the_students_are(unet: DynUNetSegmenter, tmp_path: Path) -> None:
    write_onnx(Deployed(unet), tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx", 1)
    for size in SIZES:
        expected, answer = network_answer(unet, picture(*size)), ask(session, picture(*size))
        np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-4)


def test_what_the_exporter_does_not_know_is_said_and_leaves_the_network_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TimmSegmenter("test_vit", "plain", classes=1, image_size=32)
    tried = []

    def refuse(deployed: nn.Module, *_: object, **__: object) -> None:
        tried.append({module.fused_attn for module in deployed.modules() if hasattr(module, "fused_attn")})
        raise torch.onnx.errors.OnnxExporterError

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(RunFailed, match=r"cannot be written as ONNX.* another student\.backbone"):
        write_onnx(Deployed(model), tmp_path / "model.onnx")
    assert tried == [{True}, {False}], "fused attention first, then plain"
    assert all(module.fused_attn for module in model.modules() if hasattr(module, "fused_attn"))
