"""What sites tell the server of their scores in the end: means and totals over their test images, no case of any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tskd.artifacts import Artifact
from tskd.errors import UserError
from tskd.federated.messages import COUNTS, SHARES, VOLUMES
from tskd.federated.scores import over_sites
from tskd.federated.site import Numbers
from tskd.machine.disk import write_json
from tskd.stages.evaluation_files import CASES, SUMMARY, write_cases
from tskd.stages.pooled import EVERYWHERE
from tskd.stages.workbench import Workbench

VERSION = 1
Summaries = Mapping[str, Mapping[str, Any]]
"""Site -> a summary of its scores."""


def numbers_told(scores: Summaries) -> dict[str, float]:
    """Return what a site tells of the scores of its models; what there was nothing to score of is left out."""
    told: dict[str, float] = {}
    for model, one in scores.items():
        low, high = one["dice_ci95"] or (None, None)
        values = {"dice": one["dice"], "low": low, "high": high, "iou": one["iou"], VOLUMES: one["level"] == "volume"}
        values |= {name: one[name] for name in COUNTS}
        told |= {f"{model}-{name}": float(value) for name, value in values.items() if value is not None}
    return told


def summary_told(numbers: Numbers, model: str) -> dict[str, Any] | None:
    """Return what a site has told of a model's scores; None: nothing. UserError where these can be no scores."""
    told = {name.partition("-")[2]: value for name, value in numbers.items() if name.startswith(f"{model}-")}
    if not told:
        return None
    shares = {name: told.get(name) for name in SHARES}
    counts = {name: told.get(name, -1) for name in (*COUNTS, VOLUMES)}
    if not all(value is None or 0 <= value <= 1 for value in shares.values()):
        raise UserError(f"a Dice or IoU of the {model} that is none")
    if not all(value >= 0 and float(value).is_integer() for value in counts.values()):
        raise UserError(f"counts of the {model}'s test cases that are none")
    bounds = shares["low"], shares["high"]
    return {
        "dice": shares["dice"], "dice_ci95": None if None in bounds else list(bounds), "iou": shares["iou"],
        **{name: int(counts[name]) for name in COUNTS}, "level": "volume" if counts[VOLUMES] else "image",
    }  # fmt: skip


def build(bench: Workbench, sites: Summaries, model: Artifact, *, title: str) -> Artifact:
    """Return the scores that sites have told of a model as an evaluation without cases."""
    return bench.build(
        "federated_evaluation",
        lambda folder: _write(sites, folder, title=title),
        config={"told": {name: dict(one) for name, one in sites.items()}},
        inputs={"model": model.digest, "title": title},
        seed=0,
        version=VERSION,
    )


def _write(sites: Summaries, folder: Path, *, title: str) -> dict[str, Any]:
    write_cases([], folder / CASES)
    level = max(one["level"] for one in sites.values())
    summary = {
        "model": title, "dataset": EVERYWHERE, "level": level,
        "dice": _mean(sites, "dice"), "dice_ci95": None, "iou": _mean(sites, "iou"), "hd95_px": None, "assd_px": None,
        **{name: sum(one[name] for one in sites.values()) for name in COUNTS},
        **over_sites({name: {key: one[key] for key in _OF_A_SITE} for name, one in sites.items()}),
    }  # fmt: skip
    write_json(folder / SUMMARY, summary)
    return summary


_OF_A_SITE = ("dice", "dice_ci95", "iou", "n_cases", "level")


def _mean(sites: Summaries, measure: str) -> float | None:
    """Return the mean over all cases of all sites, from the sites' means."""
    scored = [one for one in sites.values() if one[measure] is not None]
    weights = [one["n_cases"] for one in scored]
    return round(float(np.average([one[measure] for one in scored], weights=weights)), 6) if sum(weights) else None
