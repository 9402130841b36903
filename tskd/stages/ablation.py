"""Ablation: what a trained student makes of its encoder and of its decoder's skip, by taking each away at test time.

A network of millions of weights may answer from a shallow skip alone: its score does not show it, this does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tskd.artifacts import Artifact
from tskd.console import progress
from tskd.data.prepared import Prepared
from tskd.engine.batches import to_images
from tskd.engine.out_of_memory import inference_remedies, memory_explained
from tskd.losses.classes import hard_prediction
from tskd.metrics.segmentation import mean_dice
from tskd.models.registry import load_model
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.stages.scoring import Scoring, Tally
from tskd.stages.workbench import Workbench

VERSION = 3
Features = Sequence[Tensor]
Ablated = Callable[[Any, Tensor, Features, Features], Tensor]
"""(network, image (1, 3, H, W), its features, those of another case's image) to logits (1, K, H, W)."""

ABLATIONS: Mapping[str, Ablated] = {
    "features_zeroed": lambda model, image, own, other: model.decode(image, [0 * plane for plane in own]),
    "features_of_another_image": lambda model, image, own, other: model.decode(image, other),
    "skips_zeroed": lambda model, image, own, other: model.decode(image, own, skip=False),
}


def build(bench: Workbench, tested: Artifact, model: Artifact) -> Artifact:
    """Return the artifact whose metrics are what :func:`ablate` finds for a trained model."""
    return bench.build(
        "ablation",
        lambda folder: ablate(load_model(model.path), Prepared(tested.path), device=bench.runtime.fabric.device),
        config={},
        inputs={"data": tested.digest, "model": model.digest},
        seed=0,
        version=VERSION,
    )


def ablate(model: nn.Module, prepared: Prepared, *, device: torch.device) -> dict[str, float | None]:
    """Return the mean Dice on the test images under each of ``ABLATIONS``.

    None where the network has no such part, or there is no other case.
    """
    if not isinstance(model, TimmSegmenter):
        return dict.fromkeys(ABLATIONS)
    model.to(device).eval()
    absent = {"skips_zeroed": not model.decoder.skips, "features_of_another_image": len(prepared.cases("test")) < 2}
    kinds = [name for name in ABLATIONS if not absent.get(name)]
    rows = prepared.rows("test")
    tallies = {name: Tally(Scoring.of(prepared, distances=False)) for name in kinds}
    explained = memory_explained("what the student uses", device, inference_remedies("data.image_size"))
    with explained, progress("what the student uses", len(rows)) as advance:
        for done, (row, image, own, other) in enumerate(_encoded(model, prepared, rows, device), start=1):
            for name in kinds:
                with torch.inference_mode():
                    prediction = hard_prediction(ABLATIONS[name](model, image, own, other))[0].cpu().numpy()
                tallies[name].add(int(row), prediction)
            advance(done)
    dice = {name: mean_dice(tally.headline) for name, tally in tallies.items()}
    return {name: dice.get(name) for name in ABLATIONS}


def _encoded(
    model: TimmSegmenter, prepared: Prepared, rows: np.ndarray, device: torch.device
) -> Iterator[tuple[int, Tensor, Features, Features]]:
    """Yield each row with its image, its features and those of the last image before it that is of another case.

    The first case gets the features of the last row's image.
    """

    def look(row: int) -> tuple[Tensor, Features]:
        image = to_images(prepared.native_image(row)[None]).to(device)
        with torch.inference_mode():
            return image, model.encode(image)

    _, last = look(rows[-1])
    case, other = prepared.records[rows[-1]].case, last
    for row in rows:
        image, own = look(row)
        if prepared.records[row].case != case:
            case, other = prepared.records[row].case, last
        yield row, image, own, other
        last = own
