"""The package as it is installed: outside the repository, with its recipes and templates."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = (
    "data.phantom.train=10", "data.phantom.test=4", "data.phantom.size=64", "data.labels=6",
    "teacher.name=timm/test_resnet", "teacher.weights=random", "teacher.adaptation=full", "teacher.steps=2",
    "student.backbone=test_vit", "student.patch=16", "control.channels=[8,16,32]",
    "distill.steps=2", "finetune.steps=2", "control.steps=2", "export.parity_cases=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package alone, as a wheel installs it; its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = folder / "source"
    _copy_source(source)
    subprocess.run([*line, "--target", str(folder / "site"), str(source)], check=True, capture_output=True)
    return folder / "site"


def _copy_source(folder: Path) -> None:
    """Copy what a wheel is built from: setuptools writes into the folder it builds in."""
    shutil.copytree(ROOT / "tskd", folder / "tskd", ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)


def tskd(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tskd.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400, check=False)


def test_recipes_are_found_by_name_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    """Red where a file of the package is not packed: a recipe, a grid, a template of the report."""
    listed = tskd(installed, tmp_path, "recipes")
    assert "tskd run quick\n    Minutes instead of an hour" in listed.stdout
    assert "tskd compare smoke" in listed.stdout
    changes = [part for one in TINY for part in ("--set", one)]
    done = tskd(installed, tmp_path, "run", "quick", "--out", "here", *changes)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "report.html").stat().st_size > 50_000
    where = [sys.executable, "-c", "import tskd; print(tskd.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    answer = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(answer.stdout.strip()).is_relative_to(installed), "not the repository's"
