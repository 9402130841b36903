"""Scores of a mask against the truth, by the definitions of every table here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tskd.api.show import Table
from tskd.data.labels import has_foreground
from tskd.errors import UserError
from tskd.metrics.segmentation import score_case
from tskd.types import UNLABELLED


def score(
    prediction: Any,
    mask: Any,
    *,
    spacing: Sequence[float] | float | None = None,
    classes: Sequence[str] | str | int | None = None,
) -> Table:
    """Return Dice, IoU, HD95 and ASSD of each foreground class, one row a class:
    ``score(...)[0]["dice"]``.

    ``prediction`` is a :class:`Prediction` or, as ``mask``, class indices (H, W) or (H, W, D), 0 the background and, in
    the mask alone, 255 unlabelled. ``spacing`` is millimetres along each axis, or along all of them; without it
    distances are in pixels. ``classes`` are names (a text: that of the one class), or how many there are. ``status``
    says where one of the two is empty: both empty score 1, one alone scores 0. Raises UserError where shapes or indices
    do not fit, for probabilities, for a prediction of 255, and where a mask of one class holds 0 and 255 alone, as
    files often do.
    """
    found = _whole(getattr(prediction, "classes", prediction), "prediction")
    truth = _whole(mask, "mask")
    _refuse_255(found)
    names = _names(classes) or tuple(getattr(prediction, "names", ())) or _numbered(_highest(found, truth))
    if len(names) == 1:  # of several classes a case may hold none, beside pixels that nobody labelled
        _refuse_white(truth)
    step = None if spacing is None else _millimetres(spacing, truth.ndim)
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


def _whole(values: Any, name: str) -> np.ndarray:
    """Return class indices as an array; UserError for what is none, or holds numbers that are no indices."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UserError(f"score: the {name} is no array of class indices. Read its file: np.asarray(Image.open(FILE)).")
    if array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all() or (array != np.rint(array)).any():
        raise UserError(
            f"score: the {name} holds numbers that are no class indices. Of probabilities, give {name} > 0.5, or the "
            "index of the largest."
        )
    return array.astype(np.int64)


def _refuse_255(found: np.ndarray) -> None:
    """Raise UserError for a prediction that holds 255, which is no class: it is most often white."""
    if UNLABELLED in found:
        raise UserError("score: the prediction holds 255, which is no class. Where white is it, give prediction > 0.")


def _refuse_white(truth: np.ndarray) -> None:
    """Raise UserError where 255 seems to mean white: as unlabelled it would leave nothing to score."""
    if UNLABELLED in truth and not has_foreground(truth):
        raise UserError(
            "score: the mask holds 0 and 255 alone, and 255 means unlabelled. Where white is the class, give mask > 0."
        )


def _names(classes: Sequence[str] | str | int | None) -> tuple[str, ...]:
    """Return the names that are given; none where they have to be found."""
    if classes is None:
        return ()
    if isinstance(classes, int):
        if not 1 <= classes < UNLABELLED:
            raise UserError(f"score: classes {classes}: give names, or a number from 1 to {UNLABELLED - 1}.")
        return _numbered(classes)
    return (classes,) if isinstance(classes, str) else tuple(classes)


def _millimetres(spacing: Sequence[float] | float, axes: int) -> tuple[float, ...]:
    """Return the spacing of every axis; UserError for what is no length."""
    try:
        step = tuple(map(float, spacing)) if np.ndim(spacing) else (float(spacing),) * axes  # type: ignore[arg-type]
    except (TypeError, ValueError):
        step = ()
    if not step or not all(0 < one < math.inf for one in step):
        raise UserError(f"score: spacing {spacing!r}: give millimetres above 0 along each axis, such as (0.2, 0.2).")
    return step


def _highest(found: np.ndarray, truth: np.ndarray) -> int:
    known = truth[truth != UNLABELLED]
    return max(int(found.max(initial=0)), int(known.max(initial=0)), 1)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class{index}" for index in range(1, count + 1))
