"""What a run found, for people: the summary on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tskd.console import duration

PLAIN_WIDTH = 100
"""Columns of the table where the output is no terminal."""
TITLES = {
    "teacher": "teacher",
    "scratch": "student from scratch",
    "student_before_finetune": "student after distillation",
    "student": "student after fine-tuning",
    "control": "control (U-Net)",
}


def print_summary(summary: Mapping[str, Any], out: Path) -> None:
    """Print the scores of a run and the verdict as a table on stdout."""
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    metrics = summary["metrics"]
    unit = "mm" if "hd95_mm" in metrics["student"] else "px"
    table = Table(title=f"{summary['dataset']}, {summary['labels']} labels, seed {summary['seed']}")
    for column in ("model", "Dice", "95 % interval", f"HD95 {unit}", "cases", "missed", "false pos."):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, title in TITLES.items():
        if name in metrics:
            table.add_row(title, *_cells(metrics[name], unit))
    console.print(table)
    for line in verdict(metrics):
        console.print(line)
    console.print(f"{duration(summary['seconds'])}; everything is in {out}")


def verdict(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return plain sentences: whether the student beats the control and the start from scratch, and by how much."""
    lines = []
    for rival in ("control", "scratch"):
        if rival in metrics:
            gain = metrics["student"]["dice"] - metrics[rival]["dice"]
            word = "beats" if gain > 0 else "does NOT beat"
            lines.append(f"The student {word} {_phrase(rival)}: Dice {gain:+.3f}.")
    return lines


def _phrase(rival: str) -> str:
    return {"control": "the control U-Net", "scratch": "the same student from scratch"}[rival]


def _cells(scores: Mapping[str, Any], unit: str) -> list[str]:
    interval = scores.get("dice_ci95")
    bounds = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "too few cases"
    counts = (str(scores[name]) for name in ("n_cases", "missed", "false_positive"))
    return [f"{scores['dice']:.3f}", bounds, f"{scores[f'hd95_{unit}']:.1f}", *counts]
