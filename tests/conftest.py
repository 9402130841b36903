"""What tests share: commands and programs in processes of their own, forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

TIMEOUT = 1400
"""Seconds for one command, on a machine that does a dozen other things; most tests are ended before."""
Command = Callable[..., "subprocess.CompletedProcess[str]"]
PRELOADED = ["tskd.cli", "tskd.experiment.pipeline", "tskd.comparison.workflow", "tskd.deploy.predict", "tskd.report"]
"""Imported once, by the process that all commands are forked from: starting Python anew takes eight times as long."""


@dataclass(frozen=True)
class Started:
    """A command at work."""

    process: BaseProcess
    line: list[str]
    said: Path
    """Folder of what it says: ``out`` and ``err``."""

    def ended(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; what takes longer than :data:`TIMEOUT` is killed."""
        self.process.join(timeout=TIMEOUT)
        if self.process.is_alive():
            self.process.kill()
            raise subprocess.TimeoutExpired(self.line, TIMEOUT)
        return subprocess.CompletedProcess(self.line, self.process.exitcode or 0, self.text("out"), self.text("err"))

    def text(self, name: str) -> str:
        """Return what it has said so far on ``out`` or ``err``."""
        file = self.said / name
        return file.read_text(encoding="utf-8") if file.exists() else ""


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Started]:
    """Start ``tskd``, a Python file or ``-m`` and a module in a process forked from one that has only imported.

    What a fresh interpreter does is tested in ``test_cli.py``, ``test_wheel.py`` and ``test_nothing_leaves.py``.
    Comparisons within this process fork their runs from the same one, hence it is there before any of them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()

    def start(*arguments: object, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> Started:
        """``cwd``: where the process works and leaves what it says, in a folder ``said...``."""
        said = Path(tempfile.mkdtemp(prefix="said", dir=cwd)) if cwd else tmp_path_factory.mktemp("said")
        line, there = [*map(str, arguments)], {**os.environ, **(environment or {})}
        process = context.Process(target=_run, args=(line, said, there, cwd))
        process.start()
        return Started(process, line, said)

    return start


@pytest.fixture(scope="session")
def forked(started: Callable[..., Started]) -> Command:
    """Do what ``started`` does, and wait for the end."""
    return lambda *arguments: started(*arguments).ended()


@pytest.fixture(scope="session")
def tskd(forked: Command) -> Command:
    """Run ``tskd`` with arguments in a process of its own."""
    return partial(forked, "tskd")


def _run(line: list[str], said: Path, environment: dict[str, str], cwd: Path | None) -> None:
    os.chdir(cwd or Path.cwd())
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of ``sh -c 'pytest &'`` would ignore it
    sys.argv = line
    if line[0] == "tskd":
        from tskd.cli import main

        main()
    elif line[0] == "-m":
        sys.argv = line[1:]
        runpy.run_module(line[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(line[0]).parent))
        runpy.run_path(line[0], run_name="__main__")
