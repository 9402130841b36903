"""Overlap and surface scores of one prediction, with a stated policy for empty masks, and their summary over cases.

What is scored is an image (H, W) or a volume (H, W, D). The policy (the same for every method, image or volume): where
mask and prediction are both empty, Dice and IoU are 1, distances 0; where only one of them is empty (``missed``,
``false_positive``), Dice and IoU are 0, distances the diagonal of the image or volume.
Every row counts, and each kind is counted in the summary: a missed organ can never improve a mean by dropping out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from pykdtree.kdtree import KDTree

from tskd.metrics.intervals import Interval, bootstrap_mean
from tskd.morphology import eroded
from tskd.types import UNLABELLED

Status = Literal["scored", "both_empty", "missed", "false_positive"]
Unit = Literal["px", "mm"]
Level = Literal["image", "volume"]
"""What a row scores: one image (of a volumetric set: one slice), or one volume of stacked slices."""
Spacing = tuple[float, ...]
"""Millimetres along each axis: (row, column) of an image, (row, column, slice) of a volume."""

NOTHING_TO_FIND = "nothing to find in the test images"
"""Said instead of a score where no mask holds what is scored: a model that marks nothing would have Dice 1."""

_AT_ONCE = 2**20
MEASURES = ("dice", "iou", "hd95", "assd")
_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class CaseScore:
    """Scores of one class in one image or volume."""

    dice: float
    iou: float
    hd95: float
    """95th percentile Hausdorff distance; its unit is that of the spacing given, pixels without one."""
    assd: float
    """Average symmetric surface distance, same unit."""
    status: Status
    truth_ml: float | None = None
    """Millilitres in the mask; None: an image, or a volume whose spacing is not known."""
    volume_ml: float | None = None
    """Millilitres in the prediction."""

    @property
    def volume_error_ml(self) -> float:
        """Absolute difference of the two volumes; ValueError where they are not known."""
        if self.truth_ml is None or self.volume_ml is None:
            raise ValueError("the score holds no volumes: it is of an image, or its spacing is not known")
        return abs(self.volume_ml - self.truth_ml)


@dataclass(frozen=True)
class ScoreRow:
    """One line of cases.csv: one class in one image or volume."""

    case: str
    image: str
    """Id of the image, or name of the volume."""
    label: int
    """Class index, 1 to K."""
    unit: Unit
    score: CaseScore
    level: Level = "image"

    def as_dict(self) -> dict[str, str | int | float]:
        """Return the line for a CSV writer, the unit in the column names."""
        millilitres = {"truth_ml": self.score.truth_ml, "volume_ml": self.score.volume_ml}
        return {
            "level": self.level,
            "case": self.case,
            "image": self.image,
            "class": self.label,
            "dice": self.score.dice,
            "iou": self.score.iou,
            f"hd95_{self.unit}": self.score.hd95,
            f"assd_{self.unit}": self.score.assd,
            "status": self.score.status,
            **{name: value for name, value in millilitres.items() if value is not None},
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, str]) -> ScoreRow:
        """Read a line of cases.csv back; raises ValueError for a line that :meth:`as_dict` cannot have written.

        Columns that only rows of the other level fill are empty. A file without levels is of a time that had images.
        """
        unit: Unit = "mm" if line.get("hd95_mm") else "px"
        try:
            status = next(known for known in get_args(Status) if known == line["status"])
            level = next(known for known in get_args(Level) if known == line.get("level", "image"))
            distances = float(line[f"hd95_{unit}"]), float(line[f"assd_{unit}"])
            truth, volume = (float(line[name]) if line.get(name) else None for name in ("truth_ml", "volume_ml"))
            score = CaseScore(float(line["dice"]), float(line["iou"]), *distances, status, truth, volume)
            return cls(line["case"], line["image"], int(line["class"]), unit, score, level)
        except (KeyError, StopIteration) as error:
            raise ValueError(f"not a line of a cases.csv: {dict(line)}") from error


def score_case(
    prediction: np.ndarray, mask: np.ndarray, *, classes: int, spacing: Spacing | None, distances: bool = True
) -> tuple[CaseScore, ...]:
    """Score one image or volume at its native resolution, one entry a foreground class 1 to ``classes``.

    ``prediction`` and ``mask`` are (H, W) or (H, W, D) class indices, 0 background. Pixels whose mask is ``UNLABELLED``
    are background in both. ``spacing`` is millimetres along each axis; None leaves distances in pixels or voxels, and
    volumes without millilitres. Without ``distances`` HD95 and ASSD are not a number: they cost most of the time.

    The surface is what an erosion by the nearest neighbours (4 in an image, 6 in a volume) removes, the border of the
    array included. HD95 is the larger of the two directed 95th percentiles (linear interpolation) of nearest surface
    distances, ASSD the mean over both directions pooled: the definitions of MONAI's
    ``compute_hausdorff_distance(percentile=95)`` and ``compute_average_surface_distance(symmetric=True)``, which the
    tests compare with. Raises ValueError when shapes differ, the spacing has another number of axes, an index lies
    outside 0 to ``classes`` or no pixel is labelled.
    """
    prediction, mask = _labelled(prediction, mask, classes)
    step = spacing or (1.0,) * mask.ndim
    if len(step) != mask.ndim:
        raise ValueError(f"a spacing of {len(step)} numbers for an array of {mask.ndim} axes")
    confusion = _confusion(prediction, mask, classes)
    voxel_ml = math.prod(step) / _MM3_PER_ML if spacing and mask.ndim == 3 else None
    scores = []
    for label in range(1, classes + 1):
        score = _score_class(prediction == label, mask == label, confusion[label, label], step, distances)
        if voxel_ml is not None:
            truth, volume = (float(count * voxel_ml) for count in (confusion[label].sum(), confusion[:, label].sum()))
            score = replace(score, truth_ml=truth, volume_ml=volume)
        scores.append(score)
    return tuple(scores)


def _score_class(region: np.ndarray, truth: np.ndarray, hits: int, step: Spacing, distances: bool) -> CaseScore:
    """Return the scores of one class, by the policy of the module's docstring where one of the two is empty."""
    marked, present = np.count_nonzero(region), np.count_nonzero(truth)
    if marked and present:
        dice, iou = 2 * hits / (marked + present), hits / (marked + present - hits)
        far = surface_distances(region, truth, spacing=step) if distances else None
        return CaseScore(
            float(dice), float(iou), *((hd95(*far), assd(*far)) if far else (math.nan, math.nan)), "scored"
        )
    if not marked and not present:
        return CaseScore(1.0, 1.0, 0.0, 0.0, "both_empty")
    diagonal = math.hypot(*(length * along for length, along in zip(truth.shape, step)))
    return CaseScore(0.0, 0.0, diagonal, diagonal, "false_positive" if marked else "missed")


