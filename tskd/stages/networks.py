"""The networks that runs ended with: their size and how fast they answer, measured once an architecture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tskd.artifacts import Artifact, Builder, canonical_json
from tskd.console import progress
from tskd.models.registry import load_model, read_description
from tskd.stages.export import median_ms, network_answer

VERSION = 2
_TRAINED = frozenset({"weights", "title", "trained", "file"})
"""Parts of a description that say where its weights come from, not what the network is."""


@dataclass(frozen=True)
class Network:
    """What one architecture needs at work."""

    parameters: int
    model_mb: float
    """Its tensors as float32, in millions of bytes."""
    latency_ms: float
    """Median for one image on one CPU thread, from pixels to probabilities, in torch."""


def measure_networks(store: Builder, models: Iterable[Artifact], *, image_size: int) -> dict[str, Network]:
    """Return every model's figures by its folder's name; equal architectures are measured once, ever.

    They are timed on a square image of ``image_size`` and take turns, so that a busy machine slows all alike; nothing
    else should run beside.
    """
    kinds = {model.path: canonical_json(architecture(read_description(model.path))) for model in models}
    folders = {kind: path for path, kind in kinds.items()}

    @cache
    def latencies() -> dict[str, float]:
        with progress("timing networks", 1) as advance, _threads(1):
            image = np.zeros((image_size, image_size, 3), np.uint8)
            answers = [partial(network_answer, load_model(folder)) for folder in folders.values()]
            milliseconds = median_ms(answers, image)
            advance(1)
        return dict(zip(folders, milliseconds))

    def measure(kind: str) -> Network:
        artifact = store.build(
            "network",
            lambda _: asdict(_look_at(folders[kind], latencies()[kind])),
            config={"architecture": kind, "image_size": image_size},
            inputs={},
            seed=0,
            version=VERSION,
        )
        return Network(**artifact.metrics)

    found = {kind: measure(kind) for kind in folders}
    return {path.name: found[kind] for path, kind in kinds.items()}


def architecture(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two networks have in common that differ in their weights alone."""
    return {name: value for name, value in description.items() if name not in _TRAINED}


def _look_at(folder: Path, latency_ms: float) -> Network:
    model = load_model(folder)
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}  # shared ones count once
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return Network(sum(one.numel() for one in model.parameters()), round(size / 1e6, 2), latency_ms)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
