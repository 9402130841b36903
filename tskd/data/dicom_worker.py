"""Decode frames for another process: ``python -m tskd.data.dicom_worker``.

It says :data:`READY` when it is. Each line of stdin is JSON, ``[path, frame]``. The answer on stdout is a line of JSON,
``{"shape": ..., "dtype": ...}`` followed by the values in C order, or ``{"error": NAME}`` with the exception's type
alone: its text may quote the file.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tskd.data.dicom_pixels import READY, decode_file
from tskd.errors import name_of

_MEMORY = 8 * 2**30  # bytes of address space: damaged data ask for any amount


def answer(line: bytes) -> tuple[dict[str, object], np.ndarray | None]:
    """Return the answer's head and the values for one line of stdin."""
    path, index = json.loads(line)
    try:
        values = np.ascontiguousarray(decode_file(Path(path), index))
    except BaseException as error:  # noqa: BLE001 (whatever a decoder raises, a panic of Rust among it)
        return {"error": _reason(error)}, None
    return {"shape": values.shape, "dtype": values.dtype.str}, values


def _reason(error: BaseException) -> str:
    """pydicom sums up all decoders in one RuntimeError; what is not supported is told there in its words."""
    unsupported = "does not support" in str(error) or isinstance(error, NotImplementedError)
    return "NotImplementedError" if unsupported else name_of(error)


def main() -> None:
    """Answer until stdin is closed."""
    _limit()
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a decoder that prints would break the answers
    channel.write(READY)
    channel.flush()
    _serve(sys.stdin.buffer, channel)


def _serve(questions: BinaryIO, channel: BinaryIO) -> None:
    for line in questions:
        head, values = answer(line)
        channel.write(json.dumps(head).encode() + b"\n")
        if values is not None:
            channel.write(values.data.cast("B") if values.size else b"")
        channel.flush()


def _limit() -> None:
    with suppress(ImportError, ValueError, OSError):  # not on every system; then only the time is limited
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


if __name__ == "__main__":
    main()