def surface_distances(
    region: np.ndarray, other: np.ndarray, *, spacing: Spacing | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of every surface pixel of ``region`` to ``other``'s surface, and the other way round.

    Both are (H, W) or (H, W, D) bool and not empty; the answers are 1-d. A k-d tree over surface points is exact and
    cheaper than distance transforms: surfaces are thin.
    """
    step = np.asarray(spacing or (1.0,) * region.ndim)
    surface, other_surface = (_surface_points(one) * step for one in (region, other))
    there, _ = KDTree(other_surface).query(surface)
    back, _ = KDTree(surface).query(other_surface)
    return there, back


def hd95(there: np.ndarray, back: np.ndarray) -> float:
    """Return the larger of the two directed 95th percentiles of contour distances."""
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def assd(there: np.ndarray, back: np.ndarray) -> float:
    """Return the mean of the contour distances of both directions pooled."""
    return float(np.concatenate([there, back]).mean())


def agreement(a: np.ndarray, b: np.ndarray, classes: int) -> float:
    """Return the mean Dice over foreground classes between two predictions of one shape, 1 for a class neither has."""
    confusion = _confusion(*_labelled(a, b, classes), classes)
    sizes = (confusion.sum(axis=0) + confusion.sum(axis=1))[1:]
    overlaps = 2 * confusion.diagonal()[1:]
    return float(np.where(sizes > 0, overlaps / np.maximum(sizes, 1), 1.0).mean())


def shared_unit(spacings: Iterable[Spacing | None], level: Level = "image") -> tuple[Unit, str | None]:
    """Return the one unit in which a set can be scored, with a remark where spacings had to be left out.

    Millimetres need the spacing of every image or volume; otherwise all distances are in pixels or voxels (pass
    ``spacing=None`` then).
    """
    known = [spacing is not None for spacing in spacings]
    if known and all(known):
        return "mm", None
    if not any(known):
        return "px", None
    missing, pixel = len(known) - sum(known), "voxel" if level == "volume" else "pixel"
    return "px", f"{missing} of {len(known)} {level}s have no {pixel} spacing: all distances are in {pixel}s"


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
    """Images, or volumes where the level is that."""
    scored: int
    both_empty: int
    missed: int
    false_positive: int
    """The four counts are of rows: images (or volumes) times classes."""
    by_class: Mapping[int, Summary]
    """Empty in the entries of ``by_class`` themselves."""
    level: Level = "image"
    volume_error_ml: Interval | None = None
    """Mean absolute error of the volume; None for images and without a spacing."""

    @property
    def nothing_to_find(self) -> bool:
        """Whether no mask holds what is scored, so that no score can be told (:data:`NOTHING_TO_FIND`)."""
        return self.scored + self.missed == 0

    def as_dict(self) -> dict[str, object]:
        """Return what run.json and summary.json hold: plain JSON values, the unit in the names.

        Scores are None where there is nothing to find; counts and the error in millilitres are told all the same.
        """
        fields: dict[str, object] = {"level": self.level} if self.by_class else {}
        intervals: dict[str, Interval | None] = {
            name: None if self.nothing_to_find else getattr(self, name) for name in MEASURES
        }
        if self.volume_error_ml is not None:
            intervals["volume_error_ml"] = self.volume_error_ml
        for measure, interval in intervals.items():
            name = f"{measure}_{self.unit}" if measure in ("hd95", "assd") else measure
            fields[name] = interval.mean if interval else None
            fields[f"{name}_ci95"] = list(interval.ci95) if interval and interval.ci95 else None
        fields |= {"n_cases": self.n_cases, f"n_{self.level}s": self.n_images}
        fields.update({name: getattr(self, name) for name in get_args(Status)})
        if self.by_class:
            fields["classes"] = {str(label): summary.as_dict() for label, summary in self.by_class.items()}
        return fields


def summarise(rows: Sequence[ScoreRow], *, seed: int) -> Summary:
    """Return mean scores with 95 % bootstrap intervals over cases, for all classes together and for each.

    A case's score is the mean over its images (or volumes) and classes, the headline the mean over cases: a patient of
    forty images counts as much as one of a single image, and the interval resamples what was sampled, cases. Raises
    ValueError for no rows, rows of different units or levels, or the same image and class twice.
    """
    if len({(row.unit, row.level) for row in rows}) != 1:
        raise ValueError("scores can be summarised only where there are rows and all are in one unit and of one level")
    if len({(row.image, row.label) for row in rows}) != len(rows):
        raise ValueError("an image and class appears twice among the scores")
    labels = sorted({row.label for row in rows})
    by_class = {label: _summary([row for row in rows if row.label == label], seed, {}) for label in labels}
    return _summary(rows, seed, by_class)


def headline(rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Return the rows of the level that scores are told of: volumes where there are any, else images."""
    volumes = [row for row in rows if row.level == "volume"]
    return volumes or list(rows)


def case_means(rows: Sequence[ScoreRow], measure: str) -> dict[str, float]:
    """Return each case's mean of ``measure`` (a number of a :class:`CaseScore`) over all its rows, sorted by case.

    The rows are of one level: means over slices and volumes together would mean nothing. A class that no mask of the
    whole set holds has no part in the means, where another has: to mark nothing would be Dice 1.
    """
    there = {row.label for row in rows if row.score.status in ("scored", "missed")}
    values: dict[str, list[float]] = {}
    for row in [row for row in rows if row.label in there] or rows:
        values.setdefault(row.case, []).append(getattr(row.score, measure))
    return {case: float(np.mean(values[case])) for case in sorted(values)}


def mean_dice(rows: Sequence[ScoreRow]) -> float | None:
    """Return the mean Dice over cases, as :func:`summarise` has it; None where no mask holds what is scored."""
    if not any(row.score.status in ("scored", "missed") for row in rows):
        return None
    return float(np.mean(list(case_means(rows, "dice").values())))


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
        level=rows[0].level,
        volume_error_ml=interval("volume_error_ml") if all(row.score.truth_ml is not None for row in rows) else None,
    )


