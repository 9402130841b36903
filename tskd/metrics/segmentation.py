"""Overlap and contour scores of one prediction, with a stated policy for empty masks, and their summary over cases.

The policy (the same for every method): where mask and prediction are both empty, Dice and IoU are 1, distances 0;
where only one of them is empty (``missed``, ``false_positive``), Dice and IoU are 0, distances the image diagonal.
Every row counts, and each kind is counted in the summary: a missed organ can never improve a mean by dropping out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from tskd.metrics.intervals import Interval, bootstrap_mean
from tskd.types import UNLABELLED

Status = Literal["scored", "both_empty", "missed", "false_positive"]
Unit = Literal["px", "mm"]
Spacing = tuple[float, float]

MEASURES = ("dice", "iou", "hd95", "assd")


@dataclass(frozen=True)
class CaseScore:
    """Scores of one class in one image."""

    dice: float
    iou: float
    hd95: float
    """95th percentile Hausdorff distance; its unit is that of the spacing given, pixels without one."""
    assd: float
    """Average symmetric surface distance, same unit."""
    status: Status


@dataclass(frozen=True)
class ScoreRow:
    """One line of cases.csv: one class in one image."""

    case: str
    image: str
    label: int
    """Class index, 1 to K."""
    unit: Unit
    score: CaseScore

    def as_dict(self) -> dict[str, str | int | float]:
        """Return the line for a CSV writer, the unit in the column names."""
        return {
            "case": self.case,
            "image": self.image,
            "class": self.label,
            "dice": self.score.dice,
            "iou": self.score.iou,
            f"hd95_{self.unit}": self.score.hd95,
            f"assd_{self.unit}": self.score.assd,
            "status": self.score.status,
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, str]) -> ScoreRow:
        """Read a line of cases.csv back; raises ValueError for a line that :meth:`as_dict` cannot have written."""
        unit: Unit = "mm" if "hd95_mm" in line else "px"
        try:
            status = next(known for known in get_args(Status) if known == line["status"])
            distances = float(line[f"hd95_{unit}"]), float(line[f"assd_{unit}"])
            score = CaseScore(float(line["dice"]), float(line["iou"]), *distances, status)
            return cls(line["case"], line["image"], int(line["class"]), unit, score)
        except (KeyError, StopIteration) as error:
            raise ValueError(f"not a line of a cases.csv: {dict(line)}") from error


def score_case(
    prediction: np.ndarray, mask: np.ndarray, *, classes: int, spacing: Spacing | None
) -> tuple[CaseScore, ...]:
    """Score one image at its native resolution, one entry a foreground class 1 to ``classes``.

    ``prediction`` and ``mask`` are (H, W) class indices, 0 background. Pixels whose mask is ``UNLABELLED`` are
    background in both. ``spacing`` is millimetres per pixel (row, column); None leaves distances in pixels.

    Contours are the pixels that a cross-shaped erosion removes, the image border included. HD95 is the larger of the
    two directed 95th percentiles (linear interpolation) of nearest contour distances, ASSD the mean over both
    directions pooled: the definitions of MONAI's ``compute_hausdorff_distance(percentile=95)`` and
    ``compute_average_surface_distance(symmetric=True)``, the reference in the tests. Raises ValueError when shapes
    differ, an index lies outside 0 to ``classes`` or no pixel is labelled.
    """
    prediction, mask = _labelled(prediction, mask, classes)
    confusion = _confusion(prediction, mask, classes)
    step = spacing or (1.0, 1.0)
    diagonal = math.hypot(mask.shape[0] * step[0], mask.shape[1] * step[1])
    scores = []
    for label in range(1, classes + 1):
        hits, marked, present = confusion[label, label], confusion[:, label].sum(), confusion[label].sum()
        if marked == 0 or present == 0:
            scores.append(_empty_score(bool(marked), bool(present), diagonal))
            continue
        distances = surface_distances(prediction == label, mask == label, spacing=step)
        dice, iou = 2 * hits / (marked + present), hits / (marked + present - hits)
        scores.append(CaseScore(float(dice), float(iou), hd95(*distances), assd(*distances), "scored"))
    return tuple(scores)


def surface_distances(
    region: np.ndarray, other: np.ndarray, *, spacing: Spacing = (1.0, 1.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of every contour pixel of ``region`` to ``other``'s contour, and the other way round.

    Both are (H, W) bool and not empty; the answers are 1-d. A k-d tree over contour points is exact and, in 2-d, much
    cheaper than distance transforms of the image: contours are thin.
    """
    contour, other_contour = (_contour_points(one) * np.asarray(spacing) for one in (region, other))
    there, _ = KDTree(other_contour).query(contour)
    back, _ = KDTree(contour).query(other_contour)
    return there, back


def hd95(there: np.ndarray, back: np.ndarray) -> float:
    """Return the larger of the two directed 95th percentiles of contour distances."""
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def assd(there: np.ndarray, back: np.ndarray) -> float:
    """Return the mean of the contour distances of both directions pooled."""
    return float(np.concatenate([there, back]).mean())


def agreement(a: np.ndarray, b: np.ndarray, classes: int) -> float:
    """Return the mean Dice over foreground classes between two predictions (H, W), 1 for a class neither has."""
    confusion = _confusion(*_labelled(a, b, classes), classes)
    sizes = (confusion.sum(axis=0) + confusion.sum(axis=1))[1:]
    overlaps = 2 * confusion.diagonal()[1:]
    return float(np.where(sizes > 0, overlaps / np.maximum(sizes, 1), 1.0).mean())


