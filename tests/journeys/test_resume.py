"""A run killed with SIGKILL at any moment and started again ends with the weights of the run that was left alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tskd.artifacts import Artifact
from tskd.engine import open_runtime
from tskd.experiment.pipeline import doubted, evaluations, student
from tskd.experiment.run import Run
from tskd.recipe.schema import Recipe, build_recipe

TINY = {
    "data": {"image_size": 32, "labels": 12, "phantom": {"family": "dermoscopy", "train": 24, "test": 6, "size": 48}},
    "teacher": {
        "name": "timm/test_resnet",
        "weights": "random",
        "adaptation": "full",
        "steps": 20,
        "batch_size": 8,
        "validate_every": 5,
    },
    "distill": {"steps": 30, "batch_size": 8, "cache": "on", "views": 2, "validate_every": 10},
    "finetune": {"steps": 20, "batch_size": 8, "validate_every": 5},
    "student": {"backbone": "test_vit", "patch": 16},
    "control": {"steps": 20, "batch_size": 8, "channels": [8, 16, 32]},
    "engine": {"checkpoint_seconds": 0, "accelerator": "cpu"},
}


def run_all(out: Path) -> None:
    """Train and judge all models. The export follows from these artifacts alone, and takes as long as all of them."""
    recipe: Recipe = build_recipe(TINY, "test")
    run = Run(recipe, out, open_runtime(recipe.engine))
    evaluations(run)
    doubted(run)
    run.ablation(student(run))


def fork_run(out: Path) -> int:
    """Start the run in a forked process: everything is imported already, so that eleven starts cost seconds."""
    pid = os.fork()
    if pid:
        return pid
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    try:
        run_all(out)
        os._exit(0)
    finally:
        os._exit(1)


def reached(stage: str, step: int) -> Callable[[Path], bool]:
    """True once the stage has a checkpoint of that step or a later one."""

    def check(out: Path) -> bool:
        found = out.glob(f"artifacts/{stage}-*.partial/checkpoints/step-*.pt")
        return any(int(path.stem.split("-")[1]) >= step for path in found)

    return check


def began(stage: str) -> Callable[[Path], bool]:
    """True once the stage has made its folder."""
    return lambda out: any(out.glob(f"artifacts/{stage}-*.partial"))


KILLS = {
    "phantoms": began("phantoms"),
    "prepare": began("prepare"),
    "teacher at its first checkpoint": reached("teacher", 1),
    "teacher late": reached("teacher", 15),
    "cache": began("cache"),
    "distill early": reached("distill", 5),
    "distill at a validation": reached("distill", 20),
    "finetune early": reached("finetune", 5),
    "finetune late": reached("finetune", 15),
    "control": reached("control", 10),
    "evaluate": began("evaluate"),
}


def kill_when(pid: int, condition: Callable[[], bool]) -> bool:
    """Kill the process once the condition holds; say whether it was still alive then."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        if condition():
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            return os.WIFSIGNALED(status)
        time.sleep(0.005)  # a stage takes a tenth of a second at least; to look more often takes a third of a core
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the run did not get there within two minutes")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_eleven_points_ends_bit_identical(tmp_path: Path) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(fork_run(tmp_path / "whole"), 0)[1]) == 0
    broken = tmp_path / "broken"
    for name, condition in KILLS.items():
        assert kill_when(fork_run(broken), lambda condition=condition: condition(broken)), f"not killed: {name}"
    assert os.waitstatus_to_exitcode(os.waitpid(fork_run(broken), 0)[1]) == 0
    assert digests(broken) == digests(tmp_path / "whole")


def digests(out: Path) -> dict[str, str]:
    """Digest of every artifact. Names hold the digests of inputs, so one differing bit anywhere shows."""
    folders = [path for path in (out / "artifacts").iterdir() if (path / "manifest.json").is_file()]
    assert len(folders) > len(KILLS)
    return {path.name: Artifact(path).digest for path in folders}
