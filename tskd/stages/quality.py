"""Quality: what the synthetic images of a transfer set are worth, in ``quality.json`` with every number, unit and n.

Nothing that trains asks for it, so no arm of a comparison waits for a teacher to be judged by.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tskd.artifacts import Artifact
from tskd.console import say
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import GATE, QUALITY, read_samples
from tskd.engine.batches import to_images
from tskd.machine.disk import write_json
from tskd.metrics.quality import LEAST_IMAGES, diversity, kid, nearest, psnr_to_nearest, summarise
from tskd.models.description import NetworkDescription
from tskd.models.registry import build_model, load_model
from tskd.models.weights import EFFICIENTNET_LITE0, efficientnet_lite0_path
from tskd.recipe.schema import OFFLINE
from tskd.seeding import numpy_generator
from tskd.stages.workbench import Workbench

VERSION = 1
MOST_IMAGES = 1000
"""Images a side whose features and pixels are compared: enough for every number here, and a SAM teacher is slow."""
FEATURE_BATCH = 16
CHUNK = 64
PSNR_NOTE = (
    "Synthetic images have no paired original: PSNR and MSE are to the nearest training image, as the paper reports "
    "them. High PSNR (low MSE) means copying, not quality."
)
SCOPE = "All numbers describe the sampled images before copies were dropped."

Features = Callable[[np.ndarray], np.ndarray]
"""(N, S, S, 3) uint8 -> (N, D) float32."""
Spaces = Mapping[str, Features | None]
"""Features by name, ``teacher`` and ``imagenet``; None: not installed."""


def build(
    bench: Workbench, transfer: Artifact, samples: Sequence[Artifact], data: Artifact, teacher: Artifact | None
) -> Artifact:
    """Return the judgement on the sampled images that a transfer set was chosen from.

    They are compared with the data in pixels, in ImageNet features where those are installed, and in an adapted
    teacher's where one is given. All are shown at the size of the samples, to a teacher of another size as well: sharp
    images beside enlarged ones would be told apart by their sharpness.
    """

    def make(folder: Path) -> Mapping[str, Any]:
        prepared, device = Prepared(data.path), bench.runtime.fabric.device
        spaces: dict[str, Features | None] = {"imagenet": imagenet_features(prepared.image_size, device)}
        if teacher is not None:
            spaces = {"teacher": embedding_features(load_model(teacher.path), device), **spaces}
        return write_quality(
            read_samples([block.path for block in samples]), spaces, transfer.path, prepared, folder, seed=bench.seed
        )

    inputs = {"data": data.digest, "transfer": transfer.digest}
    inputs |= {f"samples {number}": block.digest for number, block in enumerate(samples)}
    inputs |= {} if teacher is None else {"teacher": teacher.digest}
    config = {"imagenet": efficientnet_lite0_path() is not None}
    return bench.build("quality", make, config=config, inputs=inputs, version=VERSION)


def likeness(space: str, judged: Mapping[str, Any]) -> str:
    """Return how far synthetic and real test images lie from training images by the features of ``space``."""
    found, real = (judged.get(key, {}).get("mean") for key in ("kid", "kid_of_test_images"))
    if found is None or real is None:
        return f"too few images to compare by the features of {space}"
    kid = f"KID {found:.4g} from training images, real test images at {real:.4g}"
    return f"by the features of {space} synthetic images lie at {kid}"


def write_quality(
    samples: np.ndarray, spaces: Spaces, transfer: Path, prepared: Prepared, folder: Path, *, seed: int
) -> dict[str, Any]:
    """Write ``quality.json``: what the gate found in a transfer set's folder, likeness to the data, diversity.

    ``samples`` is (N, S, S, 3) uint8.
    """
    training = len(prepared.rows("train", "unlabelled"))
    quality = {
        "scope": SCOPE,
        "images": {"sampled": len(samples), "training": training, "compared_at_most": MOST_IMAGES},
        **json.loads((transfer / GATE).read_text(encoding="utf-8")),
        **judge_spaces(samples, spaces, prepared, seed=seed),
    }
    write_json(folder / QUALITY, quality)
    for name in spaces:
        if "skipped" not in quality[name]:
            say(f"quality: {likeness(name, quality[name])}")
    return {"judged_in": [name for name in ("pixels", *spaces) if "skipped" not in quality[name]]}


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
    arguments = {"backbone": EFFICIENTNET_LITE0, "decoder": "pyramid"}
    description = NetworkDescription("timm", arguments, ("unused",), image_size, OFFLINE)
    return embedding_features(build_model(description), device)


def judge_spaces(samples: np.ndarray, spaces: Spaces, prepared: Prepared, *, seed: int) -> dict[str, Any]:
    """Return likeness to the training images and diversity, in pixels and in each kind of features."""
    rows = _some(prepared.rows("train", "unlabelled"), seed, "training")
    images = {
        "synthetic": samples[_some(np.arange(len(samples)), seed, "synthetic")],
        "training": prepared.images[rows],
        "test": prepared.images[_some(prepared.rows("test"), seed, "test")],
    }
    cases = [prepared.records[row].case for row in rows]
    judged = {"pixels": judge_pixels(images["synthetic"], images["training"], cases, seed=seed)}
    for name, extract in spaces.items():
        if extract is None:
            judged[name] = {"skipped": "its weights are not installed (the part `offline` of tskd)"}
            continue
        say(f"quality: {name} features of {sum(map(len, images.values()))} images")
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
