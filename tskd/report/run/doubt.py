"""Whether the shipped model knows when it is wrong: its confidence against its Dice on the test images."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

import numpy as np

from tskd.deploy.doubt import TABLE
from tskd.metrics.doubt import risk_by_coverage
from tskd.metrics.intervals import interval_text
from tskd.report.blocks import Block, Charts, Section, Table, section
from tskd.report.charts import Axis, Series, line_chart
from tskd.report.run.folder import RunFolder
from tskd.report.styles import Look
from tskd.report.text import number

_LEAD = (
    "Confidence is the mean probability of the answered class over the mask. The limit below which an answer is to be "
    "looked at was chosen on {chosen_on} images, before any test image was seen. Dice here is by image."
)


def doubt_section(run: RunFolder) -> Section | None:
    """How well confidence finds low Dice."""
    doubt: Mapping[str, Any] = run.summary.doubt
    path = run.path_of(doubt.get("artifact", ""))
    if path is None:
        return None
    with (path / TABLE).open(newline="", encoding="utf-8") as file:
        cases = list(csv.DictReader(file))
    blocks: list[Block | None] = [_facts(doubt), _curve(cases)]
    return section("doubt", "When to doubt it", _LEAD.format(**doubt), blocks)


def _facts(doubt: Mapping[str, Any]) -> Table:
    order = doubt["ordering"]
    rows = [
        ("confidence below which to look", number(doubt["look_below"]), f"from {doubt['chosen_images']} images"),
        (
            "test images to look at",
            f"{doubt['looked_at']} of {doubt['images']}",
            _dice_of_both(doubt),
        ),
        ("calibration error", number(doubt["ece"]), _calibration(doubt)),
    ]
    if order is not None:
        text = f"{order['rank_correlation']:.2f}"
        rows.insert(0, ("rank correlation of confidence and Dice", text, _between(order["ci95"])))
    if doubt["familiar_images"]:
        unlike = f"{doubt['unfamiliar']:.0%}"
        measured = f"measured from {doubt['familiar_images']}; {doubt['false_alarms']:.0%} of left-out ones"
        rows.append(("test images unlike the training images", unlike, measured))
    return Table(("", "", ""), tuple(rows))


def _dice_of_both(doubt: Mapping[str, Any]) -> str:
    if not doubt["looked_at"]:
        return "none of them is doubted"
    return f"Dice {number(doubt['dice_looked_at'])}, the others' {number(doubt['dice_rest'])}"


def _between(bounds: tuple[float, float] | None) -> str:
    return f"95 % interval over cases {interval_text(bounds, '{:.2f}'.format)}"


def _calibration(doubt: Mapping[str, Any]) -> str:
    if not doubt["calibrated_on"]:
        return "not calibrated: too few validation images"
    before = number(doubt["ece_uncalibrated"])
    return f"{before} before; temperature {doubt['temperature']:.2f} from {doubt['calibrated_on']} validation images"


def _curve(cases: list[dict[str, str]]) -> Block | None:
    """Return the mean Dice of the surest images over how many are answered."""
    if len(cases) < 3:
        return None
    sure, dice = (np.array([float(case[name]) for case in cases]) for name in ("confidence", "dice"))
    share = (np.arange(1, len(cases) + 1) / len(cases)).tolist()
    lines = [
        Series(Look("by confidence", 0), share, (1 - risk_by_coverage(sure, dice)).tolist()),
        Series(Look("by Dice itself", 2, dashed=True), share, (1 - risk_by_coverage(dice, dice)).tolist()),
        Series(Look("in any order", 7, dashed=True), [share[0], 1.0], [dice.mean()] * 2),
    ]
    chart = line_chart(
        lines, Axis("share of images answered, surest first"), Axis("mean Dice of those answered"),
        title="Dice by coverage", points=False, named=True,
    )  # fmt: skip
    return Charts((chart,))
