"""The verdict on a comparison, in one sentence: where task-specific distillation stands, and against whom."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tskd.comparison_files import TESTS
from tskd.report.comparison_folder import Cell, ComparisonFolder, Line
from tskd.report.text import INTERVAL, capital, interval, number, signed

OURS, TEACHER = "task_kd", "teacher"
LEVEL = 0.05


def comparison_verdict(comparison: ComparisonFolder) -> str:
    """Return one sentence; the teacher is no rival: it is the large model that the others should replace."""
    settings = [{cell.method: cell for cell in cells} for cells in comparison.cells.values()]
    rivals = {name for cells in settings for name in cells} - {OURS, TEACHER}
    contested = [cells for cells in settings if OURS in cells and rivals & cells.keys()]
    if not contested:
        return _best(comparison)
    first = sum(max(_students(cells), key=lambda cell: cell.dice).method == OURS for cells in contested)
    gains = {name: _mean_gain(contested, name) for name in rivals if any(name in cells for cells in contested)}
    nearest = min(gains, key=lambda name: gains[name])
    title, rival = comparison.method_titles[OURS], comparison.method_titles[nearest]
    difference = f"{signed(gains[nearest])}{' on average' if len(contested) > 1 else ''}{_tested(comparison, nearest)}"
    placed = f"{capital(title)} {_placed(first, len(contested))}"
    return f"{placed}; against its strongest rival, {rival}, it differs by {difference}."


def _best(comparison: ComparisonFolder) -> str:
    if not comparison.cells:
        return "Every run failed: there is nothing to compare."
    best = max(
        ((setting, cell) for setting, cells in comparison.cells.items() for cell in cells),
        key=lambda found: found[1].dice,
    )
    setting, cell = best
    bounds = f" ({INTERVAL} {interval(cell.interval)})" if cell.interval else ""
    where = comparison.title(setting)
    return f"The highest mean Dice is {number(cell.dice)}{bounds}, of {cell.look.title} on {where}."


def _placed(first: int, settings: int) -> str:
    if settings == 1:
        return "has the highest mean Dice" if first else "does not have the highest mean Dice"
    return f"has the highest mean Dice in {first} of {settings} settings"


def _students(cells: Mapping[str, Cell]) -> list[Cell]:
    return [cell for name, cell in cells.items() if name != TEACHER]


def _mean_gain(settings: list[dict[str, Cell]], rival: str) -> float:
    """Return the mean difference of Dice over the settings where both are."""
    return float(np.mean([cells[OURS].dice - cells[rival].dice for cells in settings if rival in cells]))


def _tested(comparison: ComparisonFolder, rival: str) -> str:
    """Return how many settings' tests of Dice found a difference."""
    gains = [
        _gain(line)
        for line in comparison.table(TESTS)
        if line["measure"] == "dice" and {line["method"], line["baseline"]} == {OURS, rival}
    ]
    if not gains:
        return ""
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    if len(gains) == 1:
        return f", which is {'' if gains[0] else 'not '}significant (p {'<' if gains[0] else '≥'} {LEVEL:g} after Holm)"
    return f": significantly better (p < {LEVEL:g} after Holm) in {better} of {len(gains)} tests, worse in {worse}"


def _gain(line: Line) -> float:
    """Return by how much ours is better, 0 where the test found no difference."""
    difference = float(line["difference"]) if line["method"] == OURS else -float(line["difference"])
    return difference if float(line["p_holm"]) < LEVEL else 0.0
