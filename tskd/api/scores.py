"""Scores of a mask against the truth, by the definitions of every table here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tskd.api.show import Table
from tskd.errors import UserError
from tskd.metrics.segmentation import score_case
from tskd.types import UNLABELLED


def score(
    prediction: Any, mask: Any, *, spacing: Sequence[float] | None = None, classes: Sequence[str] | None = None
) -> Table:
    """Return Dice, IoU, HD95 and ASSD of each foreground class, one row a class:
    ``score(...)[0]["dice"]``.

    ``prediction`` is a :class:`Prediction` or, as ``mask``, class indices (H, W) or (H, W, D), 0 the background and 255
    unlabelled. ``spacing`` is millimetres along each axis; without it distances are in pixels. ``status`` says where
    one of the two is empty: both empty score 1, one alone scores 0. Raises UserError where shapes or indices do not
    fit, and where a mask of one class holds 0 and 255 alone, as files often do: nothing of it would be scored.
    """
    found = np.asarray(getattr(prediction, "classes", prediction))
    truth = np.asarray(mask)
    if truth.dtype.kind not in "biuf":
        raise UserError("score: the mask is no array of class indices. Read its file: np.asarray(Image.open(FILE)).")
    names = tuple(classes or getattr(prediction, "names", ()) or _numbered(found, truth))
    if len(names) == 1 and UNLABELLED in truth and not np.any((truth > 0) & (truth != UNLABELLED)):
        raise UserError(
            "score: the mask holds 0 and 255 alone, and 255 means unlabelled. Where white is the class, give mask > 0."
        )
    step = None if spacing is None else tuple(float(one) for one in spacing)
    try:
        rows = score_case(found, truth, classes=len(names), spacing=step)
    except ValueError as error:
        raise UserError(f"score: {error}") from error
    unit = "px" if step is None else "mm"
    return Table(
        {
            "class": name,
            "dice": row.dice,
            "iou": row.iou,
            f"hd95_{unit}": row.hd95,
            f"assd_{unit}": row.assd,
            "status": row.status,
        }
        for name, row in zip(names, rows)
    )


def _numbered(found: np.ndarray, truth: np.ndarray) -> list[str]:
    known = truth[truth != UNLABELLED]
    highest = max(int(found.max(initial=0)), int(known.max(initial=0)), 1)
    return [f"class{index}" for index in range(1, highest + 1)]