def _labelled(prediction: np.ndarray, mask: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both with unlabelled pixels set to background, shapes and indices checked."""
    if prediction.shape != mask.shape or mask.ndim not in (2, 3):
        raise ValueError(
            f"prediction {prediction.shape} and mask {mask.shape} must have one shape, (H, W) or (H, W, D)"
        )
    labelled = mask != UNLABELLED
    if not labelled.any():
        raise ValueError("the mask has no labelled pixel: such an image cannot be scored")
    prediction, mask = (np.where(labelled, one, one.dtype.type(0)) for one in (prediction, mask))
    for name, one in (("prediction", prediction), ("mask", mask)):
        if one.min() < 0 or one.max() > classes:
            raise ValueError(f"the {name} holds class {one.min()} to {one.max()}, allowed are 0 to {classes}")
    return prediction, mask


def _confusion(prediction: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Return pixel counts (K + 1, K + 1), mask class by predicted class."""
    flat, size = (mask.ravel(), prediction.ravel()), classes + 1
    counts = np.zeros(size**2, np.int64)
    for start in range(0, mask.size, _AT_ONCE):  # a volume's pairs at once would take 16 bytes a voxel
        of, by = (one[start : start + _AT_ONCE].astype(np.int64) for one in flat)
        counts += np.bincount(of * size + by, minlength=size**2)
    return counts.reshape(size, size)


def _surface_points(region: np.ndarray) -> np.ndarray:
    """Return the (N, axes) positions of the surface, found inside the bounding box: most of an image is empty."""
    box = tuple(_extent(region, axis) for axis in range(region.ndim))
    inside = region[box]
    return np.argwhere(inside & ~eroded(inside)) + np.array([along.start for along in box])


def _extent(region: np.ndarray, axis: int) -> slice:
    """Return where a region that is not empty begins and ends along an axis."""
    others = tuple(other for other in range(region.ndim) if other != axis)
    filled = np.flatnonzero(region.any(axis=others))
    return slice(int(filled[0]), int(filled[-1]) + 1)
