"""Files that are whole or not there, and a disk that refuses: what it refuses is an OSError that names the file."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tskd.errors import RunFailed

_PART = ".part"
_DRAFTS = itertools.count()


@dataclass
class Draft:
    """A file's new content, whole and on the disk, under a hidden name beside the place that it is for."""

    path: Path
    partial: Path
    is_settled: bool = False
    """Published or discarded."""

    def publish(self) -> None:
        """Let the content take its place, in one step; raises OSError that names ``path`` where the disk refuses."""
        with naming(self.path):
            try:
                self.partial.replace(self.path)
            except BaseException:
                self.discard()
                raise
        self.is_settled = True

    def discard(self) -> None:
        """Remove the content; does nothing once it is published."""
        if not self.is_settled:
            self.partial.unlink(missing_ok=True)
            self.is_settled = True


def draft(path: Path, content: bytes) -> Draft:
    """Write what is to be published; raises OSError that names ``path`` where the disk refuses, and leaves nothing."""
    number = f"{os.getpid()}-{threading.get_ident()}-{next(_DRAFTS)}"
    partial = path.with_name(f".{number}{_PART}")  # short: the name itself may be a long one
    with naming(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return Draft(path, partial)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file in one step; after a power cut it holds the old content or the new.

    Raises OSError that names ``path`` where the disk refuses; nothing else is left behind.
    """
    draft(path, content).publish()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never a part."""
    write_atomic(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None where there is none that can be read: cut short, edited, or not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file and wait until it is on the disk: a power cut tears at most what comes after it."""
    with naming(path), path.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replaced_folder(place: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``place`` where the block ends well; else the old one stays."""
    partial, old = (place.with_name(f".{place.name}.{what}.{os.getpid()}") for what in ("new", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if place.exists():
            place.rename(old)
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # it may be what fills the disk
        if old.exists() and not place.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_room(folder: Path, needed: int, *, what: str, remedy: str) -> None:
    """Raise RunFailed where ``needed`` bytes would fill the folder's disk to more than nine tenths of what is free."""
    free = shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        raise RunFailed(f"{what} need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. Free some, or {remedy}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what the disk refuses in the block be an OSError that says where: ``write`` and several libraries do not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and not str(error.filename).endswith(_PART)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # named: the light part is without that library
            raise
        if refused := re.search(r"os error (\d+)", str(error)):
            number = int(refused[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
