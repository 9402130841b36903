"""What synthetic images are worth: the gate against copies, and ``quality.json`` with every number, unit and n."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tskd.artifacts import write_json
from tskd.console import say, warn
from tskd.data.prepared import Prepared
from tskd.engine.batches import to_images
from tskd.errors import UserError
from tskd.metrics.copies import CopyReport, find_copies
from tskd.metrics.quality import diversity, kid, nearest, psnr_to_nearest
from tskd.models.diffusion import collapse_check
from tskd.models.registry import build_model
from tskd.models.weights import EFFICIENTNET_LITE0, efficientnet_lite0_path
from tskd.overlays import contact_sheet
from tskd.seeding import numpy_generator

QUALITY, COPIES_SHEET, SHEET = "quality.json", "copies.png", "sheet.png"
LEAST_IMAGES = 4
"""With fewer a side no distance between two sets can be estimated."""
MOST_IMAGES = 1000
"""Images a side whose features and pixels are compared: enough for every number here, and a SAM teacher is slow."""
FEATURE_BATCH = 16
SHOWN = 24
"""Images of each kind on a sheet."""
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
        "weights": "offline",
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
    collapse = collapse_check(samples, training)
    (warn if collapse.noise or collapse.repeated else say)(f"transfer: {collapse.message}")
    quality = {
        "scope": SCOPE,
        "images": {"sampled": len(samples), "training": len(training), "compared_at_most": MOST_IMAGES},
        "collapse": asdict(collapse),
        "copies": describe_copies(report, names, quantile),
        "copies_of_test_images": test_copies(samples, prepared, report.threshold, quantile),
        **judge_spaces(synthetic, training, cases, seed=seed),
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


def test_copies(samples: np.ndarray, prepared: Prepared, threshold: float, quantile: float) -> dict[str, Any]:
    """Return how many samples lie as near to a test image as a copy would: reported, nothing is dropped."""
    rows = prepared.rows("test")
    cases = [prepared.records[row].case for row in rows]
    if len(set(cases)) < 2:
        return {"skipped": "the test images are of fewer than two cases"}
    report = find_copies(samples, prepared.images[rows], cases, quantile=quantile)
    return {
        "found": int((report.distance < threshold).sum()),
        "n": len(samples),
        "test_images": len(rows),
        "threshold": float(threshold),
        "effect": "reported only: the model never saw a test image, so these are chance or duplicates in the data",
    }
