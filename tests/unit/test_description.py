"""Descriptions: what is written is what is read, and what two networks share that differ in their weights alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tskd.models.description import Adaptation, NetworkDescription, read_description

STUDENT = NetworkDescription("timm", {"backbone": "x", "patch": 8}, ("a", "b"), 64, "offline")
TEACHER = replace(STUDENT, adaptation=Adaptation("lora", rank=4, alpha=None))
SAM = NetworkDescription("sam", {"source": "sam.pth"}, ("a",), 512)


@pytest.mark.parametrize("written", [STUDENT, TEACHER, SAM])
def test_what_is_written_is_read_again(written: NetworkDescription, tmp_path: Path) -> None:
    text = json.dumps({**written.as_dict(), "title": "any", "file": "weights.safetensors"})
    (tmp_path / "model.json").write_text(text)
    assert read_description(tmp_path) == (written, "weights.safetensors")


def test_the_file_says_what_it_always_said() -> None:
    """Its bytes are in the digests of every trained artifact: a key more, or another order, and all are made anew."""
    start = '{"kind": "timm", "arguments": {"backbone": "x", "patch": 8}, "weights": "offline", "classes": ["a", "b"], '
    assert json.dumps(STUDENT.as_dict()) == start + '"image_size": 64}'
    adaptation = '"image_size": 64, "adaptation": {"name": "lora", "rank": 4, "alpha": null}}'
    assert json.dumps(TEACHER.as_dict()) == start + adaptation
    assert "weights" not in SAM.as_dict(), "the file of a SAM teacher has never had the key"


def test_networks_that_differ_in_weights_alone_have_one_architecture() -> None:
    assert STUDENT.architecture() == STUDENT.bare().architecture()
    assert STUDENT.architecture() != replace(STUDENT, image_size=96).architecture()
    assert TEACHER.architecture() != STUDENT.architecture()


def test_equal_descriptions_are_one_key_of_a_cache() -> None:
    assert {STUDENT: 1}[replace(STUDENT, arguments={"patch": 8, "backbone": "x"})] == 1
