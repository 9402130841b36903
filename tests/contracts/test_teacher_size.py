"""A teacher whose size is not the student's: one path through training, selection, answers and test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.made_up import SMALL_VIT
from tskd.data.prepared import Prepared, squeeze_image, squeeze_mask
from tskd.data.transfer_set import TransferSet
from tskd.engine import open_runtime
from tskd.engine.batches import to_images
from tskd.experiment.methods import METHODS
from tskd.experiment.run import Run
from tskd.losses.classes import hard_prediction
from tskd.losses.distance import match_size
from tskd.models.registry import load_model
from tskd.models.timm_segmenter import resize_logits
from tskd.recipe.schema import build_recipe
from tskd.stages.source_data import data_root, open_data
from tskd.stages.stored_answers import shard_path
from tskd.stages.transfer_masks import MASKS
from tskd.types import SegmentationOutput

SIZE, TEACHER, NATIVE = 32, 80, 96
SETTINGS: dict[str, Any] = {
    "data": {
        "image_size": SIZE,
        "labels": 8,
        "phantom": {"family": "dermoscopy", "train": 16, "test": 4, "size": NATIVE},
    },
    "student": {"backbone": SMALL_VIT},
    "distill": {"steps": 8, "batch_size": 4, "views": 2, "augment": {"crop": 0.5}},
    "finetune": {"steps": 4, "batch_size": 4},
    "transfer": {"augmented": 4},
    "engine": {"accelerator": "cpu"},
}
ROUNDING = 2 / 255 / 0.22
"""Two grey levels, in units of the pixels' standard deviation: the stored image is rounded across and then down."""
OpenRun = Callable[..., Run]


@pytest.fixture(scope="module")
def open_run(tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    folder = tmp_path_factory.mktemp("size")
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t").state_dict(), folder / "resnet10t.safetensors")
    weights = str(folder / "resnet10t.safetensors")

    def open_run(size: int | None = TEACHER, cache: str = "on") -> Run:
        teacher = {"name": "timm/resnet10t", "weights": weights, "steps": 4, "batch_size": 4, "image_size": size}
        distill = {**SETTINGS["distill"], "cache": cache}
        recipe = build_recipe({**SETTINGS, "teacher": teacher, "distill": distill}, "test")
        return Run(recipe, folder / "out", open_runtime(recipe.engine))

    return open_run


def relative(one: SegmentationOutput, other: SegmentationOutput) -> list[float]:
    """Return how far another answer is from the first, relative to it: each of the features, then the logits."""
    pairs = [*zip(one.features, other.features), (one.logits, resize_logits(other.logits, one.logits.shape[-2:]))]
    return [float((a - b).norm() / a.norm()) for a, b in pairs]


def stages(run: Run) -> set[str]:
    return {name.rpartition("-")[0] for name in run.bench.used}


def test_what_it_is_trained_on_it_is_tested_on(open_run: OpenRun) -> None:
    """Its features and logits for an image in training are those of the evaluation, which hands it the file's pixels.

    Until the teacher had images of its own it learned from the student's, enlarged: ``blurred``.
    """
    run = open_run()
    model, shown = load_model(run.teachers.adapted.path), Prepared(run.teachers.data.path)
    assert shown.image_size == TEACHER
    dataset = open_data(run.recipe.data, data_root(run.bench, run.recipe.data))
    source = {record.id: record for record in dataset.records}
    assert len(shown.records) == len(run.prepared.rows("train", "val", "unlabelled"))
    for row, record in enumerate(shown.records):
        native = dataset.read_image(source[record.id])
        assert native.shape == (NATIVE, NATIVE, 3)
        with torch.inference_mode():
            tested = model(to_images(native[None]))
            trained = model(to_images(shown.images[[row]]))
            blurred = model(to_images(run.prepared.images[[row]]))
        seen = [model.normalise(to_images(pixels)) for pixels in (native[None], shown.images[[row]])]
        assert (seen[0] - seen[1]).abs().max() < ROUNDING
        near, far = relative(tested, trained), relative(tested, blurred)
        assert max(near) < 0.05
        assert all(f > 5 * n for n, f in zip(near[:-1], far[:-1])), "features"
        assert far[-1] > 2 * near[-1], "logits, brought to one size by different ways"
        if record.part != "unlabelled":
            mask = squeeze_mask(dataset.read_mask(source[record.id]), TEACHER)
            assert (shown.masks[row] == mask).all()


def test_its_weights_are_selected_on_the_images_it_is_tested_on(open_run: OpenRun) -> None:
    run = open_run()
    assert run.teachers.adapted.manifest["inputs"]["teacher_images"] == run.teachers.data.digest
    assert (
        run.teachers.adapted.metrics["teacher_gflops"] > 4 * open_run(None).teachers.adapted.metrics["teacher_gflops"]
    )


def test_equal_sizes_take_nothing_more(open_run: OpenRun) -> None:
    """The parts of a run have the names they would have if no teacher had a size of its own."""
    runs = [open_run(size) for size in (None, SIZE)]
    for run in runs:
        METHODS["task_kd"].model(run)
        assert run.teachers.data == run.prepared_artifact
        assert "teacher_images" not in stages(run)
        inputs = [artifact.manifest["inputs"] for artifact in run.bench.used.values()]
        assert not [one for one in inputs if "teacher_images" in one]


@pytest.mark.parametrize(
    ("method", "cache"),
    [
        ("task_kd", "on"),
        ("task_kd", "off"),
        ("task_kd_probe", "on"),
        ("agnostic_kd", "on"),
        ("agnostic_kd", "off"),
        ("pseudo_label", "on"),
        ("control_pseudo", "on"),
    ],
)
def test_whatever_learns_from_it_is_shown_the_students_images_and_it_its_own(
    method: str, cache: str, open_run: OpenRun
) -> None:
    run = open_run(cache=cache)
    model = load_model(METHODS[method].model(run).path)
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 40, 56)).logits.isfinite().all()
    assert "teacher_images" in stages(run)
    answers = [artifact for name, artifact in run.bench.used.items() if name.startswith(("cache-", "pseudo_masks-"))]
    assert len(answers) == (cache == "on" or "pseudo" in method)
    assert all(one.manifest["inputs"]["teacher_images"] == run.teachers.data.digest for one in answers)
    spent = sum(one.metrics["teacher_gflops"] for one in answers)
    assert not answers or spent > 0


def test_stored_answers_and_masks_are_those_for_the_sharp_images(open_run: OpenRun) -> None:
    run = open_run()
    assert run.initialisations.cache is not None
    kept = load_file(shard_path(run.initialisations.cache.path, 0))["logits"][:, 0].float()
    masks = torch.from_numpy(np.load(run.initialisations.pseudo_masks.path / MASKS))
    model = load_model(run.teachers.adapted.path)
    everything = range(len(run.transfer_set.images))
    with torch.inference_mode():
        sharp, blurred = (
            match_size(model(to_images(one.images[everything])).logits, kept.shape[-2:])
            for one in (TransferSet(run.transfer.path, Prepared(run.teachers.data.path)), run.transfer_set)
        )
    assert (kept - sharp).norm() < 2e-3 * sharp.norm(), "fp16"
    assert (kept - blurred).norm() > 5e-3 * sharp.norm()
    assert (masks == hard_prediction(sharp)).float().mean() > 0.999


def test_squeezing_is_the_identity_where_the_size_fits() -> None:
    image = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8).numpy()
    assert squeeze_image(image, 8) is image
