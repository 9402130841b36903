"""What a trained model has cost, in floating-point operations, as the manifests of all that led to it say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tskd.artifacts import MADE_FROM, Artifact


class Compute(NamedTuple):
    """What a trained model has cost, in thousand millions of floating-point operations."""

    student_gflops: float
    """Forward and backward passes of the network itself and of what is trained with it."""
    teacher_gflops: float
    """What gives targets: the teacher's adaptation and answers, or a momentum encoder."""


def compute_of(model: Artifact | Sequence[Artifact], artifacts: Iterable[Artifact]) -> Compute:
    """Return what a model's (or several models') training and the trainings before it have cost, as manifests say.

    ``artifacts`` are those that may have led to it, e.g. all that a run used. Each counts once and in full, also where
    other methods share it: it is the cost of the method alone.
    """
    # a fine-tuning that kept its start has the start's digest: nothing is made from it
    sources = {artifact.digest: artifact for artifact in artifacts if artifact.manifest["stage"] != "finetune"}
    found: dict[Path, Artifact] = {}
    coming = [model] if isinstance(model, Artifact) else list(model)
    while coming:
        artifact = coming.pop()
        found[artifact.path] = artifact
        inputs = artifact.manifest["inputs"]
        before = [sources[inputs[name]] for name in MADE_FROM if inputs.get(name) in sources]
        coming += [source for source in before if source.path not in found]
    sums = (sum(artifact.metrics.get(name, 0.0) for artifact in found.values()) for name in Compute._fields)
    return Compute(*(round(value, 3) for value in sums))
