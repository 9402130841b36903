"""The verdict on a comparison, a sentence a data set: where task-specific distillation stands, and against whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tskd.console import counted
from tskd.report.comparison.files import DATASET, METHOD, TESTS
from tskd.report.comparison.folder import Cell, ComparisonFolder, Line, axis_title
from tskd.report.text import INTERVAL, capital, interval, number, signed

OURS, TEACHER = "task_kd", "teacher"
CLEAR = f"0 outside the {INTERVAL}"
UNCLEAR = f"0 within the {INTERVAL}, or too few cases for one"


def comparison_verdict(comparison: ComparisonFolder) -> str:
    """Return one sentence a data set; the teacher, the large model that is to be replaced, is not a baseline."""
    datasets: dict[str, list[dict[str, Cell]]] = {}
    for setting, cells in comparison.cells.items():
        datasets.setdefault(setting[0], []).append({cell.method: cell for cell in cells})
    found = {dataset: _on(comparison, dataset, settings) for dataset, settings in datasets.items()}
    if not any(found.values()):
        return _best(comparison)
    said = {dataset: sentence or "the methods are not compared yet." for dataset, sentence in found.items()}
    return " ".join(f"On {dataset}: {one}" for dataset, one in said.items()) if len(said) > 1 else said.popitem()[1]


def _on(comparison: ComparisonFolder, dataset: str, settings: list[dict[str, Cell]]) -> str | None:
    """Return the sentence on one data set; None: nothing stands against something there."""
    if comparison.compared != METHOD:
        return _best_value(comparison, dataset)
    tests = _dice_tests(comparison, dataset)
    contested = [gains for cells in settings if OURS in cells and (gains := _gains(comparison, cells, tests))]
    return _standing(comparison, tests, contested) if contested else None


def _standing(comparison: ComparisonFolder, tests: Sequence[Line], contested: list[dict[str, float]]) -> str:
    """Return where task-specific distillation stands on a data set, by its gains on each baseline in each setting."""
    first = sum(min(gains.values()) >= 0 for gains in contested)
    baselines = sorted({name for gains in contested for name in gains})
    gained = {name: float(np.mean([gains[name] for gains in contested if name in gains])) for name in baselines}
    nearest = min(gained, key=lambda name: gained[name])
    title, baseline = comparison.method_titles[OURS], comparison.method_titles[nearest]
    of_pair = [line for line in tests if {line["method"], line["baseline"]} == {OURS, nearest}]
    difference = f"{signed(gained[nearest])}{' on average' if len(contested) > 1 else ''}{_tested(of_pair, OURS)}"
    placed = f"{capital(title)} {_placed(first, len(contested))}"
    return f"{placed}; against its strongest baseline, {baseline}, it differs by {difference}."


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


def _best_value(comparison: ComparisonFolder, dataset: str) -> str | None:
    """Return where the best value of the compared axis stands against the baseline, for the student if it is there."""
    method = min(comparison.method_titles, key=lambda name: (name != OURS, name == TEACHER))
    tests: dict[str, list[Line]] = {}
    for line in _dice_tests(comparison, dataset):
        if len(comparison.method_titles) == 1 or line["method"].startswith(f"{method}: "):
            tests.setdefault(line["method"].removeprefix(f"{method}: "), []).append(line)
    baselines = {line["baseline"].removeprefix(f"{method}: ") for lines in tests.values() for line in lines}
    if len(baselines) != 1:
        return None
    baseline, axis = baselines.pop(), axis_title(comparison.compared)
    gains = {value: float(np.mean([line["difference"] for line in lines])) for value, lines in tests.items()}
    best = max(gains, key=lambda value: gains[value])
    found = _tested(tests[best], tests[best][0]["method"])
    differs = f"differs by {signed(gains[best])}{' on average' if len(tests[best]) > 1 else ''}{found}"
    head = f"{capital(comparison.method_titles[method])}, {counted(len(tests) + 1, 'value')} of {axis}"
    first, usual = comparison.called(best), comparison.called(baseline)
    if gains[best] <= 0:
        return f"{head}: none has a higher mean Dice than {usual}; the nearest, {first}, {differs}."
    return f"{head}: {first} has the highest mean Dice; against {usual} it {differs}."


def _dice_tests(comparison: ComparisonFolder, dataset: str) -> list[Line]:
    return [line for line in comparison.table(TESTS) if line["measure"] == "dice" and line[DATASET] == dataset]


def _placed(first: int, settings: int) -> str:
    if settings == 1:
        return "has the highest mean Dice" if first else "does not have the highest mean Dice"
    return f"has the highest mean Dice in {first} of {settings} settings"


def _gains(comparison: ComparisonFolder, cells: Mapping[str, Cell], tests: Sequence[Line]) -> dict[str, float]:
    """Return by how much ours is ahead of each baseline in a setting; those without a replicate in common are left out.

    What is said of a pair is of the replicates that both have, as its test is: where a run failed, the mean over the
    others may lie on the other side.
    """
    place = [DATASET, *comparison.axes]
    ours, tested = cells[OURS], {}
    for line in tests:
        if OURS in (pair := (line["method"], line["baseline"])) and all(line[at] == ours.first[at] for at in place):
            tested[next(name for name in pair if name != OURS)] = _difference(line, OURS)
    baselines = cells.keys() - {OURS, TEACHER}
    found = {name: tested.get(name, _mean_gain(ours, cells[name], comparison.replicates)) for name in baselines}
    return {name: gain for name, gain in found.items() if gain is not None}


def _mean_gain(ours: Cell, baseline: Cell, replicates: Sequence[str]) -> float | None:
    """Return the mean difference of Dice over the replicates that both have; None where there are none."""
    of_both = ours.runs.merge(baseline.runs, on=[DATASET, *replicates], suffixes=("", " of the baseline"))
    return None if of_both.empty else float((of_both["dice"] - of_both["dice of the baseline"]).mean())


def _tested(tests: Sequence[Line], ours: str) -> str:
    """Return what the tests of Dice, one a setting, found, and whether they say anything of other trainings."""
    if not tests:
        return ", a pair that was not tested"
    gains = [_gain(line, ours) for line in tests]
    alone = ", for one training of each" if all(line["n_seeds"] == 1 for line in tests) else ""
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    if len(gains) == 1:
        return f", which is {f'clear ({CLEAR})' if gains[0] else f'not clear ({UNCLEAR})'}{alone}"
    return f": clearly better ({CLEAR}) in {better} of {len(gains)} tests, worse in {worse}{alone}"


def _gain(line: Line, ours: str) -> float:
    """Return by how much ours is better, 0 where the interval leaves it open.

    The interval is over seeds and cases. p has no say: it takes the trainings as given, and finds their luck.
    """
    bounds = [line[end] or 0.0 for end in ("ci95_low", "ci95_high")]
    return _difference(line, ours) if min(bounds) * max(bounds) > 0 else 0.0


def _difference(line: Line, ours: str) -> float:
    """Return the difference that a test found, as ours minus the other."""
    difference: float = line["difference"]
    return difference if line["method"] == ours else -difference
