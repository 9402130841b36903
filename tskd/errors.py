"""The errors that reach a user; everything else is a defect of ours and keeps its traceback."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """The input or the settings are wrong: the message says what was given, what is allowed and what to do (exit 2)."""


class RunFailed(RuntimeError):
    """The work could not be finished although input and settings were acceptable (exit 1)."""


class Paused(Exception):
    """The time limit was reached; the state is saved and the same command goes on from it."""


def name_of(error: BaseException) -> str:
    """Return the type of an exception for a message; with its library where the type alone says nothing (``error``)."""
    kind = type(error)
    return f"{kind.__module__}.{kind.__name__}" if kind.__name__.lower() == "error" else kind.__name__


def refused_by_system(error: OSError) -> str:
    """Return what the system refused and for which file, in one line with a remedy where there is one.

    Errors without a number come from a library, not from the system, and are raised again: they are defects.
    """
    if error.errno is None:
        raise error
    said = error.strerror or os.strerror(error.errno)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # of a copy it is the second file that has no room
    place = error.filename2 if full and error.filename2 is not None else error.filename
    where = "" if place is None else f"{os.fsdecode(place)}: "
    return f"{where}{said}.{_REMEDIES.get(error.errno, '')}"


_ROOM = " Make room there, or choose another place; what is finished is kept."
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: " A limit on the size of files (`ulimit -f`) is set; raise it, or choose another place.",
    errno.EACCES: " Allow it, or choose another place.",
    errno.EPERM: " Allow it, or choose another place.",
    errno.EROFS: " Choose another place.",
    errno.ENOTDIR: " A part of the path is a file. Choose another place.",
    errno.ELOOP: " Links lead in a circle there. Choose another place.",
    errno.EMFILE: " Raise the limit on open files (`ulimit -n`).",
    errno.ENFILE: " The system has too many files open.",
    errno.ENAMETOOLONG: " Shorten it.",
}


def require_folder(out: Path) -> None:
    """Raise UserError where ``out`` cannot take results, OSError where the system says why; it may be missing."""
    try:
        if not stat.S_ISDIR(out.stat().st_mode):
            raise UserError(f"{out} is a file. Give a folder for the results with --out.")
    except FileNotFoundError as error:
        if out.is_symlink():
            raise UserError(f"{out} is a link that leads nowhere. Give a folder for the results with --out.") from error


def require_file(path: Path, what: str) -> None:
    """Raise UserError where ``path`` is a pipe, a socket or a device: to read one may never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is not a file but a pipe, a socket or a device. Give {what}.")


def not_allowed(path: Path) -> UserError:
    """Return the error for a file that this user may not read."""
    return UserError(f"{path}: the file may not be read (permission denied). Allow it, or leave the file out.")


@contextmanager
def until_terminated() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what is finished can be told."""
    if threading.current_thread() is not threading.main_thread():  # only that one may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
