"""Files that lie in memory alone, for readers that take a ``Path``: what a server was sent never touches the disk.

A reader opens a file with ``path.open("rb")`` and asks ``path.stat()`` for its size; one that hands the name to a
library instead fails loudly here, and never opens a file of that name on the disk.
"""

from __future__ import annotations

import io
import itertools
import os
import stat
import sys
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache, wraps
from pathlib import Path, PosixPath, WindowsPath
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self, TypeVar

if sys.platform == "win32":
    _Path = WindowsPath
else:
    _Path = PosixPath

R = TypeVar("R")
_numbers = itertools.count(1)


class _InMemory(_Path):
    """What a path in memory never does: lead to the disk."""

    def __fspath__(self) -> NoReturn:
        raise TypeError("a file in memory has no place on the disk: read it with path.open")

    def resolve(self, strict: bool = False) -> Self:
        return self

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return True

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return not self.is_file()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return False


class MemoryFile(_InMemory):
    """A file of a :class:`MemoryFolder`; its content is gone when the folder is closed."""

    folder: MemoryFolder | None = None
    """None of paths derived from it, which are names alone."""

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self.folder is not None and self.name in self.folder.contents

    @property
    def content(self) -> bytes:
        """All of it; raises FileNotFoundError where the folder is closed."""
        content = None if self.folder is None else self.folder.contents.get(self.name)
        if content is None:
            raise FileNotFoundError(2, "No such file in memory", str(self))
        return content

    @property
    def parent(self) -> Path:  # type: ignore[override]
        return Path(*self.parts[:-1]) if self.folder is None else self.folder

    def open(self, mode: str = "r", *arguments: Any, **options: Any) -> BinaryIO:  # type: ignore[override]
        if mode != "rb":
            raise ValueError("a file in memory is opened with 'rb'")
        return io.BytesIO(self.content)

    def read_bytes(self) -> bytes:
        return self.content

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return _status(stat.S_IFREG | 0o400, len(self.content))


class MemoryFolder(_InMemory):
    """Files in memory under a name that no other folder of the process has; forgets them at its end."""

    contents: dict[str, bytes]
    kept: dict[Any, Any]
    """What readers keep of the files until the folder is closed, by reader."""
    at_close: list[Callable[[], None]]
    """Called when it is closed: what else holds a file forgets it."""

    @classmethod
    def of(cls, contents: Mapping[str, bytes]) -> Self:
        """Return a folder of files: plain name to content."""
        folder = cls(f"in-memory-{next(_numbers)}")
        folder.contents, folder.kept, folder.at_close = dict(contents), {}, []
        return folder

    @property
    def files(self) -> list[MemoryFile]:
        """In the order of their names."""
        return [self.file(name) for name in sorted(self.contents)]

    def file(self, name: str) -> MemoryFile:
        """Return one of the files."""
        path = MemoryFile(str(self), name)
        path.folder = self
        return path

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return _status(stat.S_IFDIR | 0o500, 0)

    def close(self) -> None:
        """Forget all content and all that was read from it; paths that somebody still holds lead nowhere."""
        self.contents.clear()
        self.kept.clear()
        while self.at_close:
            self.at_close.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def keeping(size: int) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Keep a reader's last results; those of a file in memory are kept by its folder, and go with it."""

    def wrap(read: Callable[..., R]) -> Callable[..., R]:
        of_disk = lru_cache(maxsize=size)(read)

        @wraps(read)
        def call(path: Path, *arguments: Hashable) -> R:
            folder = path.folder if isinstance(path, MemoryFile) else None
            known = of_disk if folder is None else folder.kept.setdefault(read, lru_cache(maxsize=size)(read))
            found: R = known(path, *arguments)
            return found

        return call

    return wrap


def _status(mode: int, size: int) -> os.stat_result:
    """Return a status without times: a file in memory does not change."""
    return os.stat_result((mode, 0, 0, 1, 0, 0, size, 0, 0, 0), {"st_mtime_ns": 0})
