"""A real kill in the middle of sampling: the same command goes on, and no image differs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tskd
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


def start(folder: Path, *, seconds_a_chunk: float) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(tskd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), str(seconds_a_chunk)], env=environment)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_sampling_changes_no_image(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed, seconds_a_chunk=0.5)
    deadline = time.monotonic() + TIME_LIMIT
    while len(list((killed / CHECKPOINTS).glob("samples-*.npy"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(TIME_LIMIT) == -signal.SIGKILL
    assert not (killed / SAMPLES).exists()
    kept = {path: path.stat().st_mtime_ns for path in (killed / CHECKPOINTS).glob("samples-*.npy")}
    assert len(kept) >= 2
    for folder in (killed, whole):
        assert start(folder, seconds_a_chunk=0).wait(TIME_LIMIT) == 0
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items()), "finished chunks are kept"
    assert np.array_equal(read_samples([killed]), read_samples([whole]))
