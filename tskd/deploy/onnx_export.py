"""The network as it is shipped: bytes of an image in, classes and probabilities out, everything inside one graph."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from tskd.errors import RunFailed
from tskd.models.control import DynUNetSegmenter
from tskd.models.timm_segmenter import TimmSegmenter

INPUT, OUTPUTS = "image", ("classes", "probabilities")
OPSET = 18
"""The first version of ONNX whose Resize is antialiased."""
_LARGEST_SIDE = 16384
Deployable = TimmSegmenter | DynUNetSegmenter
"""What can be shipped: networks that are small and rebuilt without a file of somebody else."""


class Deployed(nn.Module):
    """A segmenter whose input is an image file's pixels at any size.

    It computes what the segmenter and a softmax compute, without the branches on sizes that would tie an exported
    graph to one of them.
    """

    def __init__(self, segmenter: Deployable) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(H, W, 3) uint8 RGB to classes (H, W) uint8 and probabilities (K + 1, H, W) float32, background first."""
        segmenter = self.segmenter
        height, width = image.shape[:2]
        planes = image.permute(2, 0, 1)[None].to(torch.float32) / 255
        square = (segmenter.image_size, segmenter.image_size)
        planes = F.interpolate(planes, size=square, mode="bilinear", antialias=True, align_corners=False)
        logits = F.interpolate(
            segmenter.small_logits(planes), size=(height, width), mode="bilinear", align_corners=False
        )[0]
        scores = torch.cat([torch.zeros_like(logits[:1]), logits])
        return scores.argmax(dim=0).to(torch.uint8), scores.softmax(dim=0)


def write_onnx(segmenter: Deployable, path: Path) -> None:
    """Write the network as one ONNX file; input and outputs as :class:`Deployed` says, height and width free.

    The segmenter has to be freshly loaded on the CPU: wrappers of a training (mixed precision) would end in the graph.
    Raises RunFailed where the exporter lacks an operation of the network.
    """
    try:
        _write(segmenter, path)
    except torch.onnx.errors.OnnxExporterError:
        _write_plainly(segmenter, path)


def _write_plainly(segmenter: Deployable, path: Path) -> None:
    try:
        with _plain_attention(segmenter):
            _write(segmenter, path)
    except torch.onnx.errors.OnnxExporterError as error:
        raise RunFailed(
            "The network cannot be written as ONNX: torch's exporter does not know all of its operations. The trained "
            "weights are kept; for a file that can be shipped choose another student.backbone."
        ) from error


def _write(segmenter: Deployable, path: Path) -> None:
    sides = {0: Dim("height", min=2, max=_LARGEST_SIDE), 1: Dim("width", min=2, max=_LARGEST_SIDE)}
    # height, width and the network's side differ, so that the exporter cannot take one for another
    example = torch.zeros(segmenter.image_size + 7, segmenter.image_size + 13, 3, dtype=torch.uint8)
    with silenced():
        torch.onnx.export(
            Deployed(segmenter).eval(),
            (example,),
            path,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: sides},
            verbose=False,
        )


@contextmanager
def _plain_attention(segmenter: nn.Module) -> Iterator[None]:
    """Let timm's attention be matrix products: the exporter knows the fused one for four axes, windows have five."""
    fused: list[Any] = [module for module in segmenter.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True


@contextmanager
def silenced() -> Iterator[None]:
    """Keep what a library remarks on its own progress from the user; its errors still come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
