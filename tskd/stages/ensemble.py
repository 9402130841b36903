"""Ensemble: several adapted teachers as one model, whose averaged answers a student learns at no further cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tskd.artifacts import Artifact
from tskd.models.registry import save_ensemble
from tskd.stages.compute import compute_of
from tskd.stages.workbench import Workbench

VERSION = 1


def build(
    bench: Workbench, members: Sequence[Artifact], *, flip: tuple[bool, bool], spent_on: Sequence[Artifact]
) -> Artifact:
    """Return networks as one; ``flip``: whether images are also looked at mirrored (horizontally, vertically).

    ``spent_on``: those whose trainings, with all that led to them, are what the whole has cost.
    """

    def make(folder: Path) -> dict[str, Any]:
        spent = sum(sum(compute_of(one, bench.used.values())) for one in spent_on)
        return join(members, folder, flip=flip, spent=spent)

    return bench.build(
        "ensemble",
        make,
        config={"flip": list(flip)},
        inputs={f"member_{number}": member.digest for number, member in enumerate(members)},
        version=VERSION,
    )


def join(members: Sequence[Artifact], folder: Path, *, flip: tuple[bool, bool], spent: float) -> dict[str, Any]:
    """Put the members' networks under one description; return what they cost (``spent``, in thousand millions of
    operations) and how they score by themselves."""
    save_ensemble(folder, [member.path for member in members], flip=flip)
    known = [member.metrics for member in members]
    scores = [one["held_out_dice"] for one in known if "held_out_dice" in one]
    held_out = {"held_out_dice": round(float(np.mean(scores)), 5)} if scores else {}
    title = " and ".join(
        f"{count} x {name}" for name, count in Counter(one.get("teacher", "student") for one in known).items()
    )
    return {"teacher": title, "members": len(members), **held_out, "teacher_gflops": round(spent, 3)}
