"""A comparison's log says what is under way, what came of it and how long the rest takes."""

from __future__ import annotations

import pytest

from tskd.comparison.board import open_board
from tskd.comparison.grid import GridRun
from tskd.comparison.job import Outcome
from tskd.recipe.schema import Recipe


def test_a_log_has_a_line_where_a_run_begins_and_one_where_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [GridRun(f"task_kd-{seed}", {"seed": seed}, Recipe()) for seed in (0, 1)]
    with open_board(2) as board:
        for run in runs:
            board.began(run)
        board.ended(runs[0], Outcome("task_kd-0", None, {"scores": {"dice": 0.8125}}, {}), 300.0)
        board.ended(runs[1], Outcome("task_kd-1", "no disk left", {}, {}), 0.0)
    assert capsys.readouterr().err.splitlines() == [
        "compare: begun: seed 0",
        "compare: begun: seed 1",
        "compare: 1/2, about 5 min 00 s left; seed 0: Dice 0.812",
        "compare: 2/2; seed 1: failed: no disk left",
    ]
