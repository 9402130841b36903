"""The one boundary around foreign files: whatever a decoder raises becomes one message that names the file."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tskd.errors import UserError, name_of, not_allowed

Explain = Callable[[BaseException], str | None]
"""What an exception of a library means, in whole sentences that end with the remedy; None: nothing special."""

MAX_PIXELS = 64_000_000
"""The most pixels of an image or slice: predicting so many takes 2.5 GB of memory with one class."""
MAX_SIDE = 65_500
"""The most pixels of a side, as in JPEG: no camera or scanner writes longer ones, and resizing them takes minutes."""

_TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)
_DRIVE = tuple(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ENODEV", "ENXIO", "ETIMEDOUT", "EREMOTEIO", "EHOSTDOWN")
    if hasattr(errno, name)  # EREMOTEIO is Linux's alone
)


@contextmanager
def reading(path: Path, explain: Explain = lambda error: None, *, what: str = "file") -> Iterator[None]:
    """Turn every exception of the block into a :class:`UserError` that begins with ``path``.

    Decoders raise anything on a bad file, from ``struct.error`` to ``RecursionError``, so no list of types is complete.
    What the system refuses is told as that; only the rest is called damaged, and then without the library's own
    text, which may quote what a file says of a patient. Stopping by hand (``KeyboardInterrupt``) is passed on.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 (see above)
        raise _named(path, explain(error) or _plain(error, what), error) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a decoder in Rust: no subclass of Exception
            raise
        raise _named(path, explain(error) or _plain(error, what), error) from None


def _named(path: Path, message: str, error: BaseException) -> UserError:
    return not_allowed(path) if isinstance(error, PermissionError) else UserError(f"{path}: {message}")


def _plain(error: BaseException, what: str) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, FileNotFoundError):
        return "there is no such file any more; it was moved or removed meanwhile. Put it back, or start again."
    if isinstance(error, MemoryError) or code == errno.ENOMEM:
        return "it does not fit into the memory that is free. Cut it into parts, or read it on a larger machine."
    if code in _TOO_MANY_OPEN:
        return "the system allows no more open files. Close other programs, or raise the limit (ulimit -n)."
    if code in _DRIVE:
        return f"the disk or network drive does not answer ({name_of(error)}). Try again when it does."
    return (
        f"the {what} is damaged, cut short, or in an encoding that cannot be read ({name_of(error)}). "
        "Copy it again from the source, or remove it."
    )


def require_size(height: int, width: int, path: Path) -> None:
    """Raise :class:`UserError` for an image without a pixel, and beyond :data:`MAX_PIXELS` or :data:`MAX_SIDE`."""
    if min(height, width) < 1:
        raise UserError(f"{path}: states a size of {width}x{height} pixels, which is not an image. Remove it.")
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise UserError(
            f"{path}: more than {MAX_PIXELS // 10**6} million pixels, or a side of more than {MAX_SIDE}; opening it "
            "could exhaust the memory. Cut it into tiles or reduce it first."
        )
