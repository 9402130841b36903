"""What int8 keeps of a network: what lies behind a ReLU6 or ReLU, and how unlike the training images an image is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.made_up import make_prepared
from tskd.data.prepared import IMAGES, Prepared
from tskd.deploy.network_file import Answer, ask, open_session
from tskd.deploy.onnx_export import Deployed, Doubts, Familiar, write_onnx
from tskd.stages import int8
from tskd.stages.doubt import gaussian
from tskd.stages.int8 import WAYS, Int8Verdict
from tskd.types import SegmentationOutput

pytestmark = pytest.mark.slow  # two libraries are imported and a network is exported
SIDE, WIDTH = 32, 24


class _Wide(nn.Module):
    """A convolutional network one of whose channels lies hundreds below zero before each of its two activations."""

    image_size = SIDE

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, WIDTH, 3, 2, 1), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)
        self.head = nn.Conv2d(WIDTH, 1, 1)
        with torch.no_grad():
            for convolution in (self.stem, self.block):
                convolution.weight.mul_(4)
                convolution.weight[0], convolution.bias[0] = 0.0, -400.0  # type: ignore[index]
            self.head.weight.mul_(4)

    def small_output(self, planes: Tensor) -> SegmentationOutput:
        features = torch.relu(self.block(nn.functional.relu6(self.stem(planes))))
        return SegmentationOutput((features,), self.head(features))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_prepared(tmp_path_factory.mktemp("prepared"), size=SIDE)


@pytest.fixture(scope="module")
def network(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    wide = _Wide().eval()
    with torch.no_grad():
        planes = torch.from_numpy(np.array(data.images)).permute(0, 3, 1, 2) / 255
        features = wide.small_output(planes).features[-1].mean((2, 3))
    spread = [torch.as_tensor(one, dtype=torch.float32) for one in (*gaussian(features.numpy()), 1.0)]
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    write_onnx(Deployed(wide, Doubts(1.0, Familiar(*spread))), path)
    return path


def answers(network: Path, data: Prepared) -> list[Answer]:
    session = open_session(network, 1)
    return [ask(session, np.asarray(image)) for image in data.images]


@pytest.mark.parametrize("way", WAYS)
def test_int8_keeps_the_answer_and_the_doubt(way: str, network: Path, data: Prepared, tmp_path: Path) -> None:
    """Red where static int8 spends its levels on what a ReLU6 or a ReLU cuts off, or either way rounds the distance."""
    made = tmp_path / "int8.onnx"
    WAYS[way](network, made, data)
    for expected, found in zip(answers(network, data), answers(made, data), strict=True):
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=0.05)
        assert found.unfamiliarity == pytest.approx(expected.unfamiliarity, rel=0.5)


def test_static_int8_still_computes_every_convolution_in_int8(network: Path, data: Prepared, tmp_path: Path) -> None:
    """Red where a mend of its accuracy leaves convolutions in float: their weights would be four times as large."""
    WAYS["static"](network, tmp_path / "int8.onnx", data)
    model = onnx.load(tmp_path / "int8.onnx")
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    weights = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert sum(kinds.get(name) == onnx.TensorProto.INT8 for name in weights) == 3, "two convolutions and the head"


def test_ranges_are_of_the_training_side_alone(network: Path, data: Prepared, tmp_path: Path) -> None:
    """Red where test images set what eight bits stand for: other test images would make another network."""
    other = Prepared(Path(shutil.copytree(data.folder, tmp_path / "other")))
    images = np.array(data.images)
    images[data.rows("test")] = 255
    np.save(other.folder / IMAGES, images)
    for prepared, name in ((data, "a.onnx"), (other, "b.onnx")):
        WAYS["static"](network, tmp_path / name, prepared)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_drop_is_what_int8_loses(data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where a loss is taken for a gain."""
    dice = {"float.onnx": [0.9, 0.7], "int8.onnx": [0.8, 0.6]}
    monkeypatch.setattr(int8, "open_session", lambda path: path.name)
    monkeypatch.setattr(int8, "training_dice", lambda session, prepared: dice[session])
    monkeypatch.setattr(int8, "median_ms", lambda asked, image: (10.0, 5.0))
    made = tmp_path / "int8.onnx"
    made.touch()
    found = int8.compare(tmp_path / "float.onnx", made, "static", data, np.zeros((SIDE, SIDE, 3), np.uint8))
    assert found.dice_drop == pytest.approx(0.1)
    assert (found.shipped, found.float_ms, found.int8_ms) == (False, 10.0, 5.0)


def test_a_faster_network_that_is_not_good_enough_takes_no_place(
    network: Path, data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verdict(network: Path, made: Path, way: str, *_: object) -> Int8Verdict:
        return Int8Verdict(way == "dynamic", "", way, 0.0, 10.0, {"static": 1.0, "dynamic": 5.0}[way], 1.0)

    monkeypatch.setattr(int8, "compare", verdict)
    written = {way: lambda _, path, __, way=way: path.write_text(way) for way in ("static", "dynamic")}
    monkeypatch.setattr(int8, "WAYS", written)
    found = int8.ship_int8(network, tmp_path / "int8.onnx", data, np.zeros((SIDE, SIDE, 3), np.uint8))
    assert (found.way, (tmp_path / "int8.onnx").read_text()) == ("dynamic", "dynamic")
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]
