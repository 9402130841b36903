"""The commands as a user meets them: help, mistakes, a folder with broken files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Command, Started
from tests.serving import picture, write_bundle
from tskd.cli import main

SMOKE = Path(__file__).parents[2] / "recipes/compare/smoke.yaml"
HEAVY = ("torch", "numpy", "timm", "transformers", "monai", "matplotlib", "pydantic")


def test_help_names_every_command_with_an_example(tskd: Command) -> None:
    names = ("demo", "check", "run", "stage", "compare", "report", "export", "predict", "score", "doctor")
    overview = tskd("--help")
    assert overview.returncode == 0
    for name in names:
        assert name in overview.stdout
        told = tskd(name, "--help").stdout
        assert f"Example: tskd {name}" in told
        assert "\\" not in told, "what is written for rich"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [(["", "--out", "x"], "argument 3"), (["scans", "--out", ""], "argument 5"), (["--out="], "--out")],
)
def test_an_empty_argument_is_no_folder(
    arguments: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable of the shell that is not set: as a path it would be the folder that the shell is in."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["predict", "model", *arguments])
    assert ended.value.code == 2
    assert f"error: {what} is empty: tskd predict model" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_that_of_the_package(tskd: Command) -> None:
    assert tskd("--version").stdout == f"tskd {version('tskd')}\n"


def test_help_and_import_stay_light() -> None:
    code = f"import sys, tskd, tskd.cli; print([m for m in {HEAVY} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_command_whose_stderr_is_closed_does_its_work(tmp_path: Path) -> None:
    """As a service starts it: ``2>&-``. Red where nothing is predicted, or a warning stands in the JSON."""
    write_bundle(tmp_path / "model")
    (tmp_path / "in").mkdir()
    Image.fromarray(picture()).save(tmp_path / "in/a.png")
    (tmp_path / "in/broken.png").write_bytes(b"no image")
    line = [sys.executable, "-m", "tskd.cli", "predict", tmp_path / "model", tmp_path / "in", "--json", "--out"]
    answer = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *line, tmp_path / "out"], stdout=subprocess.PIPE, text=True
    )
    assert answer.returncode == 2, "one image is broken"
    assert [Path(one["file"]).name for one in json.loads(answer.stdout)["predictions"]] == ["a.png"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "predictions.csv"}


@pytest.mark.parametrize(
    ("arguments", "said"), [(["run"], "run: loading libraries, a few seconds\n"), (["run", "--help"], "")]
)
def test_a_start_that_takes_seconds_says_so_before_it_takes_them(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red where the line comes after the imports, or before the help, which is there at once."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setitem(sys.modules, "tskd.experiment.opening", None)  # the first of what is slow
    with pytest.raises(SystemExit if "--help" in arguments else ImportError):
        main(arguments)
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "missing.yaml"), ["missing.yaml", "no such recipe"]),
        (("run", "--set", "teacher.rnk=4"), ["teacher.rnk", "rank"]),
        (("run", "--set", "method=magic"), ["magic", "task_kd"]),
        (("run", "--data", "no/such/folder"), ["no/such/folder"]),
        (("stage", "dance"), ["dance", "teacher"]),
        (("compare", "missing.yaml"), ["missing.yaml", "no such grid"]),
        (("run", "--set", "method=teacher"), ["'teacher' is what students learn from", "task_kd", "control_pseudo"]),
        (("run", "--set", "distill.encoder_loss=nothing"), ["nothing", "cosine"]),
        (("run", "--set", "baselines=[mae]", "--set", "student.backbone=resnet10t"), ["mae", "deit_small_patch16_224"]),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_2(
    tskd: Command, tmp_path: Path, arguments: tuple[str, ...], expected: list[str]
) -> None:
    answer = tskd(*arguments, "--out", tmp_path / "out")
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    for text in expected:
        assert text in answer.stderr
    assert answer.stdout == ""
    assert not (tmp_path / "out").exists(), "it was found before any work"


def test_results_are_not_written_into_a_file(tskd: Command, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for arguments in (("run",), ("stage", "prepare"), ("compare", SMOKE)):
        answer = tskd(*arguments, "--out", tmp_path / "taken")
        assert answer.returncode == 2
        assert "taken is a file. Give a folder for the results with --out." in answer.stderr
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.slow
def test_ctrl_c_says_that_nothing_is_lost(started: Callable[..., Started], tmp_path: Path) -> None:
    line = ["run", "--out", tmp_path]
    for setting in ("steps=100000", "name=timm/test_resnet", "weights=random", "adaptation=full"):
        line += ["--set", f"teacher.{setting}"]
    for setting in ("image_size=32", "labels=6", "phantom.size=32", "phantom.train=10", "phantom.test=4"):
        line += ["--set", f"data.{setting}"]
    running = started("tskd", *line)
    try:
        while "teacher: " not in running.text("err"):
            assert running.process.is_alive(), "the run ended by itself"
            time.sleep(0.05)
        os.kill(running.process.pid, signal.SIGINT)
        answer = running.ended()
    finally:
        running.process.kill()
    assert answer.returncode == 130
    assert "stopped; what is finished is kept, the same command goes on" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_check_names_ten_kinds_of_broken_files(tskd: Command, tmp_path: Path) -> None:
    broken = write_broken_folder(tmp_path / "data")
    answer = tskd("check", tmp_path / "data", "--json")
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    named = {Path(problem["path"]).name for problem in json.loads(answer.stdout)["problems"]}
    assert broken <= named
    assert len(broken) == 10


@pytest.mark.parametrize("command", ["check", "predict"])
def test_with_json_there_is_an_object_on_stdout_whatever_is_wrong(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red where a script that asks for JSON reads an empty stdout."""
    from tskd.cli import main

    further = [str(tmp_path), "--out", str(tmp_path / "out")] if command == "predict" else []
    with pytest.raises(SystemExit) as end:
        main([command, str(tmp_path / "absent"), *further, "--json"])
    answer, told = capsys.readouterr()
    assert end.value.code == 2
    assert "absent" in told
    said = json.loads(answer)
    assert "absent" in (said["error"] if command == "predict" else said["problems"][0]["message"])


