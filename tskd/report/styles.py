"""How each model is drawn: the same marks in every chart. What it is called, runs and tables say themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Look(NamedTuple):
    """Name and marks of a model in a chart."""

    title: str
    colour: int
    """Number of a colour of the page, ``--series-0`` to ``--series-7``."""
    marker: str = "o"
    dashed: bool = False


MARKS: dict[str, tuple[int, str, bool]] = {
    "teacher": (7, "D", False),
    "student_before_finetune": (3, "s", False),
    "student": (0, "o", False),
    "task_kd": (0, "o", False),
    "task_kd_probe": (3, "s", True),
    "agnostic_kd": (4, "^", False),
    "mae": (5, "v", False),
    "moco_v3": (6, "s", False),
    "imagenet": (4, "D", True),
    "scratch": (1, "^", False),
    "scratch_total": (1, "D", True),
    "pseudo_label": (1, "v", True),
    "consistency": (5, "D", True),
    "copy_paste": (6, "D", True),
    "control": (2, "s", False),
    "control_pseudo": (2, "D", True),
    "unet": (2, "P", False),
    "unet_imagenet": (2, "X", True),
}
"""In the order of tables. Colour is never the only difference between two of them."""


def look_of(name: str, title: str, *, place: int = 7) -> Look:
    """Return the look of a model by its name in run.json or in a recipe; of an unknown one by its place among all."""
    return Look(title, *MARKS.get(name, (place % 8, "v", True)))


def ordered(names: Iterable[str]) -> list[str]:
    """Return the names in the order of tables, unknown ones last."""
    given = list(names)
    return [name for name in MARKS if name in given] + [name for name in given if name not in MARKS]
