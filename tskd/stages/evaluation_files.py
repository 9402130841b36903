"""What an evaluation leaves behind, read without loading a network: scores of cases, predictions, what to look at."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tskd.cells import harmless, original
from tskd.metrics.segmentation import NOTHING_TO_FIND, ScoreRow, headline
from tskd.overlays import overlay_panel
from tskd.stages.scoring import Scorable

CASES, PREDICTIONS, SUMMARY, OVERLAYS = "cases.csv", "predictions", "summary.json", "overlays"
LOOKS = "looks"
"""In the summary: how often a network looked at a test image on average, where larger ones are answered in tiles."""
_BYTES = "surrogateescape"
"""Of an id that comes from a file name which is not UTF-8: its bytes are written and read back as they are."""


def prediction_path(folder: Path, row: int) -> Path:
    """Return where the prediction for a row is kept."""
    return folder / PREDICTIONS / f"{row:06d}.png"


def read_prediction(folder: Path, row: int) -> np.ndarray:
    """Return a kept prediction, (H, W) uint8 class index."""
    with Image.open(prediction_path(folder, row)) as image:
        return np.asarray(image)


def read_cases(folder: Path) -> list[ScoreRow]:
    """Return the scores of an evaluation that count: of volumes where there are any, else of images."""
    return headline(read_scores(folder))


def read_scores(folder: Path) -> list[ScoreRow]:
    """Return all scores of an evaluation: of every image, and of volumes where there are any."""
    with (folder / CASES).open(newline="", encoding="utf-8", errors=_BYTES) as file:
        lines = ({name: original(value) for name, value in line.items()} for line in csv.DictReader(file))
        return [ScoreRow.from_dict(line) for line in lines]


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the means and intervals of an evaluation, by model's and data set's title too."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return summary


def write_cases(scores: Sequence[ScoreRow], path: Path) -> None:
    """Write one row an image (or volume) and class; what rows of one level alone have is empty in the others."""
    lines = [score.as_dict() for score in scores]
    columns = dict.fromkeys(name for line in lines for name in line)
    with path.open("w", newline="", encoding="utf-8", errors=_BYTES) as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(map(harmless, lines))


def pick_overlays(scores: Sequence[ScoreRow], count: int) -> list[tuple[str, str, float]]:
    """Return (rank, image id, mean Dice over classes) of the worst, median and best images; the rows are of images.

    Images whose mask is empty come in only where there are no others: their Dice is 0 or 1, and there is little to see.
    """
    dice: dict[str, list[float]] = {}
    for row in scores:
        dice.setdefault(row.image, []).append(row.score.dice)
    shown = {row.image for row in scores if row.score.status in ("scored", "missed")}
    dice = {image: values for image, values in dice.items() if image in shown} or dice
    names = list(dice)
    random.Random(0).shuffle(names)  # so that ties are not all from the first case
    order = sorted(names, key=lambda name: float(np.mean(dice[name])))
    each = min(max(count // 3, 1), len(order)) if count else 0
    middle = max((len(order) - each) // 2, 0)
    groups = (("worst", order[:each]), ("median", order[middle : middle + each]), ("best", order[len(order) - each :]))
    picked: dict[str, tuple[str, str, float]] = {}
    for rank, members in groups:
        for name in members:
            picked.setdefault(name, (rank, name, float(np.mean(dice[name]))))
    return list(picked.values())


def empty_truths(scores: Mapping[str, Any], classes: Sequence[str]) -> tuple[str, ...]:
    """Return what a reader should know where masks hold nothing: no class at all, or some classes never."""
    if scores["dice"] is None:
        return (NOTHING_TO_FIND,)
    absent = [name for label, name in enumerate(classes, 1) if scores["classes"][str(label)]["dice"] is None]
    if not absent:
        return ()
    return (f"{NOTHING_TO_FIND} of {', '.join(absent)}: no part of the means",)


def draw_overlays(prepared: Scorable, folder: Path, scores: Sequence[ScoreRow], *, count: int, title: str) -> None:
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
        panel.save(folder / OVERLAYS / f"{number:02d}_{rank}.png", compress_level=1)
