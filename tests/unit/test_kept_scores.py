"""What ``benchmarks/pairs.py`` keeps of runs says what the runs said, whatever order their cases came in."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from tskd.errors import UserError
from tskd.metrics.comparison import DICE, pair_test
from tskd.metrics.segmentation import CaseScore, ScoreRow
from tskd.stages.evaluation_files import write_cases

CASES = [f"patient {number}" for number in range(10, 22)]
_RNG = np.random.default_rng(0)
SCORES = {(arm, seed): _RNG.uniform(0, 1, len(CASES)).round(4) for arm in ("ours", "plain") for seed in (0, 1)}


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("pairs")


def comparison(out: Path, *, seed: int, cases: list[str] = CASES, failed: bool = False) -> Path:
    """Write what a comparison of both arms leaves behind, its cases in the order given."""
    rows = []
    for arm in ("ours", "plain"):
        folder = out / "artifacts" / f"evaluate-{arm}"
        folder.mkdir(parents=True)
        dice = dict(zip(CASES, SCORES[arm, seed], strict=True))
        lines = [
            ScoreRow(case, f"{case}.png", 1, "px", CaseScore(dice.get(case, 0.5), 0.0, 0.0, 0.0, "scored"))
            for case in cases
        ]
        write_cases(lines, folder / "cases.csv")
        status = "failed" if failed and arm == "ours" else "done"
        rows.append({"status": status, "labels": 20, "arm": arm, "seed": seed, "evaluation": folder.name})
    pd.DataFrame(rows).to_csv(out / "table.csv", index=False)
    return out


def test_kept_scores_give_the_difference_of_the_runs(pairs: ModuleType, tmp_path: Path) -> None:
    """Red where cases are taken by their order: the second folder has them the other way round."""
    file = tmp_path / "scores" / "kept.csv"
    for seed, cases in ((0, CASES), (1, CASES[::-1])):
        pairs.keep(comparison(tmp_path / str(seed), seed=seed, cases=cases), file, ["labels", "arm", "seed"])
    ours, plain = pairs.differences(file, "plain")
    whole = np.stack([SCORES["ours", seed] - SCORES["plain", seed] for seed in (0, 1)])
    expected = pair_test(("ours", "plain"), whole, DICE, seed=0)
    assert ours["difference"] == f"{expected.difference:+.3f}"
    assert ours["95 %"] == f"{expected.ci95_low:+.3f} to {expected.ci95_high:+.3f}"
    assert (ours["seeds"], ours["cases"], plain["difference"]) == (2, len(CASES), "")
    assert ours["Dice"] == " / ".join(f"{SCORES['ours', seed].mean():.3f}" for seed in (0, 1))


def test_no_name_of_a_case_is_kept(pairs: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "kept.csv"
    pairs.keep(comparison(tmp_path / "out", seed=0), file, ["arm", "seed"])
    assert "patient" not in file.read_text()


def test_failed_runs_and_other_cases_are_not_mixed_in(pairs: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "kept.csv"
    pairs.keep(comparison(tmp_path / "0", seed=0, failed=True), file, ["arm", "seed"])
    before = file.read_bytes()
    assert list(pd.read_csv(file).columns) == ["case", "plain | 0"]
    with pytest.raises(UserError, match="other cases"):
        pairs.keep(comparison(tmp_path / "1", seed=1, cases=[*CASES[1:], "someone else"]), file, ["arm", "seed"])
    assert file.read_bytes() == before
