"""The tables on the terminal: names of the grid's own are kept apart, and brackets are text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tskd.comparison.grid import load_grid
from tskd.comparison.statistics import Statistics
from tskd.comparison.summary import print_comparison
from tskd.comparison.workflow import Comparison

AXES = {
    "method": [
        {"name": "with [logits]", "method": "task_kd"},
        {"name": "features alone", "method": "task_kd", "distill.decoder_weight": 0},
    ],
    "seed": [0],
}


def row(method: str, dice: float) -> dict[str, Any]:
    scores = {"dice": dice, "hd95_px": 5.0, "missed": 2, "scored": 10, "model_mb": 1.0, "latency_ms": 2.0}
    return {
        "run": method,
        "status": "done",
        "method": method,
        "title": "task-specific distillation",
        "seed": 0,
        **scores,
    }


def test_the_column_says_that_volumes_were_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"name": "ours", "axes": AXES}))
    rows = [{**row(name, 0.7), "level": "volume"} for name in ("with [logits]", "features alone")]
    print_comparison(Comparison(load_grid(tmp_path / "grid.yaml"), tmp_path, rows, Statistics((), (), ()), [], []))
    assert "3-D Dice" in capsys.readouterr().out


def test_runs_that_an_earlier_version_scored_in_another_unit_have_no_mean_distance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"name": "ours", "axes": AXES}))
    new = {**row("with [logits]", 0.7), "level": "volume", "hd95_px": None, "hd95_mm": 7.0}
    print_comparison(
        Comparison(
            load_grid(tmp_path / "grid.yaml"),
            tmp_path,
            [row("with [logits]", 0.5), new],
            Statistics((), (), ()),
            [],
            [],
        )
    )
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "with [logits]" in line)
    assert "0.600" in line
    assert "5.0 px" not in line
    assert "7.0 mm" not in line


def test_two_settings_of_one_method_are_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"name": "ours", "axes": AXES}))
    failed = {"run": "third", "status": "failed", "error": "install tskd[offline] [/] first"}
    rows = [row("with [logits]", 0.7), row("features alone", 0.5), failed]
    print_comparison(Comparison(load_grid(tmp_path / "grid.yaml"), tmp_path, rows, Statistics((), (), ()), [], []))
    said = capsys.readouterr().out
    (first,) = (line for line in said.splitlines() if "with [logits]" in line)
    (second,) = (line for line in said.splitlines() if "features alone" in line)
    assert "0.700" in first
    assert "2.0 of 12" in first
    assert "0.500" in second
    assert "install tskd[offline] [/] first" in said
