"""The errors that reach a user; everything else is a defect of ours and keeps its traceback."""

from __future__ import annotations

from pathlib import Path


class UserError(ValueError):
    """The input or the settings are wrong: the message says what was given, what is allowed and what to do (exit 2)."""


class RunFailed(RuntimeError):
    """The work could not be finished although input and settings were acceptable (exit 1)."""


class Paused(Exception):
    """The time limit was reached; the state is saved and the same command goes on from it."""


def not_allowed(path: Path) -> UserError:
    """Return the error for a file that this user may not read."""
    return UserError(f"{path}: the file may not be read (permission denied). Allow it, or leave the file out.")
