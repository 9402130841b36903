"""The doctor names what is missing and how to mend it, and calls broken only what every run needs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from tskd import doctor
from tskd.doctor import (
    Check,
    as_text,
    compare_versions,
    examine,
    half_precision_of,
    is_bf16_quicker,
    is_broken,
)
from tskd.extras import EXTRAS
from tskd.models import weights

REQUIREMENTS = ["torch>=2.9", "numpy>=2", "monai>=1.5", 'ray>=2.40; extra == "cluster"']


def test_unmet_requirements_are_broken_with_the_command_that_mends_them() -> None:
    installed = {"torch": "2.4.1", "numpy": "2.0.0+local"}
    assert compare_versions(REQUIREMENTS, installed.get) == [
        Check("torch", "broken", "2.4.1", "pip install 'torch>=2.9'"),
        Check("monai", "broken", "not installed", "pip install 'monai>=1.5'"),
    ]
    ray = Check("ray", "broken", "not installed", "pip install 'ray>=2.40'")
    assert compare_versions(REQUIREMENTS, installed.get, "cluster")[-1] == ray


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
    assert all(check.remedy.startswith("pip install '") for check in extras)
    assert not is_broken(extras)
    assert {check.name.removeprefix("extra ") for check in extras} == {*EXTRAS} == _declared() - {"dev"}
    assert all(f"for {EXTRAS[check.name.removeprefix('extra ')].purpose}" in check.found for check in extras)


def _declared() -> set[str]:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    return {*settings["project"]["optional-dependencies"]}


@pytest.mark.parametrize(
    ("capability", "units", "setting"),
    [((9, 0), "bf16 and TF32", "bf16-mixed"), ((7, 5), "float16, no bf16", "16-mixed"), ((6, 1), "float32 only", "")],
)
def test_the_precision_that_suits_a_gpu_is_named(capability: tuple[int, int], units: str, setting: str) -> None:
    found, hint = half_precision_of(capability)
    assert found == units
    assert hint.endswith(f"engine.precision={setting}" if setting else "")


@pytest.mark.parametrize(("seconds_in_bf16", "quicker"), [(0.7, True), (0.95, False), (1.5, False)])
def test_bf16_is_advised_where_a_convolution_is_quicker_in_it(
    monkeypatch: pytest.MonkeyPatch, seconds_in_bf16: float, quicker: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    convolved: list[torch.dtype] = []
    forward = torch.nn.Conv2d.forward

    def noted(layer: torch.nn.Conv2d, planes: torch.Tensor) -> torch.Tensor:
        convolved.append(planes.dtype)
        return forward(layer, planes)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", noted)
    cost = {torch.bfloat16: seconds_in_bf16, torch.float32: 1.0}
    monkeypatch.setattr("tskd.doctor.time.process_time", lambda: sum(cost[kind] for kind in convolved))
    assert is_bf16_quicker() == quicker
    assert {torch.bfloat16, torch.float32} == set(convolved)


def test_bf16_is_not_even_timed_where_a_processor_only_emulates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False}, raising=False)
    monkeypatch.setattr("tskd.doctor.time.process_time", lambda: pytest.fail("timed"))
    assert not is_bf16_quicker()


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
