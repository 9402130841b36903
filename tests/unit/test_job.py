from __future__ import annotations

from pathlib import Path

import pytest

from tskd.artifacts import write_json
from tskd.compare.job import LONGEST_ERROR, Outcome, failed, read_outcome, state_path, write_outcome
from tskd.errors import RunFailed, UserError

DONE = Outcome("a", None, {"scores": {"dice": 0.5}}, {"model": "finetune-1", "evaluation": "evaluate-1"})


def finish(out: Path) -> None:
    """Write a finished run with the manifests of its artifacts."""
    write_outcome(out, DONE)
    for folder in DONE.artifacts.values():
        (out / "artifacts" / folder).mkdir(parents=True)
        write_json(out / "artifacts" / folder / "manifest.json", {})


def test_an_outcome_is_read_back(tmp_path: Path) -> None:
    finish(tmp_path)
    assert read_outcome(tmp_path, "a") == DONE
    assert read_outcome(tmp_path, "b") is None


def test_a_result_whose_model_or_scores_are_gone_is_none(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "artifacts/evaluate-1/manifest.json").unlink()
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
    ],
)
def test_an_error_is_one_line(error: BaseException | str, said: str) -> None:
    assert failed("a", error) == Outcome("a", said, {}, {})


def test_a_long_error_is_cut() -> None:
    error = failed("a", "x" * 2 * LONGEST_ERROR).error
    assert error is not None
    assert len(error) == LONGEST_ERROR
