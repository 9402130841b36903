"""A comparison as a user sees it: the same table however it was run, killed or not; a run that fails stops no other."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from tests.conftest import Command, Started
from tskd.cli import main
from tskd.comparison.grid import Grid, load_grid
from tskd.comparison.workflow import LOCK, Machines, collect, compare, plan_comparison
from tskd.data.phantoms import write_phantoms

MEASURED = {"seconds", "peak_memory_mb", "peak_gpu_memory_mb", "latency_ms"}
RECIPE: dict[str, Any] = {
    "data": {"image_size": 32, "labels": 10, "phantom": {"family": "dermoscopy", "train": 20, "test": 8, "size": 32}},
    "teacher": {"name": "timm/test_resnet", "weights": "random", "adaptation": "full", "steps": 6, "batch_size": 4},
    "distill": {"steps": 6, "batch_size": 4, "cache": "on", "views": 2},
    "finetune": {"steps": 4, "batch_size": 4},
    "student": {"backbone": "test_vit", "patch": 16},
    "evaluate": {"overlays": 0},
    "engine": {"accelerator": "cpu", "checkpoint_seconds": 0, "threads": 1},
}
AXES: dict[str, Any] = {"method": ["teacher", "task_kd"], "seed": [0, 1]}


def write_grid(folder: Path, **content: Any) -> Path:
    path = folder / "tiny.yaml"
    values = {"name": "tiny", "recipe": RECIPE, "axes": AXES, "bias_variance": True, **content}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return load_grid(write_grid(tmp_path_factory.mktemp("grid")))


@pytest.fixture
def here(started: Callable[..., Started], capfd: pytest.CaptureFixture[str]) -> Command:
    """Run ``tskd`` in this process; in a process of its own each comparison would import everything for its runs."""

    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments)])
        code = end.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return command


@pytest.fixture(scope="module")
def alone(started: Callable[..., Started], grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison done by one worker, left alone."""
    out = tmp_path_factory.mktemp("alone")
    assert compare(grid, out, Machines()).failures == 0
    return out


