"""Ensemble: several adapted teachers as one model, whose averaged answers a student learns at no further cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tskd.artifacts import Artifact
from tskd.models.registry import save_ensemble
from tskd.stages.workbench import Workbench

VERSION = 1


def build(
    bench: Workbench, members: Sequence[Artifact], *, flip: tuple[bool, bool], spent: Callable[[], float]
) -> Artifact:
    """Return the teachers as one; ``flip``: whether images are also looked at mirrored (horizontally, vertically).

    ``spent`` says what all of them have cost, in thousand millions of operations.
    """
    return bench.build(
        "ensemble",
        lambda folder: join(members, folder, flip=flip, spent=spent()),
        config={"flip": list(flip)},
        inputs={f"member_{number}": member.digest for number, member in enumerate(members)},
        version=VERSION,
    )


def join(members: Sequence[Artifact], folder: Path, *, flip: tuple[bool, bool], spent: float) -> dict[str, Any]:
    """Put the members' networks under one description; return what they cost and how they score by themselves."""
    save_ensemble(folder, [member.path for member in members], flip=flip)
    known = [member.metrics for member in members]
    scores = [one["held_out_dice"] for one in known if "held_out_dice" in one]
    held_out = {"held_out_dice": round(float(np.mean(scores)), 5)} if scores else {}
    title = f"{len(members)} x {known[0]['teacher']}"
    return {"teacher": title, "members": len(members), **held_out, "teacher_gflops": round(spent, 3)}
