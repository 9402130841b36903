"""Ablation: what a trained student makes of its encoder and of its decoder's skip, by taking each away at test time.

A network of millions of weights may answer from a shallow skip alone: its score does not show it, this does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tskd.artifacts import Artifact
from tskd.console import progress
from tskd.data.prepared import Prepared
from tskd.data.tiles import fits
from tskd.deploy.tiles import blend_tiles, likeliest
from tskd.engine.batches import to_images
from tskd.engine.out_of_memory import inference_remedies, memory_explained
from tskd.losses.classes import hard_prediction, with_background
from tskd.metrics.segmentation import mean_dice
from tskd.models.registry import load_model
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.recipe.schema import EvaluateConfig
from tskd.stages.norm_statistics import as_tested, naming
from tskd.stages.scoring import Scoring, Tally
from tskd.stages.workbench import Workbench

VERSION = 4
Features = Sequence[Tensor]
Ablated = Callable[[Any, Tensor, Features, Features], Tensor]
"""(network, image (1, 3, H, W), its features, those of another case's image) to logits (1, K, H, W)."""

ABLATIONS: Mapping[str, Ablated] = {
    "features_zeroed": lambda model, image, own, other: model.decode(image, [0 * plane for plane in own]),
    "features_of_another_image": lambda model, image, own, other: model.decode(image, other),
    "skips_zeroed": lambda model, image, own, other: model.decode(image, own, skip=False),
}


def build(bench: Workbench, config: EvaluateConfig, tested: Artifact, model: Artifact) -> Artifact:
    """Return the artifact whose metrics are what :func:`ablate` finds for a trained model, tested as it is scored."""
    device = bench.runtime.fabric.device

    def find(_: Path) -> dict[str, float | None]:
        network, prepared = load_model(model.path), Prepared(tested.path)
        as_tested(network, config, prepared, device)
        return ablate(network, prepared, device=device)

    return bench.build(
        "ablation",
        find,
        config=naming(config),
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
    ablated = _Ablated(model, kinds, prepared, device)
    explained = memory_explained("what the student uses", device, inference_remedies("data.image_size"))
    with explained, progress("what the student uses", len(rows)) as advance:
        for done, row in enumerate(rows, start=1):
            ablated.at(int(row))
            image, tile = prepared.native_image(row), prepared.tile
            for name, prediction in zip(kinds, ablated.predictions(image, tile), strict=True):
                tallies[name].add(int(row), prediction)
            advance(done)
    dice = {name: mean_dice(tally.headline) for name, tally in tallies.items()}
    return {name: dice.get(name) for name in ABLATIONS}


class _Ablated:
    """A network under all ablations at once; it knows the image of another case that is to be taken."""

    def __init__(self, model: TimmSegmenter, kinds: Sequence[str], prepared: Prepared, device: torch.device) -> None:
        self.model, self.kinds, self.prepared, self.device = model, kinds, prepared, device
        first, *others = (int(row) for row in prepared.rows("test"))
        self._case, self._last = self._case_of(first), first
        other = next((row for row in reversed(others) if self._case_of(row) != self._case), first)
        self._other = self._features_of(other)

    def at(self, row: int) -> None:
        """Go to the next test image: of those before it the last one of another case lends its features.

        The first case gets those of the last image that is of another.
        """
        if self._case_of(row) != self._case:
            self._case, self._other = self._case_of(row), self._features_of(self._last)
        self._last = row

    def predictions(self, image: np.ndarray, tile: int | None) -> Iterator[np.ndarray]:
        """Yield the class map (H, W) uint8 of each kind for an image (H, W, 3) uint8, of a larger one by tiles."""
        if tile is None or fits(image.shape, tile):
            for logits in self._logits(image):
                yield hard_prediction(logits)[0].cpu().numpy()
            return
        planes = blend_tiles(self._planes, image, tile)
        yield from map(likeliest, np.split(planes, len(self.kinds)))

    def _logits(self, image: np.ndarray) -> Iterator[Tensor]:
        shown = to_images(image[None]).to(self.device)
        with torch.inference_mode():
            own = self.model.encode(shown)
        for kind in self.kinds:
            with torch.inference_mode():
                logits = ABLATIONS[kind](self.model, shown, own, self._other)
            yield logits

    def _planes(self, tile: np.ndarray) -> np.ndarray:
        """Return the logits (kinds x (K + 1), H, W) for a tile, background first, of all kinds."""
        with torch.inference_mode():
            return torch.cat([with_background(logits)[0] for logits in self._logits(tile)]).float().cpu().numpy()

    def _case_of(self, row: int) -> str:
        return self.prepared.records[row].case

    def _features_of(self, row: int) -> Features:
        """Return the features of a test image, of one that is cut those of the tile in its middle."""
        tile, record = self.prepared.tile, self.prepared.records[row]
        whole = tile is None or fits((record.height, record.width), tile)
        image = self.prepared.native_image(row) if whole else self.prepared.images[row]
        with torch.inference_mode():
            return self.model.encode(to_images(image[None]).to(self.device))
