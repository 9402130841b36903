"""The network as it is shipped: bytes of an image in, classes and probabilities out, everything inside one graph."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from tskd.deploy.network_file import CLASSES, CONFIDENCE, INPUT, PROBABILITIES, UNFAMILIARITY
from tskd.errors import RunFailed
from tskd.models.attention import plain_attention
from tskd.models.control import DynUNetSegmenter
from tskd.models.timm_segmenter import TimmSegmenter

OPSET = 18
"""The first version of ONNX whose Resize is antialiased."""
_LARGEST_SIDE = 16384
Deployable = TimmSegmenter | DynUNetSegmenter
"""What can be shipped: networks that are small and rebuilt without a file of somebody else."""


class Familiar(nn.Module):
    """How far the pooled features of an image lie from those of the training images (Mahalanobis), 1: the limit.

    Directions of large spread are weighted each by its own, all others alike. Source: K. Lee et al., A simple unified
    framework for detecting out-of-distribution samples and adversarial attacks, NeurIPS 2018, with one Gaussian.
    """

    centre: Tensor
    directions: Tensor
    weights: Tensor
    rest: Tensor

    def __init__(self, centre: Tensor, directions: Tensor, weights: Tensor, rest: Tensor, limit: Tensor) -> None:
        """``centre`` (F,), ``directions`` (D, F) orthonormal with ``weights`` (D,), ``rest``: of what they leave."""
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("directions", directions)
        self.register_buffer("weights", weights / limit**2)
        self.register_buffer("rest", rest / limit**2)

    def forward(self, pooled: Tensor) -> Tensor:
        """(..., F) to the distance (...)."""
        moved = pooled - self.centre
        along = (moved @ self.directions.T) ** 2
        outside = (moved**2).sum(-1) - along.sum(-1)
        return (along @ self.weights + self.rest * outside.clamp(min=0)).sqrt()


def pooled(features: Sequence[Tensor]) -> Tensor:
    """Return (B, F): the mean of the deepest features over the image."""
    return features[-1].mean(dim=(2, 3))


@dataclass(frozen=True)
class Doubts:
    """What a network is told of doubt before it is shipped."""

    temperature: float = 1.0
    """What logits are divided by before the softmax."""
    familiar: Familiar | None = None


class Deployed(nn.Module):
    """A segmenter whose input is an image file's pixels at any size, with its doubts where it was told how.

    It computes what the segmenter and a softmax compute, without the branches on sizes that would tie an exported
    graph to one of them.
    """

    def __init__(self, segmenter: Deployable, doubts: Doubts | None = None) -> None:
        super().__init__()
        doubts = doubts or Doubts()
        self.segmenter, self.temperature, self.familiar = segmenter, doubts.temperature, doubts.familiar

    @property
    def outputs(self) -> list[str]:
        """The names of what :meth:`forward` returns."""
        return [CLASSES, PROBABILITIES, CONFIDENCE, *([] if self.familiar is None else [UNFAMILIARITY])]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(H, W, 3) uint8 RGB to classes (H, W) uint8, probabilities (K + 1, H, W) float32, and one number each."""
        segmenter = self.segmenter
        height, width = image.shape[:2]
        planes = image.permute(2, 0, 1)[None].to(torch.float32) / 255
        square = (segmenter.image_size, segmenter.image_size)
        planes = F.interpolate(planes, size=square, mode="bilinear", antialias=True, align_corners=False)
        small = segmenter.small_output(planes)
        logits = F.interpolate(small.logits, size=(height, width), mode="bilinear", align_corners=False)[0]
        classes, probabilities = _classes_and_probabilities(logits, self.temperature)
        answer = (classes.to(torch.uint8), probabilities, confidence(classes, probabilities))
        return answer if self.familiar is None else (*answer, self.familiar(pooled(small.features))[0])


def _classes_and_probabilities(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(K, H, W) logits of the foreground to the likeliest class (H, W) and the softmax (K + 1, H, W), background first.

    Of one class and the background it is a sigmoid: it saves an eighth of the time for an image of 512 px.
    """
    if len(logits) == 1:
        return logits[0] > 0, torch.sigmoid(torch.cat([-logits, logits]) / temperature)
    scores = torch.cat([torch.zeros_like(logits[:1]), logits])
    return scores.argmax(dim=0), _softmax(scores / temperature)


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the first axis, written out: onnxruntime's own takes as long as a small network."""
    raised = (scores - scores.amax(dim=0)).exp()
    return raised / raised.sum(dim=0)


def confidence(classes: Tensor, probabilities: Tensor) -> Tensor:
    """Return the mean probability of the answered class over the mask, or over all where nothing was found."""
    sure = probabilities.amax(dim=0)
    found = (classes > 0).to(sure.dtype)
    count = found.sum()
    return torch.where(count > 0, (sure * found).sum() / count.clamp(min=1), sure.mean())


def write_onnx(network: Deployed, path: Path) -> None:
    """Write the network as one ONNX file; input and outputs as :class:`Deployed` says, height and width free.

    Its segmenter has to be freshly loaded on the CPU: wrappers of a training (mixed precision) would end in the graph.
    Raises RunFailed where the exporter lacks an operation of the network. The file is whole or not there.
    """
    beside = path.with_name(f".{path.name}")
    try:
        _write(network, beside)
    except torch.onnx.errors.OnnxExporterError:
        _write_plainly(network, beside)
    beside.replace(path)


def _write_plainly(network: Deployed, path: Path) -> None:
    try:
        with plain_attention(network):  # the exporter knows the fused one for four axes, windows have five
            _write(network, path)
    except torch.onnx.errors.OnnxExporterError as error:
        raise RunFailed(
            "The network cannot be written as ONNX: torch's exporter does not know all of its operations. The trained "
            "weights are kept; for a file that can be shipped choose another student.backbone."
        ) from error


def _write(network: Deployed, path: Path) -> None:
    sides = {0: Dim("height", min=2, max=_LARGEST_SIDE), 1: Dim("width", min=2, max=_LARGEST_SIDE)}
    # height, width and the network's side differ, so that the exporter cannot take one for another
    side = network.segmenter.image_size
    example = torch.zeros(side + 7, side + 13, 3, dtype=torch.uint8)
    with silenced():
        torch.onnx.export(
            network.eval(),
            (example,),
            path,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=[INPUT],
            output_names=network.outputs,
            dynamic_shapes={INPUT: sides},
            verbose=False,
        )


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
