"""What journeys share: the command as a user types it."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

TIMEOUT = 600
"""Seconds for one command, on a machine that does a dozen other things."""
Command = Callable[..., "subprocess.CompletedProcess[str]"]
PRELOADED = ["tskd.cli", "tskd.experiment.pipeline", "tskd.comparison.workflow", "tskd.deploy.predict", "tskd.report"]
"""Imported once, by the process that all commands are forked from: starting Python anew takes eight times as long."""


@pytest.fixture(scope="session")
def tskd(forked: Command) -> Command:
    """Run ``tskd`` with arguments in a process of its own."""
    return partial(forked, "tskd")


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Run ``tskd`` or a Python file with arguments in a process forked from one that has done nothing but import.

    What a fresh interpreter does is tested in ``test_cli.py``, ``test_wheel.py`` and where commands are killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        line, said = [*map(str, arguments)], tmp_path_factory.mktemp("said")
        process = context.Process(target=_run, args=(line, said, dict(os.environ)))
        process.start()
        process.join(timeout=TIMEOUT)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(line, TIMEOUT)
        out, err = ((said / name).read_text(encoding="utf-8") for name in ("out", "err"))
        return subprocess.CompletedProcess(line, process.exitcode or 0, out, err)

    return command


def _run(line: list[str], said: Path, environment: dict[str, str]) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = line
    if line[0] == "tskd":
        from tskd.cli import main

        main()
    else:
        sys.path.insert(0, str(Path(line[0]).parent))
        runpy.run_path(line[0], run_name="__main__")
