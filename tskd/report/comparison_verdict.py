"""The verdict on a comparison, in one sentence: where task-specific distillation stands, and against whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tskd.comparison_files import METHOD, TESTS
from tskd.report.comparison_folder import Cell, ComparisonFolder, Line, axis_title
from tskd.report.text import INTERVAL, capital, counted, interval, number, signed

OURS, TEACHER = "task_kd", "teacher"
LEVEL = 0.05
CLEAR = f"p < {LEVEL:g} after Holm, 0 outside the interval"
UNCLEAR = f"p ≥ {LEVEL:g} after Holm, or 0 within the interval"


def comparison_verdict(comparison: ComparisonFolder) -> str:
    """Return one sentence; the teacher is no rival: it is the large model that the others should replace."""
    if comparison.compared != METHOD:
        return _best_value(comparison)
    settings = [{cell.method: cell for cell in cells} for cells in comparison.cells.values()]
    rivals = {name for cells in settings for name in cells} - {OURS, TEACHER}
    contested = [cells for cells in settings if OURS in cells and rivals & cells.keys()]
    if not contested:
        return _best(comparison)
    first = sum(max(_students(cells), key=lambda cell: cell.dice).method == OURS for cells in contested)
    gains = {name: _mean_gain(contested, name) for name in rivals if any(name in cells for cells in contested)}
    nearest = min(gains, key=lambda name: gains[name])
    title, rival = comparison.method_titles[OURS], comparison.method_titles[nearest]
    tests = [line for line in _dice_tests(comparison) if {line["method"], line["baseline"]} == {OURS, nearest}]
    found = _tested([_gain(line, OURS) for line in tests])
    difference = f"{signed(gains[nearest])}{' on average' if len(contested) > 1 else ''}{found}"
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


def _best_value(comparison: ComparisonFolder) -> str:
    """Return where the best value of the compared axis stands against the baseline, for the student if it is there."""
    method = min(comparison.method_titles, key=lambda name: (name != OURS, name == TEACHER))
    tests: dict[str, list[Line]] = {}
    for line in _dice_tests(comparison):
        if len(comparison.method_titles) == 1 or line["method"].startswith(f"{method}: "):
            tests.setdefault(line["method"].removeprefix(f"{method}: "), []).append(line)
    baselines = {line["baseline"].removeprefix(f"{method}: ") for lines in tests.values() for line in lines}
    if len(baselines) != 1:
        return _best(comparison)
    baseline, axis = baselines.pop(), axis_title(comparison.compared)
    gains = {value: float(np.mean([float(line["difference"]) for line in lines])) for value, lines in tests.items()}
    best = max(gains, key=lambda value: gains[value])
    found = _tested([_gain(line, line["method"]) for line in tests[best]])
    differs = f"differs by {signed(gains[best])}{' on average' if len(tests[best]) > 1 else ''}{found}"
    head = f"{capital(comparison.method_titles[method])}, {counted(len(tests) + 1, 'value')} of {axis}"
    first, usual = comparison.called(best), comparison.called(baseline)
    if gains[best] <= 0:
        return f"{head}: none has a higher mean Dice than {usual}; the nearest, {first}, {differs}."
    return f"{head}: {first} has the highest mean Dice; against {usual} it {differs}."


def _dice_tests(comparison: ComparisonFolder) -> list[Line]:
    return [line for line in comparison.table(TESTS) if line["measure"] == "dice"]


def _placed(first: int, settings: int) -> str:
    if settings == 1:
        return "has the highest mean Dice" if first else "does not have the highest mean Dice"
    return f"has the highest mean Dice in {first} of {settings} settings"


def _students(cells: Mapping[str, Cell]) -> list[Cell]:
    return [cell for name, cell in cells.items() if name != TEACHER]


def _mean_gain(settings: list[dict[str, Cell]], rival: str) -> float:
    """Return the mean difference of Dice over the settings where both are."""
    return float(np.mean([cells[OURS].dice - cells[rival].dice for cells in settings if rival in cells]))


def _tested(gains: Sequence[float]) -> str:
    """Return how many tests of Dice, one a setting, found a difference."""
    if not gains:
        return ""
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    if len(gains) == 1:
        return f", which is {f'clear ({CLEAR})' if gains[0] else f'not clear ({UNCLEAR})'}"
    return f": clearly better ({CLEAR}) in {better} of {len(gains)} tests, worse in {worse}"


def _gain(line: Line, ours: str) -> float:
    """Return by how much ours is better, 0 where the test or the interval leaves it open.

    The test takes seeds as given and looks at ranks; the interval is over seeds too and is of the mean.
    """
    difference = float(line["difference"]) if line["method"] == ours else -float(line["difference"])
    bounds = [float(line[end] or 0) for end in ("ci95_low", "ci95_high")]
    clear = float(line["p_holm"]) < LEVEL and min(bounds) * max(bounds) > 0
    return difference if clear else 0.0
