"""The benchmarks run and answer with numbers; what they are is for a quiet machine to say."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Command
from tests.serving import write_bundle
from tskd.models.weights import efficientnet_lite0_path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(forked: Command) -> Run:
    """Run a benchmark in small and return its rows."""

    def run(name: str, *arguments: object) -> list[dict[str, Any]]:
        answer = forked(BENCHMARKS / name, "--quick", "--json", *arguments)
        assert answer.returncode == 0, answer.stderr
        rows: list[dict[str, Any]] = json.loads(answer.stdout)["rows"]
        return rows

    return run


@pytest.mark.slow
def test_distillation_is_timed_in_three_ways(run: Run) -> None:
    (row,) = run("distill.py", "--threads", 1, "--batch", 4)
    speeds = [row[f"{way}, images/s"] for way in ("student alone", "cached", "online")]
    assert min(speeds) > 0
    assert row["cached / online"] == pytest.approx(speeds[1] / speeds[2])


@pytest.mark.slow
def test_growing_transfer_sets_are_timed_and_weighed(run: Run) -> None:
    rows = run("scale.py", "--threads", 1)
    assert [row["images"] for row in rows] == [2, 4]
    assert all(row["cache ms"] > 0 and row["step ms"] > 0 and row["sample ms"] > 0 for row in rows)
    assert all(row["sample MB"] > 100 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(efficientnet_lite0_path() is None, reason="KID is on the offline teacher's features")
def test_solvers_are_timed_beside_their_kid(run: Run, tskd: Command, tmp_path: Path) -> None:
    phantoms = ["train=24", "test=8", "size=32", "family=dermoscopy"]
    sets = [f"--set=data.phantom.{one}" for one in phantoms]
    settings = ["--set=data.image_size=32", "--set=data.labels=8", "--set=diffusion.steps=1"]
    assert tskd("stage", "diffusion", "--out", tmp_path, *sets, *settings).returncode == 0
    *solvers, real = run("sampling.py", "--threads", 1, "--out", tmp_path, "--count", 8)
    assert [row["solver"] for row in solvers] == ["dpmsolver++", "ddim"]
    assert all(float(row["KID"]) > float(real["KID"]) for row in solvers), (
        "an untrained model is no match for real images"
    )


@pytest.mark.slow
def test_equal_methods_are_simulated(run: Run) -> None:
    rows = run("null.py")
    assert {row["seeds"] for row in rows} == {1, 3, 5}
    assert all(0 <= row[share] <= 100 for row in rows for share in ("p < 0.05, %", "interval without 0, %"))


@pytest.mark.slow
def test_augmentation_is_timed_in_each_way_that_is_there(run: Run) -> None:
    rows = run("augment.py")
    assert [row["way"] for row in rows][:3] == ["ours, light", "ours, nnunet", "ours, bent"]
    assert all(row["images/s"] > 0 for row in rows)


@pytest.mark.slow
def test_networks_are_timed_in_turns_and_int8_is_smaller(run: Run) -> None:
    rows = {row["network"]: row for row in run("inference.py")}
    student, int8 = rows["student: U-Net over Lite0"], rows["student: U-Net over Lite0, int8"]
    assert student["times as long as student: U-Net over Lite0"] == 1
    assert int8["MB"] < 10 < student["MB"] < rows["U-Net of nnU-Net's size"]["MB"]
    assert rows["teacher: 3 of them, mirrored too"]["ms"] > student["ms"]


@pytest.mark.slow
def test_a_unet_of_another_library_is_scored_beside_ours(forked: Command, tskd: Command, tmp_path: Path) -> None:
    sets = [f"--set=data.phantom.{one}" for one in ("train=12", "test=8", "size=64")]
    assert tskd("stage", "prepare", "--out", tmp_path, "--set=data.image_size=64", *sets).returncode == 0
    (prepared,) = (tmp_path / "artifacts").glob("prepare-*")
    answer = forked(BENCHMARKS / "smp_unet.py", "--json", "--no-weights", "--steps", 2, "--seeds", 2, prepared)
    assert answer.returncode == 0, answer.stderr
    first, second = json.loads(answer.stdout)["rows"]
    assert 0 < float(first["Dice"]) < 1
    assert first["Dice"] != second["Dice"], "another seed, another training"
    assert first["parameters"] < 8_000_000


@pytest.mark.slow
def test_choices_of_what_to_label_next_are_scored_beside_a_random_one(
    forked: Command, tskd: Command, tmp_path: Path
) -> None:
    """Red where all choices label the same images, or the differences are not to the random choice of the same seed."""
    sets = [f"--set=data.phantom.{one}" for one in ("train=12", "test=4", "size=32")]
    assert tskd("stage", "prepare", "--out", tmp_path, "--set=data.image_size=32", *sets).returncode == 0
    (prepared,) = (tmp_path / "artifacts").glob("prepare-*")
    answer = forked(BENCHMARKS / "labelling.py", "--json", "--seeds", 2, "--first", 3, "--steps", 3, prepared)
    assert answer.returncode == 0, answer.stderr
    rows = {row.pop("labelled next"): row for row in json.loads(answer.stdout)["rows"]}
    assert list(rows) == ["3 labels", "at random", "most doubtful", "largest predicted area"]
    assert len({row["Dice"] for row in rows.values()}) == 4
    difference = float(rows["most doubtful"]["minus at random (95 % over seeds)"].split()[0])
    expected = float(rows["most doubtful"]["Dice"]) - float(rows["at random"]["Dice"])
    assert difference == pytest.approx(expected, abs=2e-3)


@pytest.mark.slow
def test_precisions_are_timed_against_float32(run: Run) -> None:
    usual, half = run("engine.py", "--threads", 1)
    assert (usual["way"], half["way"]) == ("32-true", "bf16-mixed")
    assert usual["step / 32-true"] == 1
    assert half["step / 32-true"] == pytest.approx(half["step s"] / usual["step s"])


@pytest.mark.slow
@pytest.mark.timeout(1500)  # about a minute of processor time, in a dozen processes: long on a busy machine
def test_the_figures_of_a_gpu_can_be_taken_part_by_part(forked: Command, tmp_path: Path) -> None:
    """On the CPU with tiny networks: every part answers, and what has an answer is not measured again."""
    program = partial(
        forked, BENCHMARKS / "gpu.py", "--tiny", "--json", "--data", "phantoms", "--out", tmp_path, "--minutes"
    )
    nothing = json.loads(program(0).stdout)
    assert not nothing["parts"]
    assert all("the time is over" in note for note in nothing["missing"].values())
    ended = program(20)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert not found["missing"]
    parts = {name: part["rows"] for name, part in found["parts"].items()}
    assert parts.keys() == nothing["missing"].keys()
    assert [(row["precision"], row["blocks"]) for row in parts["sam-large"]][:2] == [
        ("32-true", "kept"),
        ("32-true", "computed again"),
    ]
    assert all(row["images/s"] > 0 for name in ("sam-small", "sam-large", "diffusion-base") for row in parts[name])
    stages = [row["stage"] for row in parts["recipe"]]
    assert {"teacher", "cache", "distill", "finetune", "evaluate"} <= set(stages)
    assert [row["processes"] for row in parts["processes"]] == [1, 2]
    assert parts["processes"][0]["Dice"] == pytest.approx(parts["processes"][1]["Dice"], abs=0.02)
    assert [row["title"] for row in parts["real"]] == ["control (U-Net)"]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert program(20).returncode == 0
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}


def test_a_server_under_load_answers_all_and_leaves_nothing(forked: Command, tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "model")
    answer = forked(BENCHMARKS / "serve.py", model, "--requests", 40, "--clients", 3)
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert (told["alive_at_the_end"], told["unexpected"], told["left"], told["left_after_kill"]) == (True, [], [], [])
    assert told["statuses"]["good 200"] + sum(n for name, n in told["statuses"].items() if "hostile" in name) == 40


def test_sites_are_told_apart_by_colour_size_and_case(forked: Command, tmp_path: Path) -> None:
    """What is there stays: other columns, lines in their order. A case of two kinds goes with most of its images."""
    lines = ["id,split,case,note"]
    (tmp_path / "images").mkdir()
    for number in range(8):
        colour = (200, 40, 90) if number in (1, 2, 3, 7) else (90, 90, 90)
        Image.new("RGB", (40 + 10 * (number > 5), 40), colour).save(tmp_path / f"images/{number}.png")
        if number < 7:
            lines.append(f'{number},train,{number // 3},"a, {number}"')
    table, script = tmp_path / "split.csv", BENCHMARKS / "sites.py"
    sites = {}
    for way in ("colour", "size", "case"):
        table.write_text("\n".join(lines))
        answer = forked(script, tmp_path, "--by", way, "--parts", 2)
        assert answer.returncode == 0, answer.stderr
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        sites[way] = [row["site"] for row in rows]
        assert [row["note"] for row in rows] == [f"a, {number}" for number in range(7)] + [""]
    assert sites["colour"] == ["colour"] * 3 + ["grey"] * 4 + ["colour"], "image 3 is coloured, its case is grey"
    assert sites["size"] == ["small"] * 6 + ["large"] * 2
    assert [len(set(sites["case"][start:end])) for start, end in ((0, 3), (3, 6), (6, 7))] == [1, 1, 1]
    assert set(sites["case"]) == {"site1", "site2"}
    again = forked(script, tmp_path, "--by", "case")
    assert (again.returncode, "has a column site already" in again.stderr) == (2, True)
