"""The diffusion stage: which images it may see, what a look at samples may change, and that it can be taken up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tskd.artifacts import CHECKPOINTS
from tskd.data.prepared import DATASET, IMAGES, MASKS, PARTS, RECORDS, Part, Prepared
from tskd.engine import Runtime, open_runtime
from tskd.errors import Paused, UserError
from tskd.models.diffusion import sample
from tskd.models.pan_unet import PanUNet
from tskd.models.swin_unet import PRESETS, SwinUNet, SwinUNetSize
from tskd.recipe.schema import DiffusionConfig, EngineConfig
from tskd.stages.denoisers import FILE, DenoiserDescription, build_denoiser, load_denoiser, plan_of, read_seen_cases
from tskd.stages.diffusion import SEEN_PARTS, DenoisingBatches, all_grey, class_counts, describe, train_diffusion

SIZE = 32
RUNTIME = open_runtime(EngineConfig(accelerator="cpu"))
SETTINGS = DiffusionConfig(steps=3, batch_size=4, lr=1e-3, grid_minutes=1000, sampling_steps=2)
COUNTS: dict[Part, int] = {"train": 8, "val": 3, "unlabelled": 6, "test": 4}


def write_prepared(folder: Path, *, colour: bool = False, classes: tuple[str, ...] = ("lesion",)) -> Prepared:
    """Write a prepared data set of smooth random images: two images a case, the parts apart, ids in two folders."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    total = sum(COUNTS.values())
    coarse = generator.integers(0, 256, (total, 8, 8, 3 if colour else 1), dtype=np.uint8)
    images = coarse.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)
    np.save(folder / IMAGES, np.broadcast_to(images, (total, SIZE, SIZE, 3)))
    np.save(folder / MASKS, np.zeros((COUNTS["train"] + COUNTS["val"], SIZE, SIZE), dtype=np.uint8))
    records = [
        {
            "id": f"{'ab'[number % 2]}/{part}{number}",
            "case": f"{part} case {number // 2}",
            "part": part,
            "height": SIZE,
            "width": SIZE,
            "spacing": None,
        }
        for part in PARTS
        for number in range(COUNTS[part])
    ]
    (folder / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / DATASET).write_text(json.dumps({"name": "made up", "classes": classes}))
    return Prepared(folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_prepared(tmp_path_factory.mktemp("diffusion") / "prepared")


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    metrics = train_diffusion(SETTINGS, prepared, folder, seed=1, runtime=RUNTIME)
    assert metrics["images"] == COUNTS["train"] + COUNTS["unlabelled"]
    assert metrics["verdict"].startswith("The samples are")
    return folder


def batches_of(prepared: Prepared, config: DiffusionConfig = SETTINGS) -> DenoisingBatches:
    return DenoisingBatches.of(config, prepared, describe(config, prepared, {}), seed=0)


def test_the_artifact_lists_training_cases_and_no_others(prepared: Prepared, trained: Path) -> None:
    seen = set(read_seen_cases(trained))
    assert seen == prepared.cases("train", "unlabelled")
    assert seen.isdisjoint(prepared.cases("val", "test"))


def test_every_training_image_is_seen_and_no_other(prepared: Prepared) -> None:
    batches = batches_of(prepared)
    seen = {name for step in range(14) for name in batches(step, 0, 1).names}
    assert seen == set(prepared.names(prepared.rows(*SEEN_PARTS)))


def test_the_parts_of_a_batch_are_the_batch(prepared: Prepared) -> None:
    batches = batches_of(prepared)
    whole, first, second = batches(5, 0, 1), batches(5, 0, 2), batches(5, 1, 2)
    assert torch.equal(whole.images, torch.cat([first.images, second.images]))
    assert whole.names == first.names + second.names


def test_left_and_right_are_kept_apart_where_a_class_says_so(tmp_path: Path) -> None:
    sided = write_prepared(tmp_path / "sided", classes=("left kidney", "right kidney"))
    batches = batches_of(sided)
    row_of = {record.id: row for row, record in enumerate(sided.records)}
    batch = batches(0, 0, 1)
    for image, name in zip(batch.images, batch.names, strict=True):
        assert torch.equal(image, batches.read(np.array([row_of[name]]))[0])
    free = replace(batches, mirror=True)
    assert not all(torch.equal(free(step, 0, 1).images, batches(step, 0, 1).images) for step in range(4))


def test_grey_images_make_a_grey_model(prepared: Prepared, trained: Path, tmp_path: Path) -> None:
    assert all_grey(prepared)
    assert load_denoiser(trained)[1].channels == 1
    assert not all_grey(write_prepared(tmp_path / "colour", colour=True))


def test_the_saved_model_samples_as_it_was_trained(prepared: Prepared, trained: Path) -> None:
    model, description = load_denoiser(trained)
    plan = plan_of(description, steps=2)
    assert (plan.image_size, plan.prediction, plan.schedule) == (SIZE, SETTINGS.prediction, SETTINGS.schedule)
    assert not model.training
    samples = sample(model, plan=plan, seeds=[1])
    assert samples.shape == (1, 1, SIZE, SIZE)
    assert (trained / "samples.png").is_file()


def test_looking_at_samples_changes_nothing(prepared: Prepared, trained: Path, tmp_path: Path) -> None:
    """Dropout-free or not: the network must come back in training mode, and no random stream may have moved."""
    config = SETTINGS.model_copy(update={"grid_minutes": 1e-9})
    train_diffusion(config, prepared, tmp_path, seed=1, runtime=RUNTIME)
    looked, unlooked = load_file(tmp_path / FILE), load_file(trained / FILE)
    assert all(torch.equal(looked[name], unlooked[name]) for name in unlooked)
    assert len(list((tmp_path / CHECKPOINTS).glob("samples-*.png"))) == SETTINGS.steps


def test_an_interrupted_training_ends_with_the_same_weights(prepared: Prepared, trained: Path, tmp_path: Path) -> None:
    late = Runtime(RUNTIME.fabric, deadline=0.0)
    with pytest.raises(Paused):
        train_diffusion(SETTINGS, prepared, tmp_path, seed=1, runtime=late)
    assert not (tmp_path / FILE).exists()
    train_diffusion(SETTINGS, prepared, tmp_path, seed=1, runtime=RUNTIME)
    resumed, through = load_file(tmp_path / FILE), load_file(trained / FILE)
    assert all(torch.equal(resumed[name], through[name]) for name in through)


def test_the_class_folders_are_counted_on_training_images(prepared: Prepared, tmp_path: Path) -> None:
    config = SETTINGS.model_copy(update={"conditional": True, "steps": 1})
    train_diffusion(config, prepared, tmp_path, seed=1, runtime=RUNTIME)
    model, description = load_denoiser(tmp_path)
    assert description.classes == {"a": 7, "b": 7}
    assert isinstance(model.classes, nn.Embedding)
    assert model.classes.num_embeddings == 3, "two classes and the null class"


@pytest.mark.parametrize("names", [["one", "two"], [f"patient{number}/slice" for number in range(51)]])
def test_folders_that_are_no_classes_are_refused(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"folders are needed, the training images lie in \d+"):
        class_counts(names)


def test_an_image_size_that_does_not_fit_names_the_setting(prepared: Prepared, tmp_path: Path) -> None:
    config = SETTINGS.model_copy(update={"image_size": 48, "preset": "base"})
    with pytest.raises(UserError, match=r"diffusion\.image_size .*base.*nearest"):
        train_diffusion(config, prepared, tmp_path, seed=1, runtime=RUNTIME)


def test_the_published_network_is_trained_saved_and_loaded_as_any_other(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SwinUNetSize(32, (1, 2), (1, 1), heads=(0, 2), windows=(4, 4), published=True)
    monkeypatch.setitem(PRESETS, "pan", small)
    config = SETTINGS.model_copy(update={"preset": "pan", "steps": 1})
    train_diffusion(config, prepared, tmp_path, seed=1, runtime=RUNTIME)
    model, description = load_denoiser(tmp_path)
    assert isinstance(model, PanUNet)
    assert sample(model, plan=plan_of(description, steps=2), seeds=[0]).shape == (1, 1, SIZE, SIZE)


def test_a_model_described_before_there_were_two_networks_is_ours(trained: Path) -> None:
    old = json.loads((trained / "model.json").read_text())
    del old["size"]["published"]
    assert type(build_denoiser(DenoiserDescription.of(old))) is SwinUNet


def test_images_are_mirrored_only_where_that_is_allowed(prepared: Prepared) -> None:
    """Anatomy with sides need not say so in its class names."""
    batches = batches_of(prepared)
    stored = np.asarray(batches.read(batches.rows))
    for flip, mirrored in (("auto", True), ("none", False)):
        batches = batches_of(prepared, SETTINGS.model_copy(update={"flip": flip}))
        seen = np.concatenate([np.asarray(batches(step, 0, 1).images) for step in range(14)])
        unchanged = [any(np.array_equal(image, other) for other in stored) for image in seen]
        assert all(unchanged) != mirrored
