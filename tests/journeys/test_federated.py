"""A federation as a user tries it: by the command, killed and started again, and over Flower's own simulation."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Command, Started
from tskd.artifacts import ARTIFACTS, finished_in

pytest.importorskip("flwr")

RECIPE: dict[str, Any] = {
    "data": {"image_size": 32, "phantom": {"family": "dermoscopy", "train": 10, "test": 4, "size": 32}},
    "teacher": {"name": "timm/test_vit", "weights": "random", "adaptation": "full", "batch_size": 4},
    "student": {"backbone": "test_vit"},
    "distill": {"steps": 3, "batch_size": 4, "views": 1},
    "evaluate": {"overlays": 0},
    "engine": {"accelerator": "cpu"},
    "federated": {
        "rounds": 4,
        "local_steps": 3,
        "sites": {"north": {"split_seed": 1}, "south": {"split_seed": 2}},
        "transfer": {"split_seed": 9, "phantom": {"train": 6, "test": 1}},
    },
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "federated.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tskd: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a federation that nothing has stopped."""
    out = tmp_path_factory.mktemp("whole")
    answer = tskd("federate", "simulate", recipe, "--out", out)
    assert answer.returncode == 0, answer.stderr
    assert "north" in answer.stdout
    assert "MB up" in answer.stdout
    return out


def teacher_of(out: Path) -> str:
    (artifact,) = finished_in(out / ARTIFACTS, "federated_teacher")
    return artifact.digest


def test_a_run_says_what_was_sent_and_how_each_site_does(whole: Path) -> None:
    found = json.loads((whole / "run.json").read_text())["federated"]
    assert set(found["sites"]["student"]) == {"north", "south"}
    assert [entry["round"] for entry in found["rounds"]] == [1, 2, 3, 4]
    sent = {site: sum(entry["sites"][site]["up"] for entry in found["rounds"]) for site in ("north", "south")}
    assert {site: one["up"] for site, one in found["bytes"].items()} == sent


def test_killed_between_two_rounds_the_same_command_ends_with_the_same_bits(
    recipe: Path, whole: Path, started: Callable[..., Started], tskd: Command, tmp_path: Path
) -> None:
    begun = started("tskd", "federate", "simulate", recipe, "--out", tmp_path)
    until = time.monotonic() + 300
    while time.monotonic() < until and not list(
        tmp_path.glob("artifacts/federated_teacher-*.partial/checkpoints/*.pt")
    ):
        time.sleep(0.02)
    assert begun.process.pid is not None
    os.kill(begun.process.pid, signal.SIGKILL)
    begun.process.join()
    assert not finished_in(tmp_path / ARTIFACTS, "federated_teacher"), "it was too fast to be killed within"
    answer = tskd("federate", "simulate", recipe, "--out", tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "the server goes on after round" in answer.stderr
    assert teacher_of(tmp_path) == teacher_of(whole)


@pytest.mark.slow
def test_flowers_own_simulation_makes_the_same_bits(recipe: Path, whole: Path, tskd: Command, tmp_path: Path) -> None:
    """Sites in processes of Ray, messages through Flower's link: what they learn depends on none of it."""
    answer = tskd("federate", "simulate", recipe, "--out", tmp_path, "--backend", "ray")
    assert answer.returncode == 0, answer.stderr
    assert teacher_of(tmp_path) == teacher_of(whole)


def test_mistakes_are_told_in_one_line(recipe: Path, tskd: Command, tmp_path: Path) -> None:
    cases: tuple[tuple[list[object], str], ...] = (
        ([recipe, "--site", "north"], "write NAME=FOLDER"),
        ([recipe, "--site", "east=/nowhere/at/all"], "/nowhere/at/all: there is no such folder"),
        ([recipe, "--set", "method=scratch"], "the server has no labels"),
        (["nothing"], "is not known"),
    )
    for arguments, said in cases:
        answer = tskd("federate", "simulate", *arguments, "--out", tmp_path / "out")
        assert (answer.returncode, "Traceback" in answer.stderr) == (2, False), answer.stderr
        assert said in answer.stderr
    plain = tmp_path / "plain.yaml"
    plain.write_text("seed: 1\n")
    assert "has no section federated" in tskd("federate", "simulate", plain, "--out", tmp_path / "out").stderr
