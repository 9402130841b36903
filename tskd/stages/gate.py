"""The gate that synthetic images pass: copies of a training image are dropped, ``gate.json`` says which and why.

It looks at pixels alone, so a transfer set does not depend on a teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tskd.console import say, warn
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import GATE
from tskd.errors import UserError
from tskd.machine.disk import write_json
from tskd.metrics.copies import CopyReport, distance_to_nearest, find_copies
from tskd.metrics.quality import FEW_IMAGES, LEAST_IMAGES, summarise
from tskd.models.diffusion import MOST_COMPARED, collapse_check
from tskd.overlays import contact_sheet
from tskd.seeding import numpy_generator

COPIES_SHEET, SHEET = "copies.png", "sheet.png"
SHOWN = 24
"""Images of each kind on a sheet."""
PAIRS_A_ROW = 4


def drop_copies(
    samples: np.ndarray, prepared: Prepared, folder: Path, *, quantile: float, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the numbers of the samples that are not copies, and the headline; write ``gate.json`` and the sheets.

    ``samples`` is (N, S, S, 3) uint8. Raises UserError where there are too few images, or too few cases to tell a copy
    by.
    """
    rows = prepared.rows("train", "unlabelled")
    _require_enough(len(samples), len(rows))
    training, cases = prepared.images[rows], [prepared.records[row].case for row in rows]
    report = _find_copies(samples, training, cases, quantile)
    names = prepared.names(rows)
    collapse = collapse_check(_spread(samples), _spread(training))
    (warn if collapse.noise or collapse.repeated else say)(f"transfer: {collapse.message}")
    found = {
        "collapse": asdict(collapse),
        "copies": describe_copies(report, names, quantile),
        "copies_of_test_images": copies_of_test(samples, prepared, report.threshold),
    }
    write_json(folder / GATE, found)
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


def copies_of_test(samples: np.ndarray, prepared: Prepared, threshold: float) -> dict[str, Any]:
    """Return how many samples lie as near to a test image as a copy would: reported, nothing is dropped."""
    rows = prepared.rows("test")
    distance = distance_to_nearest(samples, prepared.images[rows])
    return {
        "found": int((distance < threshold).sum()),
        "n": len(samples),
        "test_images": len(rows),
        "threshold": float(threshold),
        "effect": "reported only: the model never saw a test image, so these are chance or duplicates in the data",
    }


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
