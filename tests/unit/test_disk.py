"""Files are whole or not there; what a disk refuses names the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tskd.machine.disk import draft, read_object, write_atomic


def test_a_write_that_is_cut_short_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def full_disk(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_write_that_the_disk_refuses_names_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomic(tmp_path / "run.json", b"new")
    assert caught.value.filename == str(tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


def test_a_draft_appears_when_it_is_published_and_leaves_nothing_when_it_is_not(tmp_path: Path) -> None:
    """Red where one thread's second draft replaces its first, or discarding takes away what was published."""
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    first, second = draft(path, b"first"), draft(path, b"second")
    assert path.read_bytes() == b"old"
    first.publish()
    second.discard()
    first.discard()
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_that_cannot_be_published_names_its_place_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.mkdir()
    (path / "file").touch()
    one = draft(path, b"mask")
    with pytest.raises(OSError, match=r"a\.png") as caught:
        one.publish()
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    write_atomic(path, b"mask")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", ["", '{"a": 1', "[1]", "\udc80", "[" * 100_000])
def test_what_is_no_object_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_bytes(content.encode(errors="surrogateescape"))
    assert read_object(tmp_path / "a.json") is None
    assert read_object(tmp_path / "b.json") is None
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_object(tmp_path / "a.json") == {"a": 1}
