"""Doubt: how sure the shipped model is and may be said to be, and how to tell images that it has not learned from.

Everything is chosen on images that are no test images: the temperature on validation labels, the limits on the images
of the training side. The test images then say what it is worth, once.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from tskd.artifacts import Artifact
from tskd.console import progress
from tskd.data.prepared import Part, Prepared, rows_by_image, spaced
from tskd.deploy.doubt import TABLE, DoubtRule, remark
from tskd.deploy.network_file import Answer
from tskd.deploy.onnx_export import Doubts, Familiar, confidence, pooled
from tskd.engine.batches import to_images
from tskd.engine.out_of_memory import inference_remedies, memory_explained
from tskd.losses.classes import class_probabilities, with_background
from tskd.machine.disk import write_json
from tskd.metrics.doubt import Calibration, order_by_confidence
from tskd.metrics.segmentation import agreement
from tskd.models.registry import load_model
from tskd.stages.network_answers import answer_by_size
from tskd.stages.workbench import Workbench
from tskd.types import UNLABELLED

VERSION = 1
RULE, TENSORS = "rule.json", "familiar.safetensors"
FIELDS = ("id", "case", "confidence", "unfamiliarity", "dice", "look")
LEAST_VALIDATION = 5
"""Validation images below which a temperature is not fitted."""
LEAST_FAMILIAR = 8
"""Images below which their spread says nothing."""
LEAST_VARIANCE = 1e-4
"""Of the mean over all directions: a direction in which so few images do not differ is no proof that none does."""
MOST_IMAGES = 1000
"""Or tiles, where images are cut."""
MOST_PIXELS = 2**24
"""That a temperature, one number, is fitted on: their logits lie in memory together."""
MOST_DIRECTIONS = 128
"""Of the pooled features; all others share one weight, so that a bundle does not grow with their square."""
LOOK_SHARE = 0.2
"""One answer in so many hundredths is to be looked at, on images like those of the training."""
FALSE_ALARMS = 0.05
BATCH = 16
_TEMPERATURES = (0.2, 5.0)


def build(bench: Workbench, prepared: Artifact, tested: Artifact, student: Artifact) -> Artifact:
    """Return the artifact with a trained model's rule of doubt; its metrics say what it is worth on the test images."""
    return bench.build(
        "doubt",
        lambda folder: measure(
            load_model(student.path), Prepared(prepared.path), Prepared(tested.path), folder,
            device=bench.runtime.fabric.device,
        ),
        config={},
        inputs={"data": prepared.digest, "model": student.digest, "tested": tested.digest},
        seed=0,
        version=VERSION,
    )  # fmt: skip


def read_doubts(folder: Path) -> Doubts:
    """Return what an export builds into the network."""
    rule = DoubtRule(**json.loads((folder / RULE).read_text(encoding="utf-8")))
    if not rule.familiar_images:
        return Doubts(rule.temperature)
    tensors = load_file(folder / TENSORS)
    return Doubts(rule.temperature, Familiar(**{name: tensors[name] for name in Spread.__dataclass_fields__}))


def measure(
    model: nn.Module, prepared: Prepared, tested: Prepared, folder: Path, *, device: torch.device
) -> dict[str, Any]:
    """Write the rule and the test images' doubts; return the rule and what it is worth."""
    model.to(device).eval()
    explained = memory_explained("doubt", device, inference_remedies("data.image_size"))
    with explained:
        temperature, calibrated_on = fit_temperature(model, prepared, device)
        seen = _look(model, prepared, _some(prepared, "train", "val", "unlabelled"), temperature, device)
        spread, alarms = spread_of(seen)
        rule = _rule(prepared, seen, spread, alarms, temperature, calibrated_on)
        doubts = Doubts(temperature, None if spread is None else Familiar(**asdict(spread)))
        worth = _test(model.to(device), tested, doubts, rule, folder)
    if spread is not None:
        save_file({name: torch.as_tensor(value) for name, value in asdict(spread).items()}, folder / TENSORS)
    write_json(folder / RULE, asdict(rule))
    return {**asdict(rule), **worth}


