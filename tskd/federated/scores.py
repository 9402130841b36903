"""The scores of all sites as one evaluation: no name of a case, image or folder of a site is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tskd.artifacts import Artifact
from tskd.machine.disk import write_json
from tskd.metrics.segmentation import ScoreRow
from tskd.stages.evaluation_files import CASES, SUMMARY, read_scores, write_cases
from tskd.stages.pooled import EVERYWHERE
from tskd.stages.scoring import summarise_levels
from tskd.stages.workbench import Workbench

VERSION = 1


def build(
    bench: Workbench, sites: Mapping[str, Artifact], tested: Artifact, model: Artifact, *, title: str
) -> Artifact:
    """Return the scores of a model at all sites; ``sites``: its evaluation at each, by name and in its order."""
    return bench.build(
        "federated_evaluation",
        lambda folder: join({name: one.path for name, one in sites.items()}, folder, title=title),
        config={},
        inputs={
            **{f"site {name}": one.digest for name, one in sites.items()},
            "data": tested.digest, "model": model.digest, "title": title,
        },
        seed=0,
        version=VERSION,
    )  # fmt: skip


def join(sites: Mapping[str, Path], folder: Path, *, title: str) -> dict[str, Any]:
    """Write the scores of all sites' cases, numbered; return the means over all cases, and of each site.

    ``worst`` is the site of the lowest Dice; ``dice_of_sites`` the mean over sites, each counting once.
    """
    rows = {name: renamed(read_scores(path), name) for name, path in sites.items()}
    every = [row for of_site in rows.values() for row in of_site]
    write_cases(every, folder / CASES)
    found = {name: _of_site(of_site) for name, of_site in rows.items()}
    summary = {"model": title, "dataset": EVERYWHERE, **summarise_levels(every), **over_sites(found)}
    write_json(folder / SUMMARY, summary)
    return summary


def over_sites(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is said of sites side by side, from the summary of each."""
    scored = {name: one["dice"] for name, one in found.items() if one["dice"] is not None}
    return {
        "sites": found,
        "worst": min(scored, key=lambda name: scored[name]) if scored else None,
        "dice_of_sites": round(float(np.mean(list(scored.values()))), 6) if scored else None,
    }


def renamed(rows: Sequence[ScoreRow], site: str) -> list[ScoreRow]:
    """Return scores under the site's name and the number of case and image in the order in which they were scored."""
    cases = {case: number for number, case in enumerate(dict.fromkeys(row.case for row in rows))}
    images = {image: number for number, image in enumerate(dict.fromkeys(row.image for row in rows))}
    return [replace(row, case=f"{site}/{cases[row.case]:04d}", image=f"{site}/{images[row.image]:05d}") for row in rows]


def _of_site(rows: Sequence[ScoreRow]) -> dict[str, Any]:
    found = summarise_levels(rows)
    return {name: found[name] for name in ("dice", "dice_ci95", "iou", "n_cases", "level")}
