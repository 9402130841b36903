"""Digests that are not computed anew: never one of a file that has changed, whatever its date and size say."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from tskd.data import known_digests
from tskd.data.known_digests import KnownDigests


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, in order; stamps count at once, so that no test has to wait."""
    monkeypatch.setattr(known_digests, "RACY_NS", -(10**12))
    read: list[Path] = []

    def sha256(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(known_digests, "file_sha256", sha256)
    return read


def digest(file: Path, memory: Path) -> str:
    known = KnownDigests(memory)
    found = known.of(file)
    known.keep()
    return found


def test_an_untouched_file_is_read_once(reads: list[Path], tmp_path: Path) -> None:
    file, memory = tmp_path / "a.png", tmp_path / "out/.hashes.json"
    file.write_bytes(b"one")
    assert digest(file, memory) == digest(file, memory) == hashlib.sha256(b"one").hexdigest()
    assert reads == [file]


@pytest.mark.parametrize("how", ["written over", "replaced"])
def test_a_file_of_the_same_size_and_date_is_read_again(how: str, reads: list[Path], tmp_path: Path) -> None:
    """As `cp -p` and many PACS exports leave it; a digest by size and date alone would train on the old one's cache."""
    file, memory = tmp_path / "a.png", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    before, status = digest(file, memory), file.stat()
    time.sleep(0.02)  # of the clock that the system keeps for the inode
    if how == "replaced":
        (tmp_path / "b").write_bytes(b"two")
        (tmp_path / "b").replace(file)
    else:
        file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest(file, memory) == hashlib.sha256(b"two").hexdigest() != before


def test_a_file_written_just_now_is_not_remembered(
    reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_digests, "RACY_NS", 2_000_000_000)
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    digest(file, tmp_path / "hashes.json")
    digest(file, tmp_path / "hashes.json")
    assert reads == [file, file]


@pytest.mark.parametrize("kept", ["", "[]", '{"a": 1}', "\x00"])
def test_a_damaged_memory_is_only_slower(kept: str, reads: list[Path], tmp_path: Path) -> None:
    file, memory = tmp_path / "a.png", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    memory.write_text(kept)
    assert digest(file, memory) == hashlib.sha256(b"one").hexdigest()
    assert digest(file, memory)
    assert reads == [file]