# calibration


def fit_temperature(model: nn.Module, prepared: Prepared, device: torch.device) -> tuple[float, int]:
    """Return the temperature of least cross-entropy on the validation masks, and how many there were; 1 for too few."""
    rows = _some(prepared, "val")
    images = len({prepared.records[row].image for row in rows})
    if images < LEAST_VALIDATION:
        return 1.0, 0
    logits, masks = labelled_pixels(model, prepared, rows, device)

    def loss(log_temperature: float) -> float:
        return float(nn.functional.cross_entropy(logits / math.exp(log_temperature), masks))

    low, high = map(math.log, _TEMPERATURES)
    return round(math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x), 4), images


def labelled_pixels(
    model: nn.Module, prepared: Prepared, rows: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return logits (N, K + 1) and classes (N,) of the labelled pixels, of many images of evenly spaced ones."""
    logits, classes = [], []
    step = -(-len(rows) * prepared.image_size**2 // MOST_PIXELS)
    for batch in _batches(rows):
        images = to_images(np.asarray(prepared.images[batch])).to(device)
        with torch.inference_mode():
            answer = with_background(model(images).logits).permute(0, 2, 3, 1).float().cpu()
        masks = torch.from_numpy(np.asarray(prepared.masks[batch])).flatten()
        chosen = (masks != UNLABELLED).nonzero()[::step, 0]  # taken, not viewed: a view would keep all in memory
        logits.append(answer.flatten(0, 2)[chosen])
        classes.append(masks[chosen].long())
    return torch.cat(logits), torch.cat(classes)


# the images of the training side


def _some(prepared: Prepared, *parts: Part) -> np.ndarray:
    """Return the rows of images of the parts, all tiles of each: evenly spaced, some ``MOST_IMAGES`` rows at most."""
    rows_of = rows_by_image(prepared.records, prepared.rows(*parts))
    images, count = list(rows_of), sum(map(len, rows_of.values()))
    most = max(MOST_IMAGES * len(images) // max(count, 1), min(LEAST_FAMILIAR, len(images)))
    chosen = spaced(range(len(images)), min(most, MOST_IMAGES)).tolist() if images else []
    return np.array([row for place in chosen for row in rows_of[images[place]]], dtype=np.int64)


@dataclass(frozen=True)
class Seen:
    """Images of the training side: where they come from, what the network makes of them."""

    rows: np.ndarray
    """(N,) the first of each image."""
    cases: tuple[str, ...]
    confidence: np.ndarray
    """(N,)"""
    features: np.ndarray | None
    """(T, F) of each image or, where it is cut, of each of its tiles; None: the network offers none."""
    image_of: np.ndarray
    """(T,) the place of the image that they are of."""

    def means(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of (T,) values of each image's tiles, as its answer has it, (N,)."""
        return np.bincount(self.image_of, values) / np.bincount(self.image_of)


@dataclass(frozen=True)
class Spread:
    """Where pooled features lie and how they spread: what :class:`Familiar` takes."""

    centre: Tensor
    directions: Tensor
    weights: Tensor
    rest: Tensor
    limit: Tensor


def _look(model: nn.Module, prepared: Prepared, rows: np.ndarray, temperature: float, device: torch.device) -> Seen:
    sure, found, features = [], [], []
    with progress("doubt: images of the training side", len(rows)) as advance:
        for batch in _batches(rows):
            with torch.inference_mode():
                answer = model(to_images(np.asarray(prepared.images[batch])).to(device))
            probabilities = class_probabilities(answer.logits.float() / temperature)
            sure += [float(confidence(one.argmax(dim=0), one)) for one in probabilities]
            found += [int((one.argmax(dim=0) > 0).sum()) for one in probabilities]
            if _offers_features(model):
                features.append(pooled(answer.features).float().cpu().numpy())
            advance(len(sure))
    names = [prepared.records[row].image for row in rows]
    _, first, image_of = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first)  # of the images as they come, not by name
    image_of = np.argsort(order)[image_of]
    first = first[order]
    return Seen(
        rows[first],
        tuple(prepared.records[row].case for row in rows[first]),
        of_images(np.asarray(sure), np.asarray(found), image_of),
        np.concatenate(features).astype(np.float64) if features else None,
        image_of,
    )


