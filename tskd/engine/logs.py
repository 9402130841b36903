"""The log of a training: one JSON object a line, cut back to the checkpoint when a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tskd.artifacts import TRAINING_LOG, read_log
from tskd.machine.disk import append_line, write_atomic


class TrainingLog:
    """Appends to ``metrics.jsonl``; lines past ``step``, where the run goes on, are dropped."""

    def __init__(self, folder: Path, *, step: int) -> None:
        self.path = folder / TRAINING_LOG
        kept = [line for line in read_log(folder) if line["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        append_line(self.path, json.dumps({"step": step, **rounded}))
