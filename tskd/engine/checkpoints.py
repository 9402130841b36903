"""Resumable state on disk: written beside its checksum and renamed into place; the last two are kept."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from tskd.artifacts import CHECKPOINTS
from tskd.console import warn
from tskd.machine.disk import file_sha256, write_atomic

KEPT = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state after ``step`` steps and drop all but the newest two; a kill at any moment loses none of them."""
    folder = folder / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = folder / f"step-{step:08d}.pt"
    content = buffer.getvalue()
    checksum = hashlib.sha256(content).hexdigest()
    write_atomic(path.with_suffix(".sha256"), checksum.encode())  # first, so that no state is ever without it
    write_atomic(path, content)
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT]:
        old.with_suffix(".sha256").unlink(missing_ok=True)
        old.unlink()
    return path


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the newest state whose checksum fits, or None; a damaged one is passed over with a warning."""
    for path in sorted((folder / CHECKPOINTS).glob("step-*.pt"), reverse=True):
        checksum = path.with_suffix(".sha256")
        if checksum.is_file() and checksum.read_bytes() == file_sha256(path).encode():
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            return state
        warn(f"checkpoint {path.name} is damaged or unfinished: it is passed over")
    return None
