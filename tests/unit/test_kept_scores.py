"""What ``benchmarks/pairs.py`` keeps of runs says what the runs said, and never mixes what does not belong together."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tskd.errors import UserError
from tskd.metrics.comparison import DICE, pair_test
from tskd.metrics.segmentation import CaseScore, ScoreRow
from tskd.stages.evaluation_files import write_cases

CASES = [f"patient {number}" for number in range(10, 22)]
_RNG = np.random.default_rng(0)
SCORES = {(arm, seed): _RNG.uniform(0, 1, len(CASES)).round(4) for arm in ("ours", "plain") for seed in (0, 2, 10)}
AXES = ["labels", "arm", "seed"]


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("pairs")


def comparison(
    out: Path, *, seed: int = 0, cases: list[str] = CASES, images: str = "one digest", failed: bool = False
) -> Path:
    """Write what a comparison of both arms leaves behind."""
    rows: list[dict[str, Any]] = []
    (out / "runs").mkdir(parents=True)
    for arm in ("ours", "plain"):
        folder = out / "artifacts" / f"evaluate-{arm}"
        folder.mkdir(parents=True)
        dice = dict(zip(CASES, SCORES[arm, seed], strict=True))
        lines = [
            ScoreRow(case, f"{case}.png", 1, "px", CaseScore(dice.get(case, 0.5), 0.0, 0.0, 0.0, "scored"))
            for case in cases
        ]
        write_cases(lines, folder / "cases.csv")
        (out / "runs" / f"{arm}.json").write_text(json.dumps({"row": {"images": images}}))
        status = "failed" if failed and arm == "ours" else "done"
        place = {"labels": 20, "arm": arm, "seed": seed}
        rows.append({"run": arm, "status": status, **place, "evaluation": folder.name})
    pd.DataFrame(rows).to_csv(out / "table.csv", index=False)
    return out


def test_kept_scores_give_the_difference_of_the_runs(pairs: ModuleType, tmp_path: Path) -> None:
    """Red where cases are taken by their place: the file's lines are the other way round when a run is added."""
    file = tmp_path / "scores" / "kept.csv"
    for seed in (0, 2, 10):
        if file.is_file():
            head, *lines = file.read_text().splitlines()
            file.write_text("\n".join([head, *lines[::-1]]) + "\n")
        pairs.keep(comparison(tmp_path / str(seed), seed=seed), file, AXES)
    ours, plain = pairs.differences(file, "plain")
    whole = np.stack([SCORES["ours", seed] - SCORES["plain", seed] for seed in (0, 10, 2)])
    expected = pair_test(("ours", "plain"), whole, DICE, seed=0)
    assert ours["difference"] == f"{expected.difference:+.3f}"
    assert ours["95 %"] == f"{expected.ci95_low:+.3f} to {expected.ci95_high:+.3f}"
    assert (ours["over seeds"], ours["cases"], plain["difference"]) == (3, len(CASES), "")
    assert ours["seeds"] == "0, 2, 10"
    assert ours["Dice"] == " / ".join(f"{SCORES['ours', seed].mean():.3f}" for seed in (0, 2, 10))


def test_no_name_of_a_case_is_kept(pairs: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "kept.csv"
    pairs.keep(comparison(tmp_path / "out"), file, AXES)
    assert "patient" not in file.read_text()


def test_a_failed_run_has_no_column(pairs: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "kept.csv"
    pairs.keep(comparison(tmp_path / "out", failed=True), file, AXES)
    assert list(pd.read_csv(file).columns) == ["case", "20 | plain | 0"]


def test_the_same_run_again_changes_nothing(pairs: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "kept.csv"
    pairs.keep(comparison(tmp_path / "first"), file, AXES)
    before = file.read_bytes()
    pairs.keep(comparison(tmp_path / "second"), file, AXES)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "axes", "why"),
    [
        ({"seed": 2, "cases": [*CASES[1:], "someone else"]}, AXES, "other images or cases"),
        ({"seed": 2, "images": "another digest"}, AXES, "other images or cases"),
        ({"seed": 2}, ["arm", "seed"], "other --axes"),
        ({"seed": 2}, ["labels", "seed"], "several runs are 20 | 2"),
        ({"seed": 2}, ["labels", "method", "seed"], "no column method"),
    ],
)
def test_what_does_not_belong_to_the_file_is_refused(
    changes: dict[str, Any], axes: list[str], why: str, pairs: ModuleType, tmp_path: Path
) -> None:
    file = tmp_path / "kept.csv"
    pairs.keep(comparison(tmp_path / "first"), file, AXES)
    before = file.read_bytes()
    with pytest.raises(UserError) as error:
        pairs.keep(comparison(tmp_path / "second", **changes), file, axes)
    assert why in str(error.value)
    assert file.read_bytes() == before


def test_other_scores_under_the_same_name_are_refused(
    pairs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept.csv"
    pairs.keep(comparison(tmp_path / "first"), file, AXES)
    monkeypatch.setitem(SCORES, ("ours", 0), SCORES["ours", 2])
    with pytest.raises(UserError, match="has other scores of 20"):
        pairs.keep(comparison(tmp_path / "second"), file, AXES)


def test_an_unknown_baseline_is_named_with_those_there_are(pairs: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "kept.csv"
    pairs.keep(comparison(tmp_path / "out"), file, AXES)
    with pytest.raises(UserError, match="has no plane, but ours, plain"):
        pairs.differences(file, "plane")