class _TerminatedBy:
    """An import system in which SIGTERM comes while one module is looked for."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, *_: object) -> None:
        if name == self.module:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(("command", "module"), [("check", "tskd.data.check"), ("predict", "tskd.deploy.predict")])
def test_a_stop_during_the_imports_leaves_an_object_on_stdout(
    command: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red where SIGTERM is listened to only once the imports, which take seconds on a busy machine, are done."""
    from tskd.cli import main

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [_TerminatedBy(module), *sys.meta_path])
    further = [str(tmp_path), "--out", str(tmp_path / "out")] if command == "predict" else []
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit, match="130"):
            main([command, str(tmp_path), *further, "--json"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "stopped before the end" in str(json.loads(capsys.readouterr().out))


def test_check_accepts_a_good_folder(tskd: Command, tmp_path: Path) -> None:
    write_images(tmp_path / "data", count=12)
    answer = tskd("check", tmp_path / "data")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "12" in answer.stdout


def test_check_reads_as_the_settings_say(tskd: Command, tmp_path: Path) -> None:
    write_images(tmp_path / "data", count=12)
    answer = tskd("check", tmp_path / "data", "--set", "data.window=[10, 60]", "--set", "data.classes=[cyst]")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "10 becomes black, 60 white" in answer.stdout
    assert "cyst" in answer.stdout
    answer = tskd("check", tmp_path / "data", "--set", "data.labels=3")
    assert answer.returncode == 2
    assert "check does not use data.labels. It takes data.layout," in answer.stderr
    part = tskd("check", "data", "--set", "data.where={site: north}")
    assert (part.returncode, "check does not use data.where" in part.stderr) == (2, True), "it was ignored"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["run", "--minutes", "nan"], "nan is not a number"),
        (["compare", "smoke", "--executor", "ray", "--gpus", "nan"], "nan is not a number"),
        (["export", "out", "--web", "page", "--site", "north"], "write that of the site first"),
    ],
)
def test_options_that_say_nothing_are_refused(line: list[str], said: str, tskd: Command) -> None:
    answer = tskd(*line)
    assert (answer.returncode, said in answer.stderr) == (2, True), answer.stderr


