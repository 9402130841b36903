"""The networks that runs ended with: their size and how fast they answer, measured once an architecture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tskd.artifacts import Artifact, Builder
from tskd.console import progress
from tskd.models.description import read_description
from tskd.models.registry import load_model
from tskd.stages.network_answers import median_ms, network_answer

VERSION = 1


@dataclass(frozen=True)
class Network:
    """What one architecture needs at work."""

    parameters: int
    model_mb: float
    """Its tensors as float32, in millions of bytes."""
    latency_ms: float
    """Median for one image on one CPU thread, from pixels to probabilities, in torch."""

    def in_looks(self, looks: float) -> Network:
        """Return what it needs for images that are answered in so many tiles on average, blending left out."""
        return replace(self, latency_ms=self.latency_ms * looks)


def measure_networks(store: Builder, models: Iterable[Artifact], *, image_size: int) -> dict[str, Network]:
    """Return every model's figures by its folder's name; equal architectures are measured once, ever.

    They are timed on a square image of ``image_size``, one after the other: nothing else should run beside.
    """
    listed = list(models)
    found: dict[str, Network] = {}
    with progress("timing networks", len(listed)) as advance:
        for done, model in enumerate(listed, start=1):
            found[model.path.name] = _measure(store, model, image_size)
            advance(done)
    return found


def _measure(store: Builder, model: Artifact, image_size: int) -> Network:
    description, _ = read_description(model.path)
    artifact = store.build(
        "network",
        lambda folder: asdict(_look_at(model.path, image_size)),
        config={"architecture": description.architecture(), "image_size": image_size},
        inputs={},
        seed=0,
        version=VERSION,
    )
    return Network(**artifact.metrics)


def _look_at(folder: Path, image_size: int) -> Network:
    model = load_model(folder)
    image = np.zeros((image_size, image_size, 3), np.uint8)
    with _threads(1):
        (latency,) = median_ms([partial(network_answer, model)], image)
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}  # shared ones count once
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return Network(sum(one.numel() for one in model.parameters()), round(size / 1e6, 2), latency)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
