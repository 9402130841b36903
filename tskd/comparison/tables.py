"""The files of a comparison, for the report and for scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tskd.artifacts import COSTS
from tskd.cells import ENCODING_ERRORS, harmless
from tskd.comparison.grid import DATASET, METHOD, Grid, GridRun
from tskd.comparison.job import Outcome
from tskd.machine.disk import write_atomic
from tskd.report.comparison.files import ABLATION_COLUMNS, FEDERATED_COLUMNS
from tskd.stages.evaluation_files import LOOKS
from tskd.stages.network_costs import Network

_DISTANCES = ("hd95_px", "hd95_mm", "assd_px", "assd_mm")
_COUNTS = ("level", "n_cases", "scored", "missed", "false_positive", "both_empty")
_NETWORK = ("parameters", "model_mb", "latency_ms")
_COMPUTE = ("student_gflops", "teacher_gflops")


def table_rows(grid: Grid, outcomes: Mapping[str, Outcome], networks: Mapping[str, Network]) -> list[dict[str, Any]]:
    """Return one row a run that has ended; ``networks`` are figures by the folder of the model."""
    return [_row(run, outcomes[run.name], networks) for run in grid.runs if run.name in outcomes]


def table_columns(grid: Grid, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of table.csv: the axes of the grid, distances in the units that occur, millilitres if any,
    and what is said of sites where there are some."""
    axes = [axis for axis in grid.axes if axis not in (METHOD, DATASET)]
    units = [name for name in (*_DISTANCES, "volume_error_ml") if any(row.get(name) is not None for row in rows)]
    return [
        *("run", "status", "error", METHOD, "title", DATASET, *axes),
        *("dice", "dice_ci95_low", "dice_ci95_high", "iou", *units, *_COUNTS),
        *[name for name in FEDERATED_COLUMNS if any(row.get(name) is not None for row in rows)],
        *ABLATION_COLUMNS,
        *(*COSTS, "threads", *_NETWORK, *_COMPUTE, "evaluation"),
    ]


def _row(run: GridRun, outcome: Outcome, networks: Mapping[str, Network]) -> dict[str, Any]:
    identity = {"run": run.name, "status": "failed" if outcome.error else "done", "error": outcome.error}
    if outcome.error is not None:
        return {**identity, **run.point}
    found = outcome.row
    scores = found["scores"]
    low, high = scores["dice_ci95"] or (None, None)
    network = networks.get(outcome.artifacts["model"])
    if network is not None:
        network = network.in_looks(scores.get(LOOKS, 1))
    return {
        **scores,
        **identity,
        "title": found["title"],
        DATASET: found["dataset"],
        **run.point,  # a data set that the grid names is called so
        "dice_ci95_low": low,
        "dice_ci95_high": high,
        **{name: found.get(name) for name in (*COSTS, "threads", *_COMPUTE, *ABLATION_COLUMNS, *FEDERATED_COLUMNS)},
        **(vars(network) if network else {}),
        "evaluation": outcome.artifacts["evaluation"],
    }


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write those columns of rows as CSV, whole or not at all; None is an empty field."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(map(harmless, rows))
    write_atomic(path, text.getvalue().encode(errors=ENCODING_ERRORS))
