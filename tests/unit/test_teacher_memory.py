"""What a teacher's training does to fit into memory, and that it does not count as another result."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_plan import recipe
from tskd.comparison.plan import PlanStore
from tskd.engine import open_runtime
from tskd.experiment.run import Run
from tskd.models.description import NetworkDescription
from tskd.recipe.schema import TeacherConfig
from tskd.stages.teacher import TeacherSource, parts_of_batch


@pytest.mark.parametrize(
    ("kind", "size", "batch", "processes", "parts"),
    [
        ("sam", 512, 16, 1, 4),
        ("sam", 512, 6, 1, 2),
        ("sam", 512, 5, 1, 5),
        ("sam", 256, 16, 1, 1),
        ("sam", 1024, 4, 1, 4),
        ("sam", 512, 16, 2, 2),
        ("sam", 512, 16, 3, 1),
        ("timm", 512, 16, 1, 1),
    ],
)
def test_sam_sees_four_images_of_512_px_at_once(kind: str, size: int, batch: int, processes: int, parts: int) -> None:
    source = TeacherSource("test", NetworkDescription(kind, {}, ("any",), size), "")
    assert parts_of_batch(TeacherConfig(batch_size=batch), source, processes) == parts


@pytest.mark.parametrize(("batch", "parts"), [(16, 4), (4, 1), (6, 1), (12, 3)])
def test_parts_of_a_batch_that_is_half_without_labels_have_both(batch: int, parts: int) -> None:
    """Two images of either kind at once, or more: of one image alone cut-mix would change nothing."""
    source = TeacherSource("test", NetworkDescription("sam", {}, ("any",), 512), "")
    assert parts_of_batch(TeacherConfig(batch_size=batch, unlabelled="cut_mix"), source, 1) == parts


def test_the_settings_word_goes_before_ours() -> None:
    source = TeacherSource("test", NetworkDescription("sam", {}, ("any",), 512), "")
    assert parts_of_batch(TeacherConfig(batch_size=16, accumulate=1), source, 1) == 1


def planned_teacher(out: Path, **teacher: object) -> str:
    one = recipe(teacher={"name": "timm/vit_tiny_patch16_224", "weights": "random", "adaptation": "full", **teacher})
    return Run(
        one, out, open_runtime(one.engine), open_store=lambda root, _: PlanStore(root)
    ).teachers.adapted.path.name


def test_what_changes_no_result_makes_no_other_teacher(tmp_path: Path) -> None:
    """A training that ran out of memory goes on from its checkpoint with gradient checkpointing switched on."""
    usual = planned_teacher(tmp_path)
    assert planned_teacher(tmp_path, gradient_checkpointing=True) == usual
    assert planned_teacher(tmp_path, accumulate=1) == usual, "the default cuts nothing for this teacher"
    assert planned_teacher(tmp_path, rank=2) != usual
