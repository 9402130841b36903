"""The benchmarks run and answer with numbers; what they are is for a quiet machine to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.conftest import Command
from tskd.models.weights import efficientnet_lite0_path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *arguments: object) -> list[dict[str, Any]]:
    line = [sys.executable, BENCHMARKS / name, "--quick", "--json", "--threads", "1", *arguments]
    answer = subprocess.run([str(part) for part in line], capture_output=True, text=True, timeout=400, check=True)
    rows: list[dict[str, Any]] = json.loads(answer.stdout)["rows"]
    return rows


@pytest.mark.slow
def test_distillation_is_timed_in_three_ways() -> None:
    (row,) = run("distill.py", "--batch", 4)
    speeds = [row[f"{way}, images/s"] for way in ("student alone", "cached", "online")]
    assert min(speeds) > 0
    assert row["cached / online"] == pytest.approx(speeds[1] / speeds[2])


@pytest.mark.slow
def test_growing_transfer_sets_are_timed_and_weighed() -> None:
    rows = run("scale.py")
    assert [row["images"] for row in rows] == [8, 16]
    assert all(row["cache ms"] > 0 and row["step ms"] > 0 and row["sample ms"] > 0 for row in rows)
    assert all(row["sample MB"] > 100 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(efficientnet_lite0_path() is None, reason="KID is on the offline teacher's features")
def test_solvers_are_timed_beside_their_kid(tskd: Command, tmp_path: Path) -> None:
    phantoms = ["train=24", "test=8", "size=32", "family=dermoscopy"]
    sets = [f"--set=data.phantom.{one}" for one in phantoms]
    settings = ["--set=data.image_size=32", "--set=data.labels=8", "--set=diffusion.steps=1"]
    assert tskd("stage", "diffusion", "--out", tmp_path, *sets, *settings).returncode == 0
    *solvers, real = run("sampling.py", "--out", tmp_path, "--count", 8)
    assert [row["solver"] for row in solvers] == ["dpmsolver++", "ddim"]
    assert all(float(row["KID"]) > float(real["KID"]) for row in solvers), (
        "an untrained model is no match for real images"
    )


@pytest.mark.slow
def test_equal_methods_are_simulated() -> None:
    line = [sys.executable, str(BENCHMARKS / "null.py"), "--quick", "--json"]
    answer = subprocess.run(line, capture_output=True, text=True, timeout=400, check=True)
    rows = json.loads(answer.stdout)["rows"]
    assert {row["seeds"] for row in rows} == {1, 3, 5}
    assert all(0 <= row[share] <= 100 for row in rows for share in ("p < 0.05, %", "interval without 0, %"))