def shared_unit(spacings: Iterable[Spacing | None]) -> tuple[Unit, str | None]:
    """Return the one unit in which a set of images can be scored, with a remark where spacings had to be left out.

    Millimetres need the spacing of every image; otherwise all distances are in pixels (pass ``spacing=None`` then).
    """
    known = [spacing is not None for spacing in spacings]
    if known and all(known):
        return "mm", None
    if not any(known):
        return "px", None
    missing = len(known) - sum(known)
    return "px", f"{missing} of {len(known)} images have no pixel spacing: all distances are in pixels"


@dataclass(frozen=True)
class Summary:
    """Headline scores over cases and, by class index, over the same cases."""

    unit: Unit
    dice: Interval
    iou: Interval
    hd95: Interval
    assd: Interval
    n_cases: int
    n_images: int
    scored: int
    both_empty: int
    missed: int
    false_positive: int
    """The four counts are of rows: images times classes."""
    by_class: Mapping[int, Summary]
    """Empty in the entries of ``by_class`` themselves."""

    def as_dict(self) -> dict[str, object]:
        """Return what run.json and summary.json hold: plain JSON values, the unit in the names."""
        fields: dict[str, object] = {}
        for measure in MEASURES:
            name = f"{measure}_{self.unit}" if measure in ("hd95", "assd") else measure
            interval: Interval = getattr(self, measure)
            fields[name] = interval.mean
            fields[f"{name}_ci95"] = list(interval.ci95) if interval.ci95 else None
        counts = ("n_cases", "n_images", "scored", "both_empty", "missed", "false_positive")
        fields.update({name: getattr(self, name) for name in counts})
        if self.by_class:
            fields["classes"] = {str(label): summary.as_dict() for label, summary in self.by_class.items()}
        return fields


def summarise(rows: Sequence[ScoreRow], *, seed: int) -> Summary:
    """Return mean scores with 95 % bootstrap intervals over cases, for all classes together and for each.

    A case's score is the mean over its images and classes, the headline the mean over cases: a volume of forty slices
    counts as much as a single image, and the interval resamples what was sampled, cases. Raises ValueError for no rows,
    rows of different units, or the same image and class twice.
    """
    if len({row.unit for row in rows}) != 1:
        raise ValueError("scores can be summarised only where there are rows and all are in one unit")
    if len({(row.image, row.label) for row in rows}) != len(rows):
        raise ValueError("an image and class appears twice among the scores")
    labels = sorted({row.label for row in rows})
    by_class = {label: _summary([row for row in rows if row.label == label], seed, {}) for label in labels}
    return _summary(rows, seed, by_class)


def case_means(rows: Sequence[ScoreRow], measure: str) -> dict[str, float]:
    """Return each case's mean of ``measure`` (one of ``MEASURES``) over its images and classes, sorted by case."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row.case, []).append(getattr(row.score, measure))
    return {case: float(np.mean(values[case])) for case in sorted(values)}


def _summary(rows: Sequence[ScoreRow], seed: int, by_class: Mapping[int, Summary]) -> Summary:
    def interval(measure: str) -> Interval:
        return bootstrap_mean(np.array(list(case_means(rows, measure).values())), seed=seed)

    statuses = Counter(row.score.status for row in rows)
    return Summary(
        unit=rows[0].unit,
        dice=interval("dice"),
        iou=interval("iou"),
        hd95=interval("hd95"),
        assd=interval("assd"),
        n_cases=len({row.case for row in rows}),
        n_images=len({row.image for row in rows}),
        scored=statuses["scored"],
        both_empty=statuses["both_empty"],
        missed=statuses["missed"],
        false_positive=statuses["false_positive"],
        by_class=by_class,
    )


def _labelled(prediction: np.ndarray, mask: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both as int64 with unlabelled pixels set to background, shapes and indices checked."""
    if prediction.shape != mask.shape or mask.ndim != 2:
        raise ValueError(f"prediction {prediction.shape} and mask {mask.shape} must have one shape (H, W)")
    labelled = mask != UNLABELLED
    if not labelled.any():
        raise ValueError("the mask has no labelled pixel: such an image cannot be scored")
    prediction, mask = (np.where(labelled, one, 0).astype(np.int64) for one in (prediction, mask))
    for name, one in (("prediction", prediction), ("mask", mask)):
        if one.min() < 0 or one.max() > classes:
            raise ValueError(f"the {name} holds class {one.min()} to {one.max()}, allowed are 0 to {classes}")
    return prediction, mask


def _confusion(prediction: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Return pixel counts (K + 1, K + 1), mask class by predicted class."""
    pairs = np.bincount(mask.ravel() * (classes + 1) + prediction.ravel(), minlength=(classes + 1) ** 2)
    return pairs.reshape(classes + 1, classes + 1)


def _empty_score(marked: bool, present: bool, diagonal: float) -> CaseScore:
    """Apply the policy of the module's docstring."""
    if marked:
        return CaseScore(0.0, 0.0, diagonal, diagonal, "false_positive")
    if present:
        return CaseScore(0.0, 0.0, diagonal, diagonal, "missed")
    return CaseScore(1.0, 1.0, 0.0, 0.0, "both_empty")


def _contour_points(region: np.ndarray) -> np.ndarray:
    """Return the (N, 2) pixel positions of the contour, found inside the bounding box: most of an image is empty."""
    rows, columns = ndimage.find_objects(region.astype(np.uint8))[0]
    box = region[rows, columns]
    contour = np.argwhere(box & ~ndimage.binary_erosion(box))
    return contour + np.array([rows.start, columns.start])