def of_images(confidence: np.ndarray, found: np.ndarray, image_of: np.ndarray) -> np.ndarray:
    """Return the confidence of whole images from that of their tiles and the pixels found in each: the mean over the
    mask, or over all where nothing was found."""
    empty = np.bincount(image_of, found) == 0
    weights = np.where(empty[image_of], 1, found)
    return np.bincount(image_of, weights * confidence) / np.bincount(image_of, weights)


def _offers_features(model: nn.Module) -> bool:
    return hasattr(model, "encoder")


def spread_of(seen: Seen) -> tuple[Spread | None, float | None]:
    """Return the spread of the features, its limit set by left-out cases, and how many of those lie beyond it."""
    features = seen.features
    if features is None or len(seen.rows) < LEAST_FAMILIAR:
        return None, None
    left_out = np.zeros((2, len(features)))
    for number, images in enumerate(halves(seen.cases)):
        chosen = images[seen.image_of]
        left_out[number, ~chosen] = distance(features[~chosen], *gaussian(features[chosen]))
    distances = seen.means(left_out.sum(axis=0))
    limit = float(np.quantile(distances, 1 - FALSE_ALARMS))
    centre, directions, weights, rest = (torch.as_tensor(part, dtype=torch.float32) for part in gaussian(features))
    spread = Spread(centre, directions.contiguous(), weights, rest, torch.tensor(limit))
    return spread, float((distances > limit).mean())


