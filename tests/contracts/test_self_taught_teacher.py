"""A teacher that learns from images without labels too: whose images, at which size, at what cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.made_up import SMALL_VIT
from tskd.artifacts import Artifact
from tskd.engine import Training, open_runtime
from tskd.errors import UserError
from tskd.experiment.budget import teacher_compute
from tskd.experiment.preflight import check_networks
from tskd.experiment.run import Run
from tskd.models.registry import load_model
from tskd.recipe.schema import build_recipe
from tskd.stages import teacher as stage
from tskd.types import UNLABELLED

SIZE = 32
STEPS = 4
TEACHERS = {"resnet10t": "full", SMALL_VIT: "lora"}
OpenRun = Callable[..., Run]


@pytest.fixture(scope="module")
def open_run(tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    folder = tmp_path_factory.mktemp("self-taught")
    torch.manual_seed(0)
    for backbone in TEACHERS:
        save_file(timm.create_model(backbone).state_dict(), folder / f"{backbone}.safetensors")

    def open_run(backbone: str = "resnet10t", real: int | None = None, **teacher: Any) -> Run:
        settings = {
            "name": f"timm/{backbone}", "weights": str(folder / f"{backbone}.safetensors"), "steps": STEPS,
            "batch_size": 4, "adaptation": TEACHERS[backbone], **teacher,
        }  # fmt: skip
        data = {
            "image_size": SIZE,
            "labels": 8,
            "phantom": {"family": "dermoscopy", "train": 16, "test": 4, "size": 96},
        }
        recipe = build_recipe(
            {"data": data, "teacher": settings, "transfer": {"real": real}, "engine": {"accelerator": "cpu"}}, "test"
        )
        return Run(recipe, folder / "out", open_runtime(recipe.engine))

    return open_run


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """The trainings of self-taught teachers that a test sets off."""
    seen: list[Training] = []
    build = stage.self_taught
    monkeypatch.setattr(stage, "self_taught", lambda *given, **named: seen.append(build(*given, **named)) or seen[-1])
    return seen


def weights_of(teacher: Artifact) -> dict[str, torch.Tensor]:
    return load_file(teacher.path / stage.FILE)


def equal(first: Artifact, second: Artifact) -> bool:
    ours, theirs = weights_of(first), weights_of(second)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("mix", ["cut_mix", "copy_paste"])
@pytest.mark.parametrize("backbone", TEACHERS)
def test_it_learns_from_the_images_that_the_student_learns_from(open_run: OpenRun, backbone: str, mix: str) -> None:
    """Fewer of them, other weights; a teacher that knows labels alone does not look at them."""
    taught = open_run(backbone, unlabelled=mix).teachers.adapted
    assert not equal(taught, open_run(backbone, real=4, unlabelled=mix).teachers.adapted)
    by_labels = open_run(backbone).teachers.adapted
    assert by_labels.path == open_run(backbone, real=4).teachers.adapted.path
    assert weights_of(taught).keys() == weights_of(by_labels).keys(), "the average is not saved beside it"
    assert torch.isfinite(load_model(taught.path)(torch.rand(1, 3, SIZE, SIZE)).logits).all()


def test_it_sees_them_at_its_own_size(open_run: OpenRun, trainings: list[Training]) -> None:
    """The transfer set lists rows; taken from the student's array they would be smaller than the labelled ones."""
    # foreground is drawn among images with labels; asked of the others it would look for masks that are not there
    run = open_run(unlabelled="cut_mix", image_size=80, augment={"foreground": 0.5})
    assert run.teachers.adapted.metrics["steps"] == STEPS
    batch = trainings[0].batches(0, 0, 1)
    assert batch.images.shape == (4, 3, 80, 80)
    assert batch.masks is not None
    assert [bool((mask == UNLABELLED).all()) for mask in batch.masks] == [False, False, True, True]


def test_what_the_average_answers_is_counted_and_in_the_compute_of_scratch_total(open_run: OpenRun) -> None:
    runs = [open_run(unlabelled="cut_mix"), open_run()]
    spent = [run.teachers.adapted.metrics["teacher_gflops"] for run in runs]
    planned = [
        teacher_compute(run.recipe, [run.teachers.source.description], images=len(run.transfer_set.images))
        for run in runs
    ]
    assert spent[0] > spent[1]
    assert spent[0] - spent[1] == pytest.approx((planned[0] - planned[1]) / 1e9, abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"teacher": {"unlabelled": "cut_mix", "batch_size": 5}}, "multiple of 2 from 4 on"),
        ({"teacher": {"unlabelled": "cut_mix", "batch_size": 2}}, "multiple of 2 from 4 on"),
        ({"teacher": {"unlabelled": "cut_mix", "batch_size": 8, "accumulate": 4}}, "multiple of 8 from 16 on"),
        ({"teacher": {"unlabelled": "copy_paste", "batch_size": 6}, "engine": {"devices": 2}}, "multiple of 4 from 8"),
        (
            {"method": "consistency", "self_training": {"batch_size": 16, "accumulate": 8}},
            "self_training.batch_size=16",
        ),
        ({"teacher": {"unlabelled": "cut_mix", "augment": {"crop": 0.5}}}, "augment.crop must be 0"),
        ({"teacher": {"unlabelled": "mixup"}}, "cut_mix"),
    ],
)
def test_settings_that_cannot_be_mixed_are_refused_before_any_work(changes: dict[str, Any], named: str) -> None:
    """A part with one unlabelled image mixes nothing, and a half that does not divide loses images in silence."""
    with pytest.raises(UserError, match=named):
        check_networks(build_recipe(changes, "test"))


def test_the_average_follows_once_a_step_however_many_parts_a_batch_has(
    open_run: OpenRun, trainings: list[Training]
) -> None:
    """Followed in every part it would be younger, and its answers weigh all they ever do parts times too early."""
    for parts in (1, 2):
        whole = open_run(unlabelled="cut_mix", batch_size=8, accumulate=parts, ema=0.9).teachers.adapted
        assert whole.metrics["steps"] == STEPS
    assert [int(training.module.updates) for training in trainings] == [STEPS, STEPS]
