"""Evaluate: score a model on the test images at their own size, volume by volume, and draw what it does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import nn

from tskd.artifacts import Artifact, Builder, write_json
from tskd.config import EvaluateConfig
from tskd.console import progress
from tskd.data.prepared import Prepared
from tskd.data.volumes import Stack, find_stacks
from tskd.engine import Runtime
from tskd.engine.batches import to_images
from tskd.errors import UserError
from tskd.losses.classes import hard_prediction
from tskd.metrics.segmentation import (
    Level,
    ScoreRow,
    Spacing,
    Unit,
    agreement,
    headline,
    score_case,
    shared_unit,
    summarise,
)
from tskd.models.registry import load_model
from tskd.overlays import overlay_panel
from tskd.stages.evaluated import CASES, PREDICTIONS, pick_overlays, prediction_path, read_prediction, write_cases
from tskd.types import UNLABELLED

VERSION = 3
SUMMARY, OVERLAYS = "summary.json", "overlays"


def build_evaluation(
    store: Builder,
    config: EvaluateConfig,
    tested: Artifact,
    model: Artifact,
    *,
    title: str,
    seed: int,
    runtime: Runtime,
) -> Artifact:
    """Return the scores of a trained model on the test images of a prepared data set."""
    return store.build(
        "evaluate",
        lambda folder: evaluate(
            config, load_model(model.path), Prepared(tested.path), folder, title=title, device=runtime.fabric.device
        ),
        config=config.model_dump(exclude={"data"}),
        inputs={"data": tested.digest, "model": model.digest, "title": title},
        seed=seed,
        version=VERSION,
    )


def evaluate(
    config: EvaluateConfig, model: nn.Module, prepared: Prepared, folder: Path, *, title: str, device: torch.device
) -> dict[str, Any]:
    """Predict every test image, score it and its volume, keep scores, predictions and overlays; return the summary."""
    scoring = Scoring.of(prepared)
    (folder / PREDICTIONS).mkdir(exist_ok=True)
    model.to(device).eval()
    with progress(f"evaluate {title}", len(prepared.rows("test"))) as advance:
        kept = count(1)

        def keep(row: int, prediction: np.ndarray) -> None:
            Image.fromarray(prediction).save(prediction_path(folder, row))
            advance(next(kept))

        scores = score_test_images(lambda image: predict_image(model, image, device), scoring, keep=keep)
    write_cases(scores, folder / CASES)
    summary = {"model": title, "dataset": prepared.dataset["name"], **summarise_levels(scores)}
    summary |= {"remark": "; ".join(scoring.remarks)} if scoring.remarks else {}
    write_json(folder / SUMMARY, summary)
    images = [score for score in scores if score.level == "image"]
    draw_overlays(prepared, folder, images, count=config.overlays, title=title)
    return summary


@dataclass(frozen=True)
class Scoring:
    """How the test images of a data set are scored: which of them make a volume, and in which unit."""

    prepared: Prepared
    stacks: tuple[Stack, ...]
    """Empty: every image is scored by itself alone."""
    units: Mapping[Level, Unit]
    remarks: tuple[str, ...]
    """What a reader of the scores should know."""

    @classmethod
    def of(cls, prepared: Prepared) -> Self:
        """Look at the test part of a data set."""
        rows = prepared.rows("test")
        stacks, remarks = find_stacks(prepared.records, rows)
        spacings = [prepared.records[row].spacing for row in rows]
        image, of_images = shared_unit([spacing and spacing[:2] for spacing in spacings])
        volume, of_volumes = shared_unit([stack.spacing for stack in stacks], "volume")
        said = (*remarks, *(one for one in (of_images, of_volumes) if one is not None))
        return cls(prepared, stacks, {"image": image, "volume": volume}, said)

    def groups(self) -> Iterator[tuple[tuple[int, ...], Stack | None]]:
        """Yield the rows that are scored together: a volume's, or a single one."""
        if self.stacks:
            yield from ((stack.rows, stack) for stack in self.stacks)
        else:
            yield from (((int(row),), None) for row in self.prepared.rows("test"))

    def score_image(self, row: int, prediction: np.ndarray) -> list[ScoreRow]:
        """Score one test image, (H, W) class indices, a row a class."""
        record = self.prepared.records[row]
        spacing = record.spacing[:2] if record.spacing and self.units["image"] == "mm" else None
        return self._scores("image", record.case, record.id, prediction, self.prepared.native_mask(row), spacing)

    def score_stack(self, stack: Stack, predictions: Sequence[np.ndarray]) -> list[ScoreRow]:
        """Score one volume by the predictions of its slices, a row a class; slices without a mask are no part of it."""
        spacing = stack.spacing if self.units["volume"] == "mm" else None
        mask = stack.assemble(map(self.prepared.native_mask, stack.rows), missing=UNLABELLED)
        return self._scores("volume", stack.case, stack.name, stack.assemble(predictions, missing=0), mask, spacing)

    def _scores(
        self, level: Level, case: str, name: str, prediction: np.ndarray, mask: np.ndarray, spacing: Spacing | None
    ) -> list[ScoreRow]:
        scores = score_case(prediction, mask, classes=len(self.prepared.classes), spacing=spacing)
        return [ScoreRow(case, name, label, self.units[level], one, level) for label, one in enumerate(scores, start=1)]


