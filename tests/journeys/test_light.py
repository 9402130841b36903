"""The light part: what a clinic installs works in a process that has none of the training libraries."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.test_network_file import network
from tskd.deploy.bundle import write_sums
from tskd.extras import EXTRAS

ROOT = Path(__file__).parents[2]
WITHOUT = """
import errno, os, signal, sys

class Without:
    '''Finds what another finder finds, but for the modules that are taken to be not installed.'''
    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

def hide(modules):
    for name in modules:
        sys.modules.pop(name, None)
    sys.meta_path[:] = [Without(finder, set(modules)) for finder in sys.meta_path]

def be_windows():
    for module, names in POSIX.items():
        for name in names:
            if hasattr(sys.modules[module], name):
                delattr(sys.modules[module], name)

POSIX = {
    "os": ["fork", "killpg", "setsid", "getuid", "geteuid", "getgid", "uname", "mkfifo", "nice", "sysconf",
           "sched_getaffinity", "sched_setaffinity", "pread", "pwrite", "posix_fadvise", "O_NOFOLLOW", "O_DIRECTORY",
           "O_NONBLOCK", "O_CLOEXEC", "getloadavg", "chown", "fchmod", "wait3", "WNOHANG", "sync", "getpgid"],
    "signal": ["SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "setitimer", "alarm",
               "pthread_sigmask", "pthread_kill", "sigwait"],
    "errno": ["EREMOTEIO", "ENOMEDIUM", "ENOKEY", "EUCLEAN", "ESTRPIPE"],
}
"""
"""A program's beginning. Linux's errors that Windows has no number for, as its Python has them not."""
POSIX_MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "pty", "tty", "syslog", "readline", "curses")
TRAINING = sorted({module for extra in EXTRAS.values() for module in extra.modules})
COMMAND = "hide({blocked!r}); from tskd.cli import main; main({line!r})"


def without(blocked: list[str], code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter that lacks modules."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", WITHOUT + code]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def tskd(cwd: Path, *line: str) -> subprocess.CompletedProcess[str]:
    """Run a command without the training part."""
    return without(TRAINING, COMMAND.format(blocked=TRAINING, line=[*line]), cwd)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that marks what is red, and a data folder of two images with masks."""
    folder = tmp_path_factory.mktemp("light")
    model, data = folder / "model", folder / "data"
    model.mkdir()
    (model / "model.onnx").write_bytes(network().SerializeToString())
    (model / "model.json").write_text(json.dumps({"classes": ["red"], "input": {"window": None}}))
    write_sums(model)
    noise = np.random.default_rng(0)
    for number in range(6):
        pixels = noise.integers(0, 100, (40, 40, 3), dtype=np.uint8)
        pixels[10:20, 5 : 15 + number] = (250, 10, 10)
        for kind, what in (("images", pixels), ("masks", (pixels[..., 0] > 200).astype(np.uint8) * 255)):
            (data / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(what).save(data / kind / f"scan{number}.png")
    return folder


@pytest.mark.parametrize("line", [["--help"], ["recipes"], ["check", "data"], ["doctor"], ["predict", "--help"]])
def test_commands_need_no_training_library(line: list[str], folder: Path) -> None:
    """Red where a module on the way imports one, such as a report's pandas in the check."""
    done = tskd(folder, *line)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_masks_are_right_without_them(folder: Path, tmp_path: Path) -> None:
    done = tskd(folder, "predict", "model", "data/images", "--out", str(tmp_path / "masks"), "--overlays", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["predictions"]) == 6
    mask = np.asarray(Image.open(tmp_path / "masks" / "scan2.png"))
    assert np.array_equal(mask > 0, np.asarray(Image.open(folder / "data" / "masks" / "scan2.png")) > 0)


def test_scans_are_scored_without_them(folder: Path, tmp_path: Path) -> None:
    """Red where scores, their interval or the overlays need what only training has."""
    done = tskd(folder, "score", "model", "data", "--out", str(tmp_path / "scores"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["dice"], found["dice_ci95"], found["n_cases"]) == (1.0, [1.0, 1.0], 6)


def test_a_server_answers_without_them(folder: Path) -> None:
    """Red where the page's examples are drawn by what only training has."""
    code = f"""
hide({TRAINING!r})
from pathlib import Path
from starlette.testclient import TestClient
from tskd.deploy.bundle import open_bundle
from tskd.serve.app import Service, create_app
from tskd.serve.guard import Access
from tskd.serve.limits import Limits
app = create_app(Service(open_bundle(Path("model")), Limits(), Access()))
with TestClient(app, base_url="http://127.0.0.1") as client:
    image = Path("data/images/scan1.png").read_bytes()
    found = client.post("/v1/segment", files={{"file": ("scan1.png", image)}}).json()
    examples = client.get("/v1/model").json()["examples"]
    print(found["classes"][0]["pixels"] > 0, [client.post(f"/v1/examples/{{one}}").status_code for one in examples])
"""
    done = without(TRAINING, code, folder)
    assert done.stdout.splitlines() == [f"True {[200] * 5}"], done.stderr


def test_python_predicts_scores_and_checks_without_them(folder: Path) -> None:
    code = f"""
hide({TRAINING!r})
import numpy as np, tskd
from PIL import Image
found = tskd.load("model").predict("data/images/scan1.png")
truth = np.asarray(Image.open("data/masks/scan1.png")) > 0
score = tskd.score(found, truth, spacing=(0.5, 0.5))[0]
print(score["dice"], score["hd95_mm"], found.areas[0]["pixels"] == truth.sum(), tskd.check("data").usable)
print(found._repr_html_().count("<table"), repr(found))
"""
    done = without(TRAINING, code, folder)
    assert done.stdout.splitlines() == ["1.0 0.0 True True", "1 Prediction(40x40: red 6.9%)"], done.stderr


@pytest.mark.parametrize(
    "line",
    [
        ["run", "--data", "data"], ["run", "auto", "--data", "data"], ["demo"], ["stage", "prepare", "--data", "data"],
        ["compare", "smoke"], ["export", "data"], ["report", "data"], ["weights", "data"],
    ],
    ids=lambda line: " ".join(line),
)  # fmt: skip
def test_what_trains_says_in_one_sentence_what_it_needs(line: list[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(folder / "data")
    done = tskd(tmp_path, *line)
    assert done.returncode == 2, done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"error: tskd {line[0]} needs the part of tskd for training")
    assert said.endswith("[train]'")
    assert [one.name for one in tmp_path.iterdir()] == ["data"], "nothing half-written"


@pytest.mark.parametrize("call", ["tskd.run('quick', 'data')", "tskd.compare('smoke')", "tskd.distill"])
def test_python_says_so_too(call: str, folder: Path) -> None:
    code = f"hide({TRAINING!r})\nimport tskd\ntry:\n    {call}\nexcept tskd.UserError as error:\n    print(error)"
    done = without(TRAINING, code, folder)
    assert done.stdout.startswith(f"{call.partition('(')[0]} needs the part of tskd for training"), done.stderr
    assert done.stdout.endswith("[train]'\n")


def test_a_defect_of_ours_keeps_its_traceback(folder: Path) -> None:
    """Red where every missing module is said to be of the training part."""
    done = without(["onnxruntime"], "hide(['onnxruntime']); from tskd.cli import main; main(['doctor'])", folder)
    assert "ModuleNotFoundError" in done.stderr
    assert "[train]" not in done.stderr


def test_nothing_that_windows_lacks_is_needed(folder: Path, tmp_path: Path) -> None:
    """Red where a module of the light part uses a call, a signal or an error number of POSIX without asking.

    The libraries are imported before it is taken away: they ask for themselves. What this cannot show: paths with
    backslashes, files that are open, and the libraries' own wheels there.
    """
    code = f"""
import subprocess, tempfile, threading, concurrent.futures, asyncio, uuid, shutil
import numpy, PIL.Image, nibabel, pydicom, onnxruntime, imagecodecs, tifffile, rich.console, typer, filelock
hide({[*TRAINING, *POSIX_MODULES]!r})
be_windows()
import tskd
from tskd.cli import main
from tskd.machine.memory import peak_memory_mb
assert peak_memory_mb() >= 0
for line in (["check", "data"], ["predict", "model", "data/images", "--out", {str(tmp_path / "masks")!r}], ["doctor"]):
    try:
        main(line)
    except SystemExit as end:
        assert not end.code, (line, end.code)
print("done")
"""
    done = without([], code, folder)
    assert done.stdout.endswith("done\n"), done.stderr
    assert len(list((tmp_path / "masks").glob("*.png"))) == 6


def test_the_contract_forbids_what_the_extra_brings() -> None:
    """Red where a package is added to the training part and modules of the light part may still import it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if one["name"].startswith("The light part")]
    assert {*contract["forbidden_modules"]} == {*EXTRAS["train"].modules}
    names = {
        part.split("[")[0].split(">")[0].split("=")[0] for part in settings["project"]["optional-dependencies"]["train"]
    }
    brought = {module.replace("_", "-") for module in EXTRAS["train"].modules}
    assert brought - names == {"huggingface-hub"}, "comes with transformers"
    assert names <= brought


def test_errors_that_only_linux_numbers_are_hidden_by_the_test_above() -> None:
    assert hasattr(errno, "EREMOTEIO") == (sys.platform == "linux")
