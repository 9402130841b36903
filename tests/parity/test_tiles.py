"""Tiles are where MONAI's sliding window has them, and are blended as there; a small image is answered whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from tskd.deploy.network_file import CLASSES, CONFIDENCE, INPUT, PROBABILITIES, ask, open_session
from tskd.deploy.tiles import ask_by_size, ask_in_tiles


class Convolutions(nn.Module):
    """Two random layers, padded with zeros: a pixel's answer depends on where the tile's edge is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.Tanh(), nn.Conv2d(4, 3, 5, padding=2))

    def probabilities(self, planes: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 3, H, W)."""
        return (9 * self.layers(planes)).softmax(dim=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(H, W, 3) bytes to what a bundle's network answers."""
        found = self.probabilities(image.permute(2, 0, 1)[None].float() / 255)[0]
        return found.argmax(dim=0).to(torch.uint8), found, found.amax(dim=0).mean()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Convolutions, onnxruntime.InferenceSession]:
    module, path = Convolutions().eval(), tmp_path_factory.mktemp("tiles") / "model.onnx"
    free = {0: torch.export.Dim("height", min=8), 1: torch.export.Dim("width", min=8)}
    torch.onnx.export(
        module, (torch.zeros(40, 56, 3, dtype=torch.uint8),), path, input_names=[INPUT], dynamic_shapes=({**free},),
        output_names=[CLASSES, PROBABILITIES, CONFIDENCE], dynamo=True, verbose=False, external_data=False,
    )  # fmt: skip
    return module, open_session(path, 1, classes=2)


def image_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("size", [(70, 96), (33, 80), (32, 33), (20, 75), (64, 64)])
def test_answers_equal_monai(
    network: tuple[Convolutions, onnxruntime.InferenceSession], size: tuple[int, int], overlap: float
) -> None:
    """Red with another place of the last tile, another weight or another filling of a short side."""
    module, session = network
    image = image_of(*size)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        logits = sliding_window_inference(
            planes, 32, 1, lambda part: module.probabilities(part).log(), overlap=overlap, mode="gaussian"
        )
        expected = logits.softmax(dim=1)[0]
    found = ask_in_tiles(partial(ask, session), image, 32, overlap=overlap)
    np.testing.assert_allclose(found.probabilities, expected.numpy(), atol=1e-5)
    assert found.classes.shape == size
    assert np.mean(found.classes != expected.argmax(dim=0).numpy()) < 1e-3
    assert found.confidence == pytest.approx(confidence_of(found.classes, found.probabilities))


def confidence_of(classes: np.ndarray, probabilities: np.ndarray) -> float:
    return float(probabilities.max(axis=0)[classes > 0].mean())


def test_an_image_that_fits_into_a_tile_is_answered_whole(
    network: tuple[Convolutions, onnxruntime.InferenceSession],
) -> None:
    """Red where a small image is filled up to a tile, which the network was not asked for."""
    _, session = network
    image = image_of(30, 32)
    whole, tiled = ask(session, image), ask_by_size(session, image, 32)
    np.testing.assert_array_equal(tiled.probabilities, whole.probabilities)
    assert tiled.confidence == whole.confidence


def test_the_network_is_asked_for_one_tile_at_a_time(
    network: tuple[Convolutions, onnxruntime.InferenceSession], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its memory is that of a tile; red where tiles go in as one batch or the whole image is asked too."""
    asked: list[tuple[int, ...]] = []

    def note(session: onnxruntime.InferenceSession, image: np.ndarray, options: None) -> object:
        asked.append(image.shape)
        return ask(session, image, options)

    monkeypatch.setattr("tskd.deploy.tiles.ask", note)
    ask_by_size(network[1], image_of(100, 60), 32)
    assert asked == [(32, 32, 3)] * (6 * 3)
