"""The boundary around foreign files: every exception of a decoder becomes one message with the file's name."""

from __future__ import annotations

import errno
import struct
import zlib
from pathlib import Path

import pytest

from tskd.data.reading import reading
from tskd.errors import UserError

PATH = Path("scan.dcm")


class PanicException(BaseException):
    """Named as pyo3 names what a decoder in Rust raises."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (IndexError("Jane Doe"), "damaged"),
        (AttributeError("Jane Doe"), "damaged"),
        (RecursionError(), "damaged"),
        (struct.error("Jane Doe"), "damaged"),
        (zlib.error("Jane Doe"), "damaged"),
        (AssertionError(), "damaged"),
        (PanicException("Jane Doe"), "damaged"),
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "no memory"), "memory"),
        (OSError(errno.EMFILE, "too many"), "ulimit"),
        (OSError(errno.EIO, "input/output"), "drive"),
        (PermissionError(errno.EACCES, "denied"), "permission"),
        (FileNotFoundError(errno.ENOENT, "gone"), "moved or removed"),
    ],
)
def test_everything_a_decoder_raises_names_the_file(error: BaseException, words: str) -> None:
    """Red where a type is not caught, a fault of the system is called damage, or a file's text is quoted."""
    with pytest.raises(UserError, match=words) as caught, reading(PATH):
        raise error
    message = str(caught.value)
    assert message.startswith("scan.dcm: ")
    assert "Jane Doe" not in message
    assert ("damaged" in message) == (words == "damaged")
    assert "(error)" not in message


def test_our_own_message_and_a_stop_by_hand_pass() -> None:
    """Red where the boundary hides a better message, or swallows Ctrl-C."""
    with pytest.raises(UserError, match=r"^ours$"), reading(PATH):
        raise UserError("ours")
    with pytest.raises(KeyboardInterrupt), reading(PATH):
        raise KeyboardInterrupt


def test_a_format_may_explain_what_its_library_means() -> None:
    """Red where the explanation is lost, or used for what it does not explain."""

    def explain(error: BaseException) -> str | None:
        return "has no pixels. Remove it." if isinstance(error, LookupError) else None

    with pytest.raises(UserError, match=r"^scan\.dcm: has no pixels"), reading(PATH, explain):
        raise KeyError
    with pytest.raises(UserError, match="the NIfTI file is damaged"), reading(PATH, explain, what="NIfTI file"):
        raise ValueError
