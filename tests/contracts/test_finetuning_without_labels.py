"""Fine-tuning that looks at images without labels too: which images, from which start, at what cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tskd.artifacts import Artifact
from tskd.engine import Training, open_runtime
from tskd.errors import UserError
from tskd.experiment.preflight import check_networks
from tskd.experiment.run import Run
from tskd.models.flops import inference_flops
from tskd.models.registry import STUDENT_FILE, build_model, load_model
from tskd.recipe.schema import build_recipe
from tskd.stages import finetune as stage
from tskd.types import UNLABELLED

SIZE = 32
STEPS = 4
OpenRun = Callable[..., Run]


@pytest.fixture(scope="module")
def open_run(tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    folder = tmp_path_factory.mktemp("finetuning")

    def open_run(real: int | None = None, **finetune: Any) -> Run:
        data = {
            "image_size": SIZE,
            "labels": 8,
            "phantom": {"family": "dermoscopy", "train": 16, "test": 4, "size": 96},
        }
        recipe = build_recipe(
            {
                "data": data, "transfer": {"real": real}, "engine": {"accelerator": "cpu"},
                "student": {"backbone": "resnet10t", "decoder": "unet"},
                "finetune": {"steps": STEPS, "batch_size": 4, **finetune},
            },
            "test",
        )  # fmt: skip
        return Run(recipe, folder / "out", open_runtime(recipe.engine))

    return open_run


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """The trainings that a test sets off."""
    seen: list[Training] = []
    fit = stage.fit
    monkeypatch.setattr(stage, "fit", lambda training, *more: seen.append(training) or fit(training, *more))
    return seen


def equal(first: Artifact, second: Artifact) -> bool:
    ours, theirs = (load_file(one.path / STUDENT_FILE) for one in (first, second))
    assert ours.keys() == theirs.keys(), "the average is not saved beside it"
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("mix", ["cut_mix", "copy_paste"])
def test_it_learns_from_the_transfer_set(open_run: OpenRun, mix: str) -> None:
    """Fewer images without labels, other weights; a student that learns from labels alone does not look at them."""
    taught = open_run(unlabelled=mix).finetuned(None)
    assert not equal(taught, open_run(real=4, unlabelled=mix).finetuned(None))
    by_labels = open_run().finetuned(None)
    assert by_labels.path == open_run(real=4).finetuned(None).path
    assert not equal(taught, by_labels)
    assert torch.isfinite(load_model(taught.path)(torch.rand(1, 3, SIZE, SIZE)).logits).all()


@pytest.mark.parametrize("unlabelled", [None, "cut_mix"])
def test_a_start_is_changed_carefully_and_random_weights_are_not(
    open_run: OpenRun, trainings: list[Training], unlabelled: str | None
) -> None:
    """At the rate of random weights what distillation has taught would be gone before the labels are learned."""
    run = open_run(unlabelled=unlabelled, lr=1e-4, scratch_lr=1e-2, layer_decay=0.5)
    start = run.finetuned(None)
    run.finetuned(start)
    first, second = trainings
    assert (first.lr, first.layer_decay) == (1e-2, 1.0)
    assert (second.lr or second.settings.lr, second.layer_decay) == (1e-4, 0.5)
    masks = second.batches(0, 0, 1).masks
    assert masks is not None
    nothing = [bool((mask == UNLABELLED).all()) for mask in masks]
    assert nothing == [False, False, unlabelled is not None, unlabelled is not None]


def test_the_start_is_what_is_trained_on(open_run: OpenRun) -> None:
    """A step so small that it changes nothing leaves the start, not random weights."""
    start = open_run().finetuned(None)
    kept = open_run(unlabelled="cut_mix", lr=1e-12, weight_decay=0.0, ema=0.0, steps=1).finetuned(start)
    ours, theirs = (load_file(one.path / STUDENT_FILE) for one in (start, kept))
    weights = [name for name in ours if name.endswith("weight")]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in weights)


def test_what_the_average_answers_is_told_apart_from_the_students_compute(open_run: OpenRun) -> None:
    taught, by_labels = open_run(unlabelled="cut_mix"), open_run()
    counted = [run.finetuned(None).metrics for run in (taught, by_labels)]
    assert counted[0]["student_gflops"] == counted[1]["student_gflops"]
    assert "teacher_gflops" not in counted[1]
    network = build_model(taught.student_description).eval()
    answered = STEPS * 2 * inference_flops(network, SIZE) / 1e9
    assert counted[0]["teacher_gflops"] == pytest.approx(answered, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"finetune": {"unlabelled": "cut_mix", "batch_size": 5}}, "finetune.batch_size=5.* multiple of 2 from 4 on"),
        ({"finetune": {"unlabelled": "cut_mix", "batch_size": 2}}, "multiple of 2 from 4 on"),
        ({"finetune": {"unlabelled": "cut_mix", "augment": {"crop": 0.5}}}, "augment.crop must be 0"),
        ({"finetune": {"unlabelled": "mixup"}}, "cut_mix"),
    ],
)
def test_settings_that_cannot_be_mixed_are_refused_before_any_work(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        check_networks(build_recipe(changes, "test"))