def score_test_images(
    predict: Callable[[np.ndarray], np.ndarray],
    scoring: Scoring,
    *,
    keep: Callable[[int, np.ndarray], None] = lambda row, prediction: None,
) -> list[ScoreRow]:
    """Return the scores of all test images, and of their volumes where they make some.

    ``predict`` takes an image (H, W, 3) uint8 to class indices (H, W) uint8; ``keep`` is given each row's. The slices
    of one volume are in memory at a time. ``headline`` takes the rows of the level that counts, for ``summarise``.
    """
    scores: list[ScoreRow] = []
    for rows, stack in scoring.groups():
        predictions = [predict(scoring.prepared.native_image(row)) for row in rows]
        for row, prediction in zip(rows, predictions, strict=True):
            keep(row, prediction)
            scores += scoring.score_image(row, prediction)
        if stack is not None:
            scores += scoring.score_stack(stack, predictions)
    return scores


def summarise_levels(scores: Sequence[ScoreRow]) -> dict[str, Any]:
    """Return the summary of volumes with that of their slices in ``slices``, or that of single images."""
    summary = summarise(headline(scores), seed=0).as_dict()
    if summary["level"] == "image":
        return summary
    slices = summarise([score for score in scores if score.level == "image"], seed=0).as_dict()
    return {**summary, "n_images": slices["n_images"], "slices": slices}


def predict_image(model: nn.Module, image: np.ndarray, device: torch.device) -> np.ndarray:
    """Return the class map (H, W) uint8 of one image (H, W, 3) uint8 at its own size."""
    with torch.inference_mode():
        logits = model(to_images(image[None]).to(device)).logits
        return hard_prediction(logits)[0].cpu().numpy()


def mean_agreement(first: Path, second: Path, prepared: Prepared) -> float:
    """Return the mean Dice between the predictions of two evaluations, e.g. teacher and student, by volume or image."""
    classes = len(prepared.classes)

    def stacked(folder: Path, rows: Sequence[int]) -> np.ndarray:
        return np.stack([read_prediction(folder, row) for row in rows], axis=-1)

    groups = Scoring.of(prepared).groups()
    return float(np.mean([agreement(stacked(first, rows), stacked(second, rows), classes) for rows, _ in groups]))


def refuse_seen_cases(seen: Iterable[str], prepared: Prepared, *, what: str) -> None:
    """Raise UserError where a model was trained on a test case."""
    if shared := sorted(set(seen) & prepared.cases("test")):
        raise UserError(
            f"{what} has seen {len(shared)} test cases (first: {', '.join(shared[:3])}); scores would flatter. "
            "Train it again on this data set's training cases."
        )


def refuse_seen_images(prepared: Prepared, tested: Prepared) -> None:
    """Raise UserError where a test image of another data set is a training image under another name, pixel by pixel.

    Images of one tone do not count: every volume may begin with an empty slice.
    """
    seen = _contents(prepared, prepared.rows("train", "val", "unlabelled"))
    if shared := _contents(tested, tested.rows("test")) & seen:
        raise UserError(
            f"evaluate.data: {len(shared)} test images are training images of data.root as well; scores would flatter. "
            "Take the copies out of one of the two, or set data.allow_duplicates=true."
        )


def _contents(prepared: Prepared, rows: np.ndarray) -> set[bytes]:
    images = (prepared.images[row] for row in rows)
    return {hashlib.sha256(image.tobytes()).digest() for image in images if image.min() < image.max()}


def refuse_other_classes(prepared: Prepared, tested: Prepared) -> None:
    """Raise UserError where a data set to be tested on has other classes than the one trained on."""
    if prepared.classes != tested.classes:
        raise UserError(
            f"evaluate.data has the classes {', '.join(tested.classes)}, training has {', '.join(prepared.classes)}: "
            "they must be the same, in one order. Name them with evaluate.data.classes, or take another data set."
        )


def draw_overlays(prepared: Prepared, folder: Path, scores: Sequence[ScoreRow], *, count: int, title: str) -> None:
    """Write a picture of each picked image: truth as line, prediction as area."""
    (folder / OVERLAYS).mkdir(exist_ok=True)
    row_of = {record.id: row for row, record in enumerate(prepared.records)}
    for number, (rank, name, dice) in enumerate(pick_overlays(scores, count)):
        row = row_of[name]
        panel = overlay_panel(
            prepared.native_image(row),
            prepared.native_mask(row),
            {title: read_prediction(folder, row)},
            title=f"{rank}, Dice {dice:.3f}",
            class_names=prepared.classes,
        )
        panel.save(folder / OVERLAYS / f"{number:02d}_{rank}.png")
