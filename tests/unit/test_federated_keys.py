"""Keys of a federation come in pairs: both files or none."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tskd.federated import keys
from tskd.federated.keys import make_site_key


def test_a_pair_of_which_one_cannot_be_written_is_not_in_the_way_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(keys, "write_atomic", full)
        with pytest.raises(OSError, match="No space"):
            make_site_key(tmp_path, "north")
    assert list(tmp_path.iterdir()) == []
    assert all(path.is_file() for path in make_site_key(tmp_path, "north"))
