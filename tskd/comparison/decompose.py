"""Bias and variance of each method's probabilities over its seeds and label draws, from the saved models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from tskd.artifacts import Store, whole
from tskd.comparison.grid import DATASET, METHOD, Grid
from tskd.comparison.job import RECHECK
from tskd.comparison.statistics import Scored
from tskd.console import progress, warn
from tskd.data.prepared import Prepared
from tskd.metrics.bias_variance import Decomposition, ErrorDecomposer, mean_decomposition
from tskd.models.registry import load_model
from tskd.recipe.schema import EvaluateConfig
from tskd.stages.network_answers import answer_by_size
from tskd.stages.norm_statistics import as_tested, naming

VERSION = 1


def decompose_groups(grid: Grid, store: Store, runs: Sequence[Scored], *, device: torch.device) -> list[dict[str, Any]]:
    """Return the lines of bias_variance.csv: one for all runs that differ in seed and label draw alone.

    Groups with a single run are left out: they show no variance.
    """
    groups: dict[tuple[tuple[str, Any], ...], list[Scored]] = defaultdict(list)
    for scored in runs:
        place = tuple((axis, value) for axis, value in scored.place.items() if axis not in grid.replicates)
        groups[place].append(scored)
    lines = []
    for place, members in groups.items():
        if len(members) < 2:
            warn(f"no bias and variance of {members[0].run.label}: one run is finished, two are needed")
            continue
        lines.append({**dict(place), **asdict(_decompose(store, members, device))})
    return lines


def decomposition_columns(grid: Grid) -> list[str]:
    """Return the columns of bias_variance.csv."""
    axes = [axis for axis in grid.axes if axis not in (DATASET, METHOD, *grid.replicates)]
    return [DATASET, *axes, METHOD, *(one.name for one in fields(Decomposition))]


def _decompose(store: Store, members: Sequence[Scored], device: torch.device) -> Decomposition:
    models = [whole(store.root / scored.outcome.artifacts["model"], RECHECK) for scored in members]
    data = whole(store.root / members[0].outcome.artifacts["data"], RECHECK)
    label, tested = f"bias and variance of {members[0].run.recipe.method}", members[0].run.recipe.evaluate
    folders = [model.path for model in models]
    artifact = store.build(
        "bias_variance",
        lambda _: asdict(decompose(folders, Prepared(data.path), tested, device=device, label=label)),
        config=naming(tested),
        inputs={
            "data": data.digest,
            **{f"run {n}": digest for n, digest in enumerate(sorted(m.digest for m in models))},
        },
        seed=0,
        version=VERSION,
    )
    return Decomposition(**artifact.metrics)


def decompose(
    models: Sequence[Path], prepared: Prepared, tested: EvaluateConfig, *, device: torch.device, label: str
) -> Decomposition:
    """Return the mean decomposition over the test images of networks saved in folders, each ``tested`` as it is scored.

    Image by image: in memory are the networks and the probabilities of one image, whatever the size of the test.
    """
    networks = [load_model(folder) for folder in models]
    for network in networks:
        as_tested(network, tested, prepared, device)
    rows = prepared.rows("test")
    images = []
    with progress(label, len(rows)) as advance:
        for done, row in enumerate(rows, start=1):
            decomposer = ErrorDecomposer(prepared.native_mask(row), classes=len(prepared.classes))
            image = prepared.native_image(row)
            for network in networks:
                decomposer.add(answer_by_size(network, image, prepared.tile).probabilities)
            images.append(decomposer.result())
            advance(done)
    return mean_decomposition(images)
