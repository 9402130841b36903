from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tskd.artifacts import Store
from tskd.comparison.job import LONGEST_ERROR, Outcome, failed, read_outcome, state_path, write_outcome
from tskd.errors import RunFailed, UserError

SCORES = {"dice": 0.5, "dice_ci95": None}


def finish(out: Path) -> Outcome:
    """Write a finished run with its artifacts."""
    store, rest = Store(out / "artifacts"), {"config": {}, "inputs": {}, "seed": 0, "version": 1}
    model = store.build("finetune", lambda _: {}, **rest)
    evaluation = store.build("evaluate", lambda _: SCORES, **rest)
    done = Outcome("a", None, {"scores": SCORES}, {"model": model.path.name, "evaluation": evaluation.path.name})
    write_outcome(out, done)
    return done


def test_an_outcome_is_read_back(tmp_path: Path) -> None:
    assert finish(tmp_path) == read_outcome(tmp_path, "a")
    assert read_outcome(tmp_path, "b") is None


def test_a_result_whose_model_or_scores_are_gone_is_none(tmp_path: Path) -> None:
    evaluation = finish(tmp_path).artifacts["evaluation"]
    (tmp_path / "artifacts" / evaluation / "manifest.json").unlink()
    assert read_outcome(tmp_path, "a") is None


def test_scores_that_are_not_those_of_the_evaluation_are_no_result(tmp_path: Path) -> None:
    done = finish(tmp_path)
    write_outcome(tmp_path, replace(done, row={"scores": {**SCORES, "dice": 0.987}}))
    assert read_outcome(tmp_path, "a") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "a"}', '{"status": "done"}'])
def test_a_state_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    finish(tmp_path)
    state_path(tmp_path, "a").write_text(text)
    assert read_outcome(tmp_path, "a") is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("data.labels=900: too many.\n  Take less."), "data.labels=900: too many. Take less."),
        (RunFailed("the loss is not finite"), "the loss is not finite"),
        (KeyError("x"), "KeyError: 'x'"),
        ("killed", "killed"),
        (OSError(28, "No space left on device", "a.pt"), "a.pt: No space left on device. Make room there, or choose "
         "another place; what is finished is kept."),
    ],
)  # fmt: skip
def test_an_error_is_one_line(error: BaseException | str, said: str) -> None:
    assert failed("a", error) == Outcome("a", said, {}, {})


def test_a_long_error_is_cut() -> None:
    error = failed("a", "x" * 2 * LONGEST_ERROR).error
    assert error is not None
    assert len(error) == LONGEST_ERROR
