"""The verdict on a run, in one sentence: how good the student is, and whether it beats what it was trained beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tskd.console import counted
from tskd.metrics.comparison import PairTest
from tskd.metrics.intervals import interval_text
from tskd.metrics.segmentation import NOTHING_TO_FIND
from tskd.report.run.folder import BEFORE_FINETUNE, STUDENT, RunFolder
from tskd.report.text import INTERVAL, dice_of, interval, number, signed

NO_BASELINES = frozenset({STUDENT, BEFORE_FINETUNE, "teacher", "baseline_teacher", "rival_teacher"})
"""Models that the student is not measured against: itself, and large models."""
CAVEAT = (
    "One training of each model. The intervals say what other test cases could have shown, not what another seed or "
    "other labels would: that takes a comparison over seeds."
)


def verdict(run: RunFolder, tests: Sequence[PairTest]) -> str:
    """Return one sentence on the student against the control and the best of the other baselines."""
    own = run.metrics[STUDENT]
    labels, cases = counted(run.summary.labels, "labelled image"), counted(own["n_cases"], "test case")
    if own["dice"] is None:
        return (
            f"There is {NOTHING_TO_FIND} ({cases}): how good the {run.title(STUDENT)} is, with {labels}, is not known."
        )
    bounds = f" ({INTERVAL} {interval(own['dice_ci95'])})" if own["dice_ci95"] else ""
    head = (
        f"With {labels} the {run.title(STUDENT)} scores {dice_of(run.level)} {number(own['dice'])}{bounds} on {cases}"
    )
    baselines = {test.method: test for test in tests if test.method not in NO_BASELINES}
    clauses = [_clause(baselines[name], run.title(name)) for name in _hardest(baselines)]
    said = f"{head}: {', and '.join(clauses)}." if clauses else f"{head}; no baseline was trained beside it."
    taught = [_clause(test, "teacher") for test in tests if test.method == "teacher"]
    return f"{said} It is {taught[0]}." if taught else said


def _hardest(baselines: Mapping[str, PairTest]) -> list[str]:
    """Return the control and the best of the others, whichever there are."""
    others = [name for name in baselines if name != "control"]
    best = [max(others, key=lambda name: baselines[name].difference)] if others else []
    return (["control"] if "control" in baselines else []) + best


def _clause(test: PairTest, baseline: str) -> str:
    gain = -test.difference
    if test.ci95_low is None or test.ci95_high is None:
        return f"{signed(gain)} against the {baseline}, on too few cases to say more"
    low, high = -test.ci95_high, -test.ci95_low
    figures = f"({signed(gain)}, {INTERVAL} {interval_text((low, high), signed)})"
    if low > 0:
        return f"better than the {baseline} {figures}"
    if high < 0:
        return f"worse than the {baseline} {figures}"
    return f"not clearly different from the {baseline} {figures}"