def halves(cases: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield both halves of the images, cut between cases; through them where one case holds nearly all."""
    counted = Counter(cases)
    half = np.zeros(len(cases), bool)
    for case in sorted(counted, key=lambda one: (-counted[one], one)):  # large ones first: the halves come out alike
        if 2 * half.sum() + counted[case] <= len(cases):
            half |= np.array([one == case for one in cases])
    if min(half.sum(), (~half).sum()) < LEAST_FAMILIAR // 2:
        half = np.arange(len(cases)) % 2 == 0
    yield from (half, ~half)


def gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return centre (F,), directions (D, F), their weights (D,) and the weight of the rest, of features (N, F).

    Weights are one over the variance, which is shrunk towards its mean over all directions as far as so few images ask
    for: O. Ledoit and M. Wolf, A well-conditioned estimator for large-dimensional covariance matrices, 2004, lemma 3.3.
    """
    centre = features.mean(axis=0)
    moved = features - centre
    count, width = moved.shape
    covariance = moved.T @ moved / count
    mean = np.trace(covariance) / width
    apart = ((covariance - mean * np.eye(width)) ** 2).sum() / width
    squares = (moved**2).sum(axis=1)
    noise = ((squares**2).sum() / count - (covariance**2).sum()) / (count * width)
    shrinkage = min(noise, apart) / apart if apart > 0 else 1.0
    variances, vectors = np.linalg.eigh(covariance)
    variances = (1 - shrinkage) * np.maximum(variances, 0) + shrinkage * mean
    variances = np.maximum(variances, LEAST_VARIANCE * mean + np.finfo(np.float32).tiny)
    kept = min(MOST_DIRECTIONS, width)
    largest = slice(width - kept, None)
    others = variances[: width - kept]
    rest = float(1 / others.mean()) if len(others) else 0.0
    return centre, vectors[:, largest].T, 1 / variances[largest], rest


def distance(
    features: np.ndarray, centre: np.ndarray, directions: np.ndarray, weights: np.ndarray, rest: float
) -> np.ndarray:
    """Return how far features (N, F) lie from a Gaussian's centre, (N,)."""
    moved = features - centre
    along = (moved @ directions.T) ** 2
    outside = np.maximum((moved**2).sum(axis=1) - along.sum(axis=1), 0)
    return np.sqrt(along @ weights + rest * outside)


def _rule(
    prepared: Prepared, seen: Seen, spread: Spread | None, alarms: float | None, temperature: float, calibrated_on: int
) -> DoubtRule:
    parts: tuple[tuple[str, Part], ...] = (("validation", "val"), ("unlabelled", "unlabelled"), ("training", "train"))
    part_of = np.array([prepared.records[row].part for row in seen.rows])
    counted = {name: seen.confidence[part_of == part] for name, part in parts}
    enough = math.ceil(2 / LOOK_SHARE)
    chosen = next((name for name, found in counted.items() if len(found) >= enough), "training")
    return DoubtRule(
        temperature=temperature,
        calibrated_on=calibrated_on,
        look_below=float(np.quantile(counted[chosen], LOOK_SHARE)),
        look_share=LOOK_SHARE,
        chosen_on=chosen,
        chosen_images=len(counted[chosen]),
        familiar_images=0 if spread is None else len(seen.rows),
        false_alarms=alarms,
    )


# what it is worth


def _test(model: nn.Module, tested: Prepared, doubts: Doubts, rule: DoubtRule, folder: Path) -> dict[str, Any]:
    """Write each test image's doubts beside its Dice; return calibration errors and how well confidence orders."""
    rows, lines = tested.rows("test"), []
    before, after = Calibration.empty(), Calibration.empty()
    with progress("doubt: test images", len(rows)) as advance:
        for done, row in enumerate(rows, start=1):
            answer = answer_by_size(model, tested.native_image(row), tested.tile, doubts)
            mask = tested.native_mask(row)
            _count(before, _tempered(answer.probabilities, doubts.temperature), mask)
            _count(after, answer.probabilities, mask)
            lines.append(_line(tested, int(row), answer, mask, rule))
            advance(done)
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(lines)
    return {"ece_uncalibrated": before.error, "ece": after.error, **_worth(lines)}


def _tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities that there were before the logits were divided by the temperature."""
    raised = probabilities.astype(np.float64) ** temperature
    return raised / raised.sum(axis=0)


def _count(calibration: Calibration, probabilities: np.ndarray, mask: np.ndarray) -> None:
    labelled = mask != UNLABELLED
    answered = probabilities.argmax(axis=0)
    calibration.add(probabilities.max(axis=0)[labelled], (answered == mask)[labelled])


def _line(tested: Prepared, row: int, answer: Answer, mask: np.ndarray, rule: DoubtRule) -> dict[str, Any]:
    record = tested.records[row]
    return {
        "id": record.id,
        "case": record.case,
        "confidence": answer.confidence,
        "unfamiliarity": answer.unfamiliarity,
        "dice": agreement(answer.classes, mask, len(tested.classes)),
        "look": remark(answer, look_below=rule.look_below),
    }


def _worth(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sure, good, cases = ([line[name] for line in lines] for name in ("confidence", "dice", "case"))
    ordering = order_by_confidence(sure, good, cases, seed=0)
    looked = [line["dice"] for line in lines if line["look"]]
    rest = [line["dice"] for line in lines if not line["look"]]
    strange = [line["unfamiliarity"] > 1 for line in lines if line["unfamiliarity"] is not None]
    return {
        "images": len(lines),
        "ordering": None if ordering is None else asdict(ordering),
        "looked_at": len(looked),
        "dice_looked_at": float(np.mean(looked)) if looked else None,
        "dice_rest": float(np.mean(rest)) if rest else None,
        "unfamiliar": float(np.mean(strange)) if strange else None,
    }


def _batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