def test_run_refuses_broken_files_by_name_and_leaves_nothing_of_its_choices(tskd: Command, tmp_path: Path) -> None:
    write_images(tmp_path / "data", count=12)
    (tmp_path / "data/images/003.png").write_bytes(b"")
    command = ("run", "--data", tmp_path / "data", "--out", tmp_path / "out", "--set", "data.image_size=32")
    answer = tskd(*command)
    assert answer.returncode == 2
    assert "003.png" in answer.stderr
    assert not (tmp_path / "out/run.json").exists()
    assert not (tmp_path / "out/recipe.yaml").exists(), "choices of a run that never began"
    write_images(tmp_path / "data", count=12)
    answer = tskd(*command, "--minutes", 0.001)
    assert answer.returncode == 0, answer.stderr
    assert "the choices of before hold" not in answer.stderr
    assert (tmp_path / "out/recipe.yaml").is_file()
    assert "the choices of before hold" in tskd(*command, "--minutes", 0.001).stderr


def test_run_refuses_masks_that_say_nothing(tskd: Command, tmp_path: Path) -> None:
    """Twelve black masks: Dice was 1.000."""
    write_images(tmp_path / "data", count=12)
    for path in (tmp_path / "data/masks").iterdir():
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(path)
    for command in (["check"], ["run", "--out", tmp_path / "out", "--data"]):
        answer = tskd(*command, tmp_path / "data")
        assert answer.returncode == 2
        assert "no mask of 12 holds any foreground" in " ".join((answer.stdout + answer.stderr).split())
    assert not (tmp_path / "out/run.json").exists()


def write_images(root: Path, *, count: int) -> None:
    """A folder of different images with a bright square each."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = rng.integers(0, 120, (48, 48), dtype=np.uint8)
        mask = np.zeros((48, 48), np.uint8)
        mask[10 : 20 + number, 10:30] = 255
        image[mask > 0] += 100
        Image.fromarray(image).save(root / f"images/{number:03d}.png")
        Image.fromarray(mask).save(root / f"masks/{number:03d}.png")


def write_broken_folder(root: Path) -> set[str]:
    """Write a folder with ten kinds of broken files; return their names."""
    write_images(root, count=20)
    images, masks = root / "images", root / "masks"
    whole = (images / "001.png").read_bytes()
    (images / "000.png").write_bytes(b"")
    (images / "001.png").write_bytes(whole[: len(whole) // 2])
    (images / "002.png").write_text("this is not an image")
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(masks / "003.png")
    Image.fromarray(np.full((48, 48), 7, np.uint8)).save(masks / "004.png")
    (masks / "orphan.png").write_bytes((masks / "005.png").read_bytes())
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(images / "006.bmp")  # a second image called 006
    values = np.full((48, 48), np.nan, np.float32)
    (images / "007.png").unlink()
    Image.fromarray(values).save(images / "007.tif")
    pages = [Image.fromarray(np.full((48, 48), tone, np.uint8)) for tone in (0, 90)]
    (images / "008.png").unlink()
    pages[0].save(images / "008.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)).save(masks / "009.png")
    return {
        "000.png", "001.png", "002.png", "003.png", "004.png", "orphan.png", "006.bmp", "007.tif", "008.tif", "009.png",
    }  # fmt: skip
