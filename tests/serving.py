"""A bundle whose answers are known by heart, and a server around it: bright pixels are the lesion."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image
from starlette.testclient import TestClient

from tskd.deploy.bundle import CARD, DESCRIPTION, ONNX, open_bundle, write_sums
from tskd.serve.app import Service, create_app

BASE = "http://127.0.0.1"


def write_bundle(
    folder: Path, *, dataset: str = "made up", card: str = "# A card\n", window: tuple[float, float] | None = None
) -> Path:
    """Write a bundle of one class: the probability of a lesion is the mean of a pixel's channels by 255."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "last"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "white"], ["lesion"]),
        helper.make_node("Sub", ["one", "lesion"], ["background"]),
        helper.make_node("Unsqueeze", ["lesion", "first"], ["lesions"]),
        helper.make_node("Unsqueeze", ["background", "first"], ["backgrounds"]),
        helper.make_node("Concat", ["backgrounds", "lesions"], ["probabilities"], axis=0),
        helper.make_node("ArgMax", ["probabilities"], ["best"], axis=0, keepdims=0),
        helper.make_node("Cast", ["best"], ["classes"], to=TensorProto.UINT8),
    ]
    constants = [
        helper.make_tensor(name, kind, shape, values)
        for name, kind, shape, values in (
            ("last", TensorProto.INT64, [1], [2]),
            ("first", TensorProto.INT64, [1], [0]),
            ("white", TensorProto.FLOAT, [], [255]),
            ("one", TensorProto.FLOAT, [], [1]),
        )
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])
    classes = helper.make_tensor_value_info("classes", TensorProto.UINT8, ["height", "width"])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [2, "height", "width"])
    graph = helper.make_graph(nodes, "bright", [image], [classes, probabilities], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / ONNX)
    described = {"classes": ["lesion"], "dataset": dataset, "input": {"window": window, "axis": 2}}
    (folder / DESCRIPTION).write_text(json.dumps(described), encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    write_sums(folder)
    return folder


def service_of(folder: Path, **options: Any) -> Service:
    """Return what a server of the bundle in a folder holds."""
    return Service(open_bundle(folder), threads=1, **options)


def client_of(service: Service) -> TestClient:
    """Return a client that speaks to a server in this process."""
    return TestClient(create_app(service), base_url=BASE, raise_server_exceptions=False)


def picture(height: int = 24, width: int = 30, seed: int = 0) -> np.ndarray:
    """Return (H, W, 3) noise with a bright square in it."""
    pixels = np.random.default_rng(seed).integers(0, 100, (height, width, 3), dtype=np.uint8)
    pixels[5:15, 8:20] += 150
    return pixels


def truth(pixels: np.ndarray) -> np.ndarray:
    """Return what the bundle answers, by hand: (H, W) uint8."""
    return (pixels.astype(float).mean(axis=-1) > 127.5).astype(np.uint8)


def as_png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def from_png(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def zipped(contents: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return content.getvalue()


@contextmanager
def running(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the address of ``tskd serve`` in a process of its own, and the process; it is ended at the end."""
    line = [sys.executable, "-m", "tskd.cli", "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            found = re.search(r"http://\S+", said)
            assert found, said + process.stderr.read()
            yield found[0], process
        finally:
            process.terminate()
            process.wait(timeout=60)
