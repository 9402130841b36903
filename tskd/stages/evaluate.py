"""Evaluate: score a model on the test images at their own size, volume by volume, and draw what it does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tskd.artifacts import Artifact
from tskd.console import progress
from tskd.data.prepared import Prepared
from tskd.data.tiles import count_looks, fits
from tskd.engine.batches import to_images
from tskd.engine.out_of_memory import inference_remedies, memory_explained
from tskd.losses.classes import hard_prediction
from tskd.machine.disk import write_json
from tskd.metrics.segmentation import agreement
from tskd.models.registry import load_model
from tskd.recipe.schema import NAMING, EvaluateConfig
from tskd.stages.evaluation_files import (
    CASES,
    LOOKS,
    PREDICTIONS,
    SUMMARY,
    draw_overlays,
    empty_truths,
    prediction_path,
    read_prediction,
    write_cases,
)
from tskd.stages.network_answers import answer_by_size
from tskd.stages.norm_statistics import as_tested
from tskd.stages.scoring import Scoring, Tally, summarise_levels
from tskd.stages.workbench import Workbench

VERSION = 5


def build(bench: Workbench, config: EvaluateConfig, tested: Artifact, model: Artifact, *, title: str) -> Artifact:
    """Return the scores of a trained model on the test images of a prepared data set."""
    device = bench.runtime.fabric.device
    return bench.build(
        "evaluate",
        lambda folder: evaluate(
            config, load_model(model.path), Prepared(tested.path), folder, title=title, device=device
        ),
        config=config.model_dump(exclude={"data"}, context=NAMING),
        inputs={"data": tested.digest, "model": model.digest, "title": title},
        version=VERSION,
    )


def evaluate(
    config: EvaluateConfig, model: nn.Module, prepared: Prepared, folder: Path, *, title: str, device: torch.device
) -> dict[str, Any]:
    """Predict every test image, score it and its volume, keep scores, predictions and overlays; return the summary."""
    rows, tally = prepared.rows("test"), Tally(Scoring.of(prepared))
    (folder / PREDICTIONS).mkdir(exist_ok=True)
    explained = memory_explained(f"evaluate {title}", device, inference_remedies("data.image_size (or the teacher's)"))
    with explained, progress(f"evaluate {title}", len(rows)) as advance:
        adapted = as_tested(model, config, prepared, device)
        for done, row in enumerate(rows, start=1):
            prediction = predict_image(model, prepared.native_image(row), device, prepared.tile)
            Image.fromarray(prediction).save(prediction_path(folder, row))
            tally.add(row, prediction)
            advance(done)
    write_cases(tally.scores, folder / CASES)
    scores = summarise_levels(tally.scores)
    remarks = (*tally.scoring.remarks, *adapted, *empty_truths(scores, prepared.classes))
    named = {"model": title, "dataset": prepared.dataset["name"]}
    looks = [count_looks((prepared.records[row].height, prepared.records[row].width), prepared.tile) for row in rows]
    summary = {
        **named,
        **scores,
        **({} if prepared.tile is None else {LOOKS: float(np.mean(looks))}),
        **({"remark": "; ".join(remarks)} if remarks else {}),
    }
    write_json(folder / SUMMARY, summary)
    images = [score for score in tally.scores if score.level == "image"]
    draw_overlays(prepared, folder, images, count=config.overlays, title=title)
    return summary


def predict_image(model: nn.Module, image: np.ndarray, device: torch.device, tile: int | None = None) -> np.ndarray:
    """Return the class map (H, W) uint8 of one image (H, W, 3) uint8 at its own size, of a larger one by tiles."""
    if tile is not None and not fits(image.shape, tile):
        return answer_by_size(model, image, tile).classes
    with torch.inference_mode():
        logits = model(to_images(image[None]).to(device)).logits
        return hard_prediction(logits)[0].cpu().numpy()


def mean_agreement(first: Path, second: Path, prepared: Prepared) -> float:
    """Return the mean Dice between the predictions of two evaluations, e.g. teacher and student, by volume or image."""
    classes = len(prepared.classes)

    def stacked(folder: Path, rows: Sequence[int]) -> np.ndarray:
        return np.stack([read_prediction(folder, row) for row in rows], axis=-1)

    groups = Scoring.of(prepared).groups()
    return float(np.mean([agreement(stacked(first, rows), stacked(second, rows), classes) for rows in groups]))
