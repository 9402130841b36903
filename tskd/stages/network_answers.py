"""What a network answers as it is shipped, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from tskd.deploy.network_file import Answer
from tskd.deploy.onnx_export import Doubts, confidence, pooled
from tskd.deploy.tiles import ask_in_tiles
from tskd.engine.batches import to_images
from tskd.losses.classes import class_probabilities

_TIMED_RUNS = 15


def network_answer(segmenter: nn.Module, image: np.ndarray, doubts: Doubts | None = None) -> Answer:
    """Return what the network itself says about one image (H, W, 3) uint8: the reference of an export."""
    doubts = doubts or Doubts()
    device = next(segmenter.parameters()).device
    with torch.inference_mode():
        answer = segmenter(to_images(image[None]).to(device))
        probabilities = class_probabilities(answer.logits / doubts.temperature)[0].cpu()
        familiar = doubts.familiar
        strange = None if familiar is None else float(familiar.to(device)(pooled(answer.features))[0])
    classes = probabilities.argmax(dim=0)
    return Answer(
        classes.to(torch.uint8).numpy(), probabilities.numpy(), float(confidence(classes, probabilities)), strange
    )


def answer_by_size(segmenter: nn.Module, image: np.ndarray, tile: int | None, doubts: Doubts | None = None) -> Answer:
    """Return what the network says about one image (H, W, 3) uint8: of a larger one by tiles, where it saw tiles."""
    answer = partial(network_answer, segmenter, doubts=doubts)
    return answer(image) if tile is None else ask_in_tiles(answer, image, tile)


def median_ms(networks: Sequence[Callable[[np.ndarray], Answer]], image: np.ndarray) -> list[float]:
    """Return each network's median milliseconds an image; they take turns, so that a busy machine slows all alike."""
    seconds: list[list[float]] = [[] for _ in networks]
    for _ in range(_TIMED_RUNS):
        for network, times in zip(networks, seconds, strict=True):
            began = time.perf_counter()
            network(image)
            times.append(time.perf_counter() - began)
    return [round(1000 * float(np.median(times[1:])), 2) for times in seconds]  # the first run allocates
