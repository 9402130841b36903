"""What benchmarks share: fresh processes, step times of real trainings, tables to paste into the documentation."""

from __future__ import annotations

import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from tskd.data.prepared import Prepared
from tskd.engine import Runtime, Training, fit
from tskd.metrics.segmentation import mean_dice
from tskd.stages.scoring import Scoring, Tally

WARM_UP = 2
"""Steps of a training that are not timed: the first ones allocate."""


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the function answers in a process of its own, whose peak memory is then its own.

    On Linux it is forked: whoever asks has done nothing but import, which a fresh interpreter would do anew.
    """
    fresh = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as process:
        return process.submit(function, *arguments).result()


def step_seconds(training: Training, runtime: Runtime) -> list[float]:
    """Return the seconds of each step of a training, reading its batch included, warm-up left out."""
    ends: list[float] = []

    def note(step: int, module: nn.Module) -> None:
        if runtime.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    with TemporaryDirectory() as folder:
        fit(replace(training, on_step=note), Path(folder), runtime)
    return np.diff(ends)[WARM_UP - 1 :].tolist()


def dice_on_test(data: Prepared, answer: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the mean Dice over the cases of the test part, as a run tells it; ``answer``: image to class indices."""
    tally = Tally(Scoring.of(data, distances=False))
    for row in map(int, data.rows("test")):
        tally.add(row, answer(data.native_image(row)))
    return mean_dice(tally.headline) or 0.0


def machine(threads: int) -> str:
    """Return one line on what the figures were measured with."""
    cpu = platform.processor() or platform.machine()
    model = Path("/proc/cpuinfo")
    if model.is_file():
        lines = (line for line in model.read_text().splitlines() if line.startswith("model name"))
        cpu = next(lines, f": {cpu}").partition(":")[2].strip()
    return f"{cpu}, {threads} thread(s), torch {torch.__version__}, {platform.system()}"


def print_results(rows: Sequence[Mapping[str, Any]], *, as_json: bool, threads: int) -> None:
    """Print rows as one JSON object or as a Markdown table under a line on the machine."""
    if as_json:
        print(json.dumps({"machine": machine(threads), "rows": list(rows)}))
        return
    print(f"{machine(threads)}\n")
    print(as_table(rows))


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with the same keys as a Markdown table."""
    lines = [rows[0], ["---"] * len(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
