"""The pixels of one DICOM frame as stored values; those of compressed files are decoded by a process that may die.

The decoders of JPEG, JPEG-LS, JPEG 2000 and RLE are foreign code in C, C++ and Rust: on damaged data some of them end
the process, hang or take all memory. So they run in a child (:mod:`tskd.data.dicom_worker`) which is started once,
asked frame by frame and replaced when it dies.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.pixels import as_pixel_options, get_decoder
from pydicom.uid import UID, UID_dictionary

from tskd.data import dicom_jpeg
from tskd.data.dicom_files import Head, open_dicom, read_head, reading_dicom, require_image
from tskd.data.memory_files import MemoryFile
from tskd.errors import UserError
from tskd.machine.memory import cores

READY = b"ready\n"
"""First line of the child."""
SECONDS = 60.0
"""What one compressed frame may take."""

dicom_jpeg.register()

_DAMAGED = "Copy it again from the source, or remove it."
_SAVE_PLAIN = "Save it uncompressed (`gdcmconv --raw IN OUT` or `dcmdjpeg IN OUT` do it)."


def read_values(head: Head, index: int | None) -> np.ndarray:
    """Return the stored values of one frame, (H, W) or (H, W, 3), bits beyond those stored cleared, colours as RGB.

    ``index`` None is the only frame. Raises :class:`UserError` naming the file, and the codec where one is missing.
    """
    with reading_dicom(head.path):
        require_image(head, index)
        return stored_values(head, index)


def stored_values(head: Head, index: int | None) -> np.ndarray:
    """Return what :func:`read_values` does, of a file that need not be a scan, such as a segmentation."""
    with reading_dicom(head.path):
        _require_decoder(head)
        if head.syntax.is_encapsulated:
            return _decode_elsewhere(head.path, index or 0, _name(head.syntax))
        return decode(head, index or 0)


def decode(head: Head, index: int) -> np.ndarray:
    """Decode one frame in this process; raises whatever the decoder does."""
    assert head.pixels is not None
    if head.data.BitsAllocated == 1 and head.syntax.is_little_endian and not head.syntax.is_encapsulated:
        return _single_bits(head, head.pixels.start, index)
    options = as_pixel_options(head.data, pixel_keyword=head.pixels.keyword, pixel_vr=head.pixels.vr)
    options["number_of_frames"] = head.frames
    shifted = _is_shifted(head)
    if shifted:
        options["correct_unused_bits"] = False
    with open_dicom(head.path) as file:
        file.seek(head.pixels.start)
        plugin = dicom_jpeg.PLUGINS.get(head.syntax, "")
        values = get_decoder(head.syntax).as_array(file, index=index, decoding_plugin=plugin, **options)[0]
    return _aligned(values, head) if shifted else values


def _single_bits(head: Head, start: int, index: int) -> np.ndarray:
    """Return a frame of single bits, (H, W) uint8; it may begin within a byte (PS3.5 8.1.1), which pydicom refuses."""
    count = head.size[0] * head.size[1]
    whole, odd = divmod(index * count, 8)
    with open_dicom(head.path) as file:
        file.seek(start + whole)
        packed = np.frombuffer(file.read((odd + count + 7) // 8), np.uint8)
    return np.unpackbits(packed, bitorder="little")[odd : odd + count].reshape(head.size)


def _is_shifted(head: Head) -> bool:
    """Tell whether the stored bits end above the lowest, as in old files; pydicom takes it that they do not."""
    stored, high = head.number("BitsStored"), head.number("HighBit")
    return not head.syntax.is_encapsulated and stored is not None and high is not None and high + 1 > stored


def _aligned(values: np.ndarray, head: Head) -> np.ndarray:
    """Return what lies in the bits from HighBit downwards, PS3.5 8.1.1."""
    allocated, stored, high = (int(head.data[name].value) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    return (values << (allocated - 1 - high)) >> (allocated - stored)


def _name(syntax: UID) -> str:
    return UID_dictionary[syntax][0] if syntax in UID_dictionary else "an unknown transfer syntax"


def _require_decoder(head: Head) -> None:
    try:
        decoder = get_decoder(head.syntax)
    except NotImplementedError:
        raise UserError(
            f"{head.path}: its pixels are stored as {_name(head.syntax)}, for which there is no decoder here. "
            f"{_SAVE_PLAIN}"
        ) from None
    if not dicom_jpeg.is_decoded(head.syntax):
        raise UserError(
            f"{head.path}: its pixels are stored as {_name(head.syntax)}, whose decoder is not installed "
            f"({'; '.join(decoder.missing_dependencies)}). Install it (`tskd doctor` names the packages). {_SAVE_PLAIN}"
        )


class _Worker:
    """One child process that decodes frames on request."""

    def __init__(self) -> None:
        package = Path(__file__).parents[2]
        path = os.pathsep.join(part for part in (str(package), os.environ.get("PYTHONPATH")) if part)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tskd.data.dicom_worker"],  # -P: a json.py in the folder at hand is not ours
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders write what they think there, values of the file among it
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for us; it ends when our end of the pipe is closed
        )
        with self._limited():
            assert self.process.stdout is not None
            self.ready = self.process.stdout.readline() == READY
        self.held = ""
        """Name of the file in memory that it was sent last."""

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """End the process where the block takes too long: what is read from it then comes to an end."""
        killer = threading.Timer(SECONDS, self.process.kill)
        killer.start()
        try:
            yield
        finally:
            killer.cancel()

    def ask(self, path: Path, index: int) -> np.ndarray | str | None:
        """Return the values, the name of the exception, or None where the process died or took too long."""
        try:
            with self._limited():
                return self._answer(*self._question(path, index))
        except (BrokenPipeError, ValueError):  # it died before, or in the middle of an answer
            return None

    def _question(self, path: Path, index: int) -> tuple[bytes, bytes]:
        """Return the line that asks for a frame, and what follows it: a file in memory that it does not hold yet."""
        if not isinstance(path, MemoryFile):
            return _line([str(path.absolute()), index]), b""
        if self.held == str(path):
            return _line([self.held, index, None]), b""
        self.held, content = str(path), path.content
        if path.folder is not None:
            path.folder.at_close.append(partial(POOL.forget, self.held))
        return _line([self.held, index, len(content)]), content

    def _answer(self, question: bytes, content: bytes) -> np.ndarray | str | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(question)
        self.process.stdin.write(content)
        self.process.stdin.flush()
        head = self.process.stdout.readline()
        if not head.endswith(b"\n"):
            return None
        answer = json.loads(head)
        if "error" in answer:
            return str(answer["error"])
        kind = np.dtype(answer["dtype"])
        content = self.process.stdout.read(int(np.prod(answer["shape"])) * kind.itemsize)
        return np.frombuffer(bytearray(content), kind).reshape(answer["shape"])

    def forget(self) -> bool:
        """Let the process take an empty file for the one that it holds; say whether it lives on."""
        self.held = ""
        try:
            with self._limited():
                return self._answer(_line(["", 0, 0]), b"") is not None
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def _line(question: list[str | int | None]) -> bytes:
    return json.dumps(question).encode() + b"\n"


class DecoderPool:
    """The workers that are idle: as many are started as frames are decoded at once, at most one a processor."""

    def __init__(self) -> None:
        self.idle: list[_Worker] = []
        self.lock = threading.Lock()
        self.turns = threading.Semaphore(cores())  # a worker takes some 75 MB

    def ask(self, path: Path, index: int) -> np.ndarray | str | None:
        """Return a frame, what the decoder said instead, or None where it ended without an answer."""
        with self.turns:  # waited for outside of the time that a frame may take
            return self._ask(path, index)

    def _ask(self, path: Path, index: int) -> np.ndarray | str | None:
        with self.lock:
            worker = self.idle.pop() if self.idle else None
        worker = worker or _Worker()
        if not worker.ready:
            worker.close()
            raise UserError(
                f"{path}: the process that decodes compressed pixels does not start. "
                "`python -m tskd.data.dicom_worker` shows why."
            )
        try:
            answer = worker.ask(path, index)
        except BaseException:  # stopped by hand between question and answer: what comes next would be the old answer
            worker.close()
            raise
        if answer is None:
            worker.close()
        else:
            with self.lock:
                self.idle.append(worker)
            if isinstance(path, MemoryFile) and not path.is_file():  # closed meanwhile, by somebody else
                self.forget(str(path))
        return answer

    def forget(self, name: str) -> None:
        """Let idle workers forget a file in memory, whose folder is closed."""
        with self.lock:
            holding = [worker for worker in self.idle if worker.held == name]
            self.idle = [worker for worker in self.idle if worker.held != name]
        for worker in holding:  # asked outside of the lock: one may hang
            if worker.forget():
                with self.lock:
                    self.idle.append(worker)
            else:
                worker.close()

    def close(self) -> None:
        while self.idle:
            self.idle.pop().close()


POOL = DecoderPool()
"""Those of this process."""
atexit.register(POOL.close)


def _decode_elsewhere(path: Path, index: int, syntax: str) -> np.ndarray:
    answer = POOL.ask(path, index)
    if isinstance(answer, np.ndarray):
        return answer
    if answer == "MemoryError":
        raise UserError(f"{path}: it does not fit into the memory that is free. Cut it into parts.")
    if answer == "NotImplementedError":
        raise UserError(
            f"{path}: this form of {syntax} (its number of bits, for example) is not read by the decoders "
            f"installed. {_SAVE_PLAIN}"
        )
    if answer is None:
        raise UserError(
            f"{path}: its compressed pixels ({syntax}) are damaged or too many: the decoder ended without an "
            f"answer. {_DAMAGED}"
        )
    raise UserError(f"{path}: its compressed pixels ({syntax}) are damaged: the decoder gave up ({answer}). {_DAMAGED}")


def decode_file(path: Path, index: int) -> np.ndarray:
    """Read and decode one frame in this process: what the child does."""
    return decode(read_head(path), index)