def results(out: Path) -> dict[str, Any]:
    """What a comparison found, measured times and memory aside."""
    tables: dict[str, Any] = {}
    for name in ("table.csv", "tests.csv", "changes.csv", "ranks.csv", "bias_variance.csv"):
        with (out / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        tables[name] = [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]
    return tables


def made(out: Path, stage: str) -> int:
    return len(list(out.glob(f"artifacts/{stage}-*/manifest.json")))


def test_shared_parts_are_trained_once_and_all_files_are_there(grid: Grid, alone: Path) -> None:
    found = results(alone)
    assert [(row["method"], row["seed"], row["status"]) for row in found["table.csv"]] == [
        ("teacher", "0", "done"), ("teacher", "1", "done"), ("task_kd", "0", "done"), ("task_kd", "1", "done"),
    ]  # fmt: skip
    assert {stage: made(alone, stage) for stage in ("teacher", "distill", "network")} == {
        "teacher": 2, "distill": 2, "network": 2,
    }  # fmt: skip
    assert [(row["measure"], row["method"], row["baseline"]) for row in found["tests.csv"]] == [
        ("dice", "teacher", "task_kd"), ("hd95_px", "teacher", "task_kd"),
    ]  # fmt: skip
    assert [(row["method"], row["runs"]) for row in found["bias_variance.csv"]] == [("teacher", "2"), ("task_kd", "2")]
    summary = json.loads((alone / "comparison.json").read_text())
    assert (summary["runs"], summary["ended"], summary["failed"], summary["axes"]) == (4, 4, 0, AXES)
    (made_with,) = summary["made_with"]
    assert made_with == {**summary["versions"], "runs": 4}
    cost = {row["method"]: float(row["seconds"]) for row in csv.DictReader((alone / "table.csv").open())}
    assert cost["task_kd"] > cost["teacher"], "the teacher is a part of what distillation costs"


def test_nothing_is_left_to_do_and_a_second_call_only_reads(grid: Grid, alone: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (alone / "artifacts").glob("*/manifest.json")}
    plans, _ = plan_comparison(grid, alone, download=False, recheck=True)
    assert [plan.missing for plan in plans] == [()] * 4
    assert plan_comparison(grid, alone, download=False)[0] == []
    first = results(alone)
    compare(grid, alone, Machines())
    assert results(alone) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_grid_in_the_folder_takes_the_place_of_the_tables_and_says_so(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    before = json.loads((out / "comparison.json").read_text())
    collect(load_grid(write_grid(tmp_path)), out)
    assert "take their place" not in capsys.readouterr().err
    assert json.loads((out / "comparison.json").read_text())["executor"] == before["executor"], "nothing was run now"
    collect(load_grid(write_grid(tmp_path, name="other", axes={"seed": [0, 1]}, bias_variance=False)), out)
    assert f"{out} has the tables and page of the comparison tiny" in capsys.readouterr().err
    assert not (out / "bias_variance.csv").exists(), "it is of runs that this grid does not have"
    executor = json.loads((out / "comparison.json").read_text())["executor"]
    assert executor == dict.fromkeys(before["executor"]), "who did the runs is not known"


def test_tables_of_what_is_done_can_be_had_while_others_work(tskd: Command, alone: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    with FileLock(out / LOCK):
        answer = tskd("compare", write_grid(tmp_path), "--out", out, "--tables-only")
    assert answer.returncode == 0, answer.stderr
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"done"}
    assert {row["latency_ms"] for row in rows} == {""}, "timed beside others, they would be slow for good"


def test_two_comparisons_at_once_in_one_folder_are_refused(tskd: Command, tmp_path: Path) -> None:
    with FileLock(tmp_path / LOCK):
        answer = tskd("compare", write_grid(tmp_path), "--out", tmp_path)
    assert answer.returncode == 2
    assert "another tskd compare is at work in this folder" in answer.stderr
    assert not (tmp_path / "runs").exists()


def test_two_workers_give_the_same_table(grid: Grid, alone: Path, tmp_path: Path) -> None:
    assert compare(grid, tmp_path, Machines(workers=2)).failures == 0
    assert results(tmp_path) == results(alone)
    assert made(tmp_path, "teacher") == 2


def test_ray_gives_the_same_table(grid: Grid, alone: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    assert compare(grid, tmp_path, Machines("ray", workers=2)).failures == 0
    assert results(tmp_path) == results(alone)
    assert made(tmp_path, "teacher") == 2


def test_killed_in_the_middle_and_started_again_gives_the_same_table(
    started: Callable[..., Started], grid: Grid, alone: Path, tmp_path: Path
) -> None:
    def in_the_middle() -> bool:
        return bool(list(tmp_path.glob("runs/*.json"))) and bool(list(tmp_path.glob("artifacts/distill-*.partial")))

    kill_when(started("tskd", "compare", write_grid(tmp_path), "--out", tmp_path).process, in_the_middle)
    assert not (tmp_path / "table.csv").exists()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.json")}
    assert 0 < len(done) < 4
    assert compare(grid, tmp_path, Machines()).failures == 0
    assert results(tmp_path) == results(alone)
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished run is not done again"


def kill_when(process: BaseProcess, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, "it did not get there within four minutes"
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.join()


def test_a_run_that_fails_is_told_and_tried_again_and_the_rest_goes_on(here: Command, tmp_path: Path) -> None:
    axes = {"finetune.scratch_lr": [1e30, 1e-3]}
    grid = write_grid(tmp_path, recipe={**RECIPE, "method": "scratch"}, axes=axes, bias_variance=False)
    dry = here("compare", grid, "--out", tmp_path / "out", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "2 runs" in dry.stdout
    assert "finetune, evaluate, ablation" in dry.stdout
    assert "a guess from steps" in dry.stdout
    plan = json.loads(here("compare", grid, "--out", tmp_path / "out", "--dry-run", "--json").stdout)
    assert (plan["runs"], plan["missing"]) == (2, 6)
    assert [run["there"] for run in plan["waiting"]] == [2, 2], "the images, drawn and read: both runs have them"
    for _ in range(2):
        answer = here("compare", grid, "--out", tmp_path / "out", "--json")
        assert answer.returncode == 1
        assert "Traceback" not in answer.stderr
        assert "is not finite" in answer.stderr
        summary = json.loads(answer.stdout)
        assert (summary["runs"], summary["failed"]) == (2, 1)
    with (tmp_path / "out/table.csv").open(newline="") as file:
        failed, done = csv.DictReader(file)
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert "is not finite" in failed["error"]
    assert "Traceback" in (tmp_path / "out/runs" / f"{failed['run']}.log").read_text()


@pytest.mark.parametrize(
    "more",
    [
        {"seed": [0, 1]},
        {"seed": [{"name": n, "seed": n, "data.budget_seed": n} for n in (0, 1)]},
        {"data.labels": [10, 12]},
    ],
    ids=["seed", "label draw", "labels"],
)
def test_a_grid_does_not_grow_over_images_that_changed(here: Command, tmp_path: Path, more: dict[str, Any]) -> None:
    """A finished run and a new one on other masks would be compared as if they had learned from the same."""
    root, out = tmp_path / "images", tmp_path / "out"
    write_phantoms("dermoscopy", root, count=28, size=32, seed=0, test=8)
    recipe = {**RECIPE, "method": "scratch", "data": {"image_size": 32, "labels": 10, "root": str(root)}}

    def grow(axes: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
        grid = write_grid(tmp_path, recipe=recipe, axes=axes, bias_variance=False)
        return here("compare", grid, "--out", out, *options)

    assert grow({axis: values[:1] for axis, values in more.items()}).returncode == 0
    for mask in (root / "masks").iterdir():
        Image.fromarray(np.flipud(np.asarray(Image.open(mask)))).save(mask)
    refused = grow(more)
    assert refused.returncode == 2
    assert "1 of the finished runs learned from other images, masks or weights than there are now" in refused.stderr
    if "data.labels" in more:
        assert grow(more, "--recheck").returncode == 0
        models = [json.loads(path.read_text())["artifacts"]["model"] for path in (out / "runs").glob("*.json")]
        prepared = [json.loads(path.read_text()) for path in out.glob("artifacts/prepare-*/manifest.json")]
        images = {one["digest"]: one["inputs"]["data"] for one in prepared}
        manifests = [json.loads((out / "artifacts" / one / "manifest.json").read_text()) for one in models]
        assert len(models) == 2
        assert len({images[one["inputs"]["data"]] for one in manifests}) == 1
