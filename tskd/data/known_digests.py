"""Digests of data files that were read before: a data set of many gigabytes is hashed once, not at every start."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tskd.machine.disk import file_sha256, write_json

RACY_NS = 2_000_000_000
"""A file that was touched so shortly before it was hashed may change again within its time stamp's precision."""


class KnownDigests:
    """Sha256 of files by path; one counts while size, inode and both times (of content and of inode) are the same.

    The second time cannot be set, so that a file which another took the place of is hashed anew whatever its date is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = _read(path)
        self._seen: dict[str, list[int | str]] = {}

    def of(self, file: Path) -> str:
        """Return the sha256 of a file's bytes; raises OSError where it cannot be read."""
        now, status = time.time_ns(), file.stat()
        marks = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        name = str(file.absolute())
        known = self._before.get(name)
        digest = str(known[-1]) if known and known[:-1] == marks else file_sha256(file)
        if now - max(status.st_mtime_ns, status.st_ctime_ns) > RACY_NS:
            self._seen[name] = [*marks, digest]
        return digest

    def keep(self) -> None:
        """Write what is known; digests of files that were not asked for are kept too."""
        if any(self._before.get(name) != marks for name, marks in self._seen.items()):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self._before | self._seen)


def _read(path: Path) -> dict[str, list[int | str]]:
    """Return what an earlier start has kept; nothing where that is gone or damaged, since it is only a short cut."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    sound = isinstance(kept, dict) and all(isinstance(marks, list) and len(marks) == 5 for marks in kept.values())
    return kept if sound else {}
