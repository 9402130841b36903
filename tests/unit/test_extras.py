"""An optional part is installed from where tskd came from: its name alone is anybody's on an index."""

from __future__ import annotations

import json
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from tskd import extras


def installed(folder: Path, url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend an installation beside no checkout, of which pip noted that URL."""
    (folder / "tskd.dist-info").mkdir()
    if url is not None:
        (folder / "tskd.dist-info/direct_url.json").write_text(json.dumps({"url": url, "archive_info": {}}))
    monkeypatch.setattr(extras, "__file__", str(folder / "tskd/extras.py"))
    monkeypatch.setattr("importlib.metadata.distribution", lambda _: PathDistribution(folder / "tskd.dist-info"))


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("file://{folder}/our%20wheels/tskd.whl", "{folder}/our wheels/tskd.whl"),
        ("file://{folder}/gone.whl", "tskd"),
        ("https://example.org/tskd.whl", "tskd"),
        (None, "tskd"),
    ],
)
def test_a_part_comes_from_the_wheel_that_was_installed(
    url: str | None, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "our wheels").mkdir()
    (tmp_path / "our wheels/tskd.whl").touch()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "somebody else\'s"\n')
    installed(tmp_path, url and url.replace("{folder}", str(tmp_path)), monkeypatch)
    assert extras.install("offline") == f"pip install '{source.replace('{folder}', str(tmp_path))}[offline]'"


def test_in_a_checkout_it_comes_from_there() -> None:
    checkout = Path(extras.__file__).parents[1]
    assert extras.install("train") == f"pip install '{checkout}[train]'"
