"""Decode frames for another process: ``python -m tskd.data.dicom_worker``.

It says :data:`READY` when it is. Each line of stdin is JSON, ``[path, frame]``; of a file in memory ``[name, frame,
bytes]``, so many of which follow the line, or ``[name, frame, null]`` for the one that was sent last. The answer on
stdout is a line of JSON, ``{"shape": ..., "dtype": ...}`` followed by the values in C order, or ``{"error": NAME}``
with the exception's type alone: its text may quote the file.
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
from tskd.data.memory_files import MemoryFolder
from tskd.errors import name_of

_SENT = "sent.dcm"
_MEMORY = 8 * 2**30  # bytes of address space: damaged data ask for any amount


class Files:
    """Where a question's file is: on the disk, or in memory, of which the last one is kept."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.sent = MemoryFolder.of({})

    def find(self, name: str, length: int | None = None, *, in_memory: bool) -> Path:
        """Return the path to read; ``length`` bytes of the stream are the content of a new file in memory."""
        if not in_memory:
            return Path(name)
        if length is not None:
            self.sent.close()
            self.sent = MemoryFolder.of({_SENT: self.stream.read(length)})
        return self.sent.file(_SENT)


def answer(line: bytes, files: Files) -> tuple[dict[str, object], np.ndarray | None]:
    """Return the answer's head and the values for one line of stdin."""
    name, index, *length = json.loads(line)
    path = files.find(name, *length, in_memory=bool(length))
    try:
        values = np.ascontiguousarray(decode_file(path, index))
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
    files = Files(questions)
    for line in iter(questions.readline, b""):
        head, values = answer(line, files)
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
