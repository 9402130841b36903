"""The tables as files: their columns are what the report and scripts read."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tskd.comparison.grid import Grid, GridRun
from tskd.comparison.job import Outcome
from tskd.comparison.tables import table_columns, table_rows, write_table
from tskd.recipe.schema import Recipe
from tskd.stages.network_costs import Network

SCORES = {
    "model": "student", "dataset": "tested", "dice": 0.8, "dice_ci95": [0.7, 0.9], "iou": 0.7, "hd95_px": 12.0,
    "assd_px": 3.0, "n_cases": 5, "n_images": 5, "missed": 1, "false_positive": 2, "both_empty": 0,
}  # fmt: skip
POINT: dict[str, Any] = {"method": "task_kd", "dataset": "mine", "data.labels": None, "seed": 1}


def build(*outcomes: Outcome) -> tuple[list[str], list[dict[str, Any]]]:
    runs = tuple(GridRun(outcome.name, POINT, Recipe()) for outcome in outcomes)
    axes = {axis: (value,) for axis, value in POINT.items()}
    grid = Grid("g", axes, ("seed",), (*runs, GridRun("waiting", POINT, Recipe())), None, None, False, {})
    rows = table_rows(grid, {outcome.name: outcome for outcome in outcomes}, {"finetune-1": Network(5, 20.0, 3.5)})
    return table_columns(grid, rows), rows


def done(**scores: Any) -> Outcome:
    row = {"title": "ours", "dataset": "folder", "scores": SCORES | scores, "seconds": 9.0, "peak_memory_mb": 100.0}
    return Outcome("a", None, row, {"model": "finetune-1", "evaluation": "evaluate-1"})


def test_the_columns_are_those_of_the_schema(tmp_path: Path) -> None:
    columns, rows = build(done(), Outcome("b", "it broke,\tbadly", {}, {}))
    assert columns == [
        "run", "status", "error", "method", "title", "dataset", "data.labels", "seed",
        "dice", "dice_ci95_low", "dice_ci95_high", "iou", "hd95_px", "assd_px",
        "level", "n_cases", "scored", "missed", "false_positive", "both_empty",
        "dice_features_zeroed", "dice_features_of_another_image", "dice_skips_zeroed", "seconds",
        "peak_memory_mb", "peak_gpu_memory_mb", "threads",
        "parameters", "model_mb", "latency_ms", "student_gflops", "teacher_gflops", "evaluation",
    ]  # fmt: skip
    write_table(tmp_path / "table.csv", rows, columns)
    with (tmp_path / "table.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["status"], first["dataset"], first["data.labels"], first["seed"]) == ("done", "mine", "", "1")
    assert (first["dice"], first["dice_ci95_low"], first["dice_ci95_high"]) == ("0.8", "0.7", "0.9")
    assert (first["parameters"], first["latency_ms"], first["evaluation"]) == ("5", "3.5", "evaluate-1")
    assert (second["status"], second["error"], second["dice"]) == ("failed", "it broke,\tbadly", "")


def test_without_an_interval_its_fields_are_empty_and_units_are_those_that_occur() -> None:
    columns, rows = build(done(dice_ci95=None, hd95_mm=1.0, assd_mm=1.0))
    assert rows[0]["dice_ci95_low"] is None
    assert columns[columns.index("iou") + 1 :][:4] == ["hd95_px", "hd95_mm", "assd_px", "assd_mm"]


def test_the_header_is_there_without_rows(tmp_path: Path) -> None:
    write_table(tmp_path / "tests.csv", [], ["a", "b"])
    assert (tmp_path / "tests.csv").read_text() == "a,b\n"


def test_an_answer_in_tiles_takes_as_long_as_its_looks() -> None:
    _, (row,) = build(done(looks=9.0))
    assert row["latency_ms"] == 9 * 3.5
