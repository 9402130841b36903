"""Nothing leaves the machine: neither a question to a name server nor a packet, and no library leaves files behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tskd
from tests.journeys.isolated import listen_to, needs_namespaces

STEPS = {"steps": 2, "validate_every": 2, "batch_size": 2}
TINY = {
    "data": {"image_size": 32, "labels": 8, "phantom": {"family": "dermoscopy", "train": 12, "test": 4, "size": 48}},
    "teacher": {"name": "timm/test_resnet", "weights": "random", "adaptation": "full", **STEPS},
    "diffusion": {"steps": 2, "batch_size": 2, "sampling_steps": 2},
    "transfer": {"synthetic": 4},
    "distill": {"steps": 2, "batch_size": 2, "cache": "on", "views": 1},
    "finetune": STEPS,
    "student": {"backbone": "test_vit", "patch": 16},
    "control": {"channels": [8, 16, 32], **STEPS},
    "export": {"int8": True},
    "engine": {"accelerator": "cpu"},
}
STATED_CACHES = {".cache/matplotlib", ".config/matplotlib"}
"""Below the home folder, as docs/how-to/deploy-offline.md names them."""
CALLS = """
import ctypes, socket
ctypes.CDLL(None).gethostbyname(b"native.example")
for address in ("name.example", 443), ("203.0.113.7", 8443):
    try:
        socket.create_connection(address, timeout=2)
    except OSError:
        pass
"""


def left_in(home: Path) -> set[str]:
    """Return the files below a home folder, those in the stated caches left out."""
    files = (path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
    return {name for name in files if not any(name.startswith(f"{cache}/") for cache in STATED_CACHES)}


@needs_namespaces
def test_the_listener_hears_names_and_addresses_of_python_and_of_native_code(tmp_path: Path) -> None:
    heard = listen_to([sys.executable, "-c", CALLS], tmp_path / "home")
    assert heard.code == 0
    assert heard.requests == ["address 203.0.113.7", "name name.example", "name native.example"]


@needs_namespaces
@pytest.mark.slow
def test_run_export_and_predict_ask_no_one_and_leave_nothing_behind(tmp_path: Path) -> None:
    recipe, out, images = tmp_path / "recipe.yaml", tmp_path / "out", tmp_path / "images"
    recipe.write_text(json.dumps(TINY), encoding="utf-8")
    images.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(images / "one.png")
    command = [sys.executable, "-m", "tskd.cli"]
    for number, arguments in enumerate((["run", recipe, "--out", out], ["predict", out, images, "--out", out / "o"])):
        heard = listen_to([*command, *arguments], tmp_path / f"home{number}")
        assert heard.code == 0, heard.said
        assert heard.requests == []
        assert left_in(tmp_path / f"home{number}") == set()
    assert {path.name for path in tmp_path.iterdir() if "home" not in path.name} == {"recipe.yaml", "out", "images"}


def test_every_import_of_a_module_of_ours_silences_the_libraries_first() -> None:
    """A user's own contrary setting does not undo what README promises."""
    code = "import tskd.deploy.bundle, os, json; print(json.dumps(dict(os.environ)))"
    told = {**os.environ, **dict.fromkeys(tskd.SILENCED, "")}
    seen = json.loads(subprocess.check_output([sys.executable, "-c", code], env=told))
    assert {name: seen[name] for name in tskd.SILENCED} == tskd.SILENCED
