"""A real kill in the middle of sampling: the same command goes on, and no image differs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.conftest import Started
from tskd.artifacts import CHECKPOINTS
from tskd.data.transfer_set import SAMPLES, read_samples

PROGRAM = """
import sys
import time
from pathlib import Path

import numpy as np

from tskd.recipe.schema import EngineConfig
from tskd.engine import open_runtime
from tskd.seeding import numpy_generator
from tskd.stages.samples import draw_samples


class Slow:
    image_size, at_once = 16, 2

    def __call__(self, numbers):
        time.sleep(float(sys.argv[2]))
        return np.stack([numpy_generator(k).integers(0, 256, (16, 16, 3), dtype=np.uint8) for k in numbers])


draw_samples(range(9), Slow(), Path(sys.argv[1]), runtime=open_runtime(EngineConfig(accelerator="cpu")))
"""
TIME_LIMIT = 240


def test_a_kill_in_the_middle_of_sampling_changes_no_image(started: Callable[..., Started], tmp_path: Path) -> None:
    program, killed, whole = tmp_path / "draw.py", tmp_path / "killed", tmp_path / "whole"
    program.write_text(PROGRAM, encoding="utf-8")
    for folder in (killed, whole):
        folder.mkdir()
    process = started(program, killed, 0.1).process
    deadline = time.monotonic() + TIME_LIMIT
    while len(list((killed / CHECKPOINTS).glob("samples-*.npy"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join(TIME_LIMIT)
    assert process.exitcode == -signal.SIGKILL
    assert not (killed / SAMPLES).exists()
    kept = {path: path.stat().st_mtime_ns for path in (killed / CHECKPOINTS).glob("samples-*.npy")}
    assert len(kept) >= 2
    for folder in (killed, whole):
        assert started(program, folder, 0).ended().returncode == 0
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items()), "finished chunks are kept"
    assert np.array_equal(read_samples([killed]), read_samples([whole]))
