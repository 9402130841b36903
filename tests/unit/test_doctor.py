"""The doctor names what is missing and how to mend it, and calls broken only what every run needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tskd import doctor
from tskd.doctor import Check, as_text, compare_versions, examine, is_broken
from tskd.models import weights

REQUIREMENTS = ["torch>=2.9", "numpy>=2", "monai>=1.5", 'ray>=2.40; extra == "cluster"']


def test_unmet_requirements_are_broken_with_the_command_that_mends_them() -> None:
    installed = {"torch": "2.4.1", "numpy": "2.0.0+local"}
    assert compare_versions(REQUIREMENTS, installed.get) == [
        Check("torch", "broken", "2.4.1", "pip install 'torch>=2.9'"),
        Check("monai", "broken", "not installed", "pip install 'monai>=1.5'"),
    ]


def test_a_damaged_offline_teacher_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"changed")
    monkeypatch.setattr(weights, "efficientnet_lite0_path", lambda: file)
    found = {check.name: check for check in examine()}
    assert found["offline teacher"].status == "broken"
    assert is_broken(list(found.values()))


def test_a_missing_extra_is_a_note_and_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    extras = [check for check in examine() if check.name.startswith("extra ")]
    assert {check.status for check in extras} == {"note"}
    assert all("pip install 'tskd[" in check.remedy for check in extras)
    assert not is_broken(extras)


def test_everything_is_looked_at_and_shown_with_its_remedy() -> None:
    checks = examine()
    names = {check.name for check in checks}
    assert {"Python", "torchvision", "disk", "GPU", "SAM ViT-B", "DICOM codecs", "onnxruntime"} <= names
    text = as_text([Check("GPU", "note", "none", "buy one"), Check("disk space", "ok", "9 GB")])
    assert text.splitlines() == [
        "note    GPU         none",
        "                    -> buy one",
        "ok      disk space  9 GB",
    ]
