"""``benchmarks/nnunet.py`` without nnU-Net: the folder that it reads, its time, its answers and their scores."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.made_up import make_prepared
from tskd.data.prepared import DATASET, IMAGES, MASKS, RECORDS, Prepared, native_path
from tskd.errors import UserError
from tskd.recipe.schema import EvaluateConfig
from tskd.stages.evaluate import evaluate
from tskd.types import UNLABELLED, SegmentationOutput

CPU = torch.device("cpu")
SIDE, HEIGHT, WIDTH = 32, 24, 48


@pytest.fixture
def nnunet(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("nnunet")


def data(folder: Path, *, grey: bool = False, classes: tuple[str, ...] = ("lesion", "ignore")) -> Prepared:
    """Return prepared data whose first mask has pixels without a label; test images are twice as wide as high."""
    prepared = make_prepared(folder, size=SIDE)
    images, masks = np.array(prepared.images), np.array(prepared.masks)
    if grey:
        images[...] = images[..., :1]
    masks[0, :5] = UNLABELLED
    masks[1, 20:, 20:] = 2
    np.save(folder / IMAGES, images)
    np.save(folder / MASKS, masks)
    (folder / DATASET).write_text(json.dumps({"name": "made up", "classes": list(classes)}))
    lines = [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]
    native = native_path(folder, 0, "image").parent
    native.mkdir()
    for row in prepared.rows("test"):
        lines[row].update(height=HEIGHT, width=WIDTH)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[5:18, 13:24] = 1
        mask[7:18, 30:43] = 2
        Image.fromarray(mask).save(native_path(folder, int(row), "mask"))
        Image.fromarray(np.stack([mask * 100] * 3, -1)).save(native_path(folder, int(row), "image"))
    (folder / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Prepared(folder)


@pytest.mark.parametrize("grey", [False, True])
def test_the_raw_folder_holds_all_labels_and_no_names(nnunet: ModuleType, tmp_path: Path, *, grey: bool) -> None:
    prepared = data(tmp_path / "prepared", grey=grey)
    nnunet.write_raw(prepared, tmp_path / "raw")
    rows = range(6)  # train and val: neither unlabelled images nor test images
    for row in rows:
        image = np.asarray(Image.open(tmp_path / f"raw/imagesTr/{row:06d}_0000.png"))
        label = np.asarray(Image.open(tmp_path / f"raw/labelsTr/{row:06d}.png"))
        assert np.array_equal(image, prepared.images[row][..., 0] if grey else prepared.images[row])
        assert np.array_equal(np.where(label == 3, UNLABELLED, label), prepared.masks[row])
    assert sorted(path.name for path in (tmp_path / "raw").rglob("*")) == sorted(
        ["imagesTr", "labelsTr", "dataset.json", *(f"{row:06d}{end}.png" for row in rows for end in ("", "_0000"))]
    )
    described = json.loads((tmp_path / "raw/dataset.json").read_text())
    assert described["labels"] == {"background": 0, "1 lesion": 1, "2 ignore": 2, "ignore": 3}
    assert described["channel_names"] == ({"0": "grey"} if grey else {"0": "R", "1": "G", "2": "B"})
    assert (described["numTraining"], described["file_ending"]) == (6, ".png")
    assert not any(record.id in json.dumps(described) for record in prepared.records)


def test_without_unlabelled_pixels_there_is_no_ignore_label(nnunet: ModuleType, tmp_path: Path) -> None:
    nnunet.write_raw(make_prepared(tmp_path / "prepared", size=SIDE), tmp_path / "raw")
    assert json.loads((tmp_path / "raw/dataset.json").read_text())["labels"] == {"background": 0, "1 lesion": 1}


class Answers:
    """Stands for nnU-Net's predictor: sees the test images' grey values, 0, 100 and 200, and answers as it is told."""

    def __init__(self, sure: float) -> None:
        self.sure, self.network, self.seen = sure, nn.Linear(1, 2), []

    def predict_single_npy_array(
        self, image: np.ndarray, properties: dict[str, Any], *, save_or_return_probabilities: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        self.seen.append((image.shape, image.dtype, float(image.max())))
        found = np.round(image[0] / 100).astype(int)
        rest = (1 - self.sure) / 2
        probabilities = np.stack([np.where(found == index, self.sure, rest) for index in range(3)])
        return found, probabilities.astype(np.float32)


class Same(nn.Module):
    """The same answer by torch alone: squeezed and enlarged as our networks do it."""

    def forward(self, images: Tensor) -> SegmentationOutput:
        small = nn.functional.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        found = ((small[:, 0] * 255).round() / 100).round()
        background, *classes = (6.0 * (found == index) for index in range(3))
        logits = torch.stack([one - background for one in classes], dim=1)
        large = nn.functional.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
        return SegmentationOutput((), large)


def scored(prepared: Prepared, model: nn.Module, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return evaluate(EvaluateConfig(overlays=0), model, prepared, folder, title="model", device=CPU)


def test_answers_are_enlarged_and_scored_as_those_of_our_models(nnunet: ModuleType, tmp_path: Path) -> None:
    """The same answer as logits and as probabilities; swapped classes or axes, or a mask enlarged, would show."""
    prepared = data(tmp_path / "prepared")
    sure = float(np.exp(6) / (np.exp(6) + 2))
    answers = Answers(sure)
    model = nnunet.NnUnet(answers, 3, SIDE)
    ours, theirs = scored(prepared, Same(), tmp_path / "ours"), scored(prepared, model, tmp_path / "theirs")
    assert answers.seen == [((3, 1, SIDE, SIDE), np.float32, 200.0)] * 2
    assert 0.8 < theirs["dice"] < 1
    assert theirs == ours
    for row in prepared.rows("test"):
        one, other = (
            np.asarray(Image.open(tmp_path / kind / f"predictions/{row:06d}.png")) for kind in ("ours", "theirs")
        )
        assert np.array_equal(one, other)


def test_the_truth_has_dice_1(nnunet: ModuleType, tmp_path: Path) -> None:
    """At the square's own size nothing is lost; whoever is certain (probabilities 0 and 1) has finite logits."""
    prepared = data(tmp_path / "prepared")
    lines = [json.loads(line) for line in (prepared.folder / RECORDS).read_text().splitlines()]
    for row in prepared.rows("test"):
        for kind in ("image", "mask"):
            path = native_path(prepared.folder, int(row), kind)  # type: ignore[arg-type]
            Image.open(path).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(path)
        lines[row].update(height=SIDE, width=SIDE)
    (prepared.folder / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = nnunet.NnUnet(Answers(1.0), 1, SIDE)
    found = scored(Prepared(prepared.folder), model, tmp_path / "scores")
    assert (found["dice"], found["hd95_px"], found["missed"]) == (1.0, 0.0, 0)
    assert torch.isfinite(model(torch.rand(1, 3, SIDE, SIDE)).logits).all()
    row = nnunet.table_row(found, 90, model.parameters_of_network)
    assert row == {
        "model": "model", "Dice": "1.000", "95 % interval": "too few cases", "HD95 px": "0.0", "n": 2, "minutes": 1.5,
        "parameters": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "iteration", "between", "length"),
    [
        (250 * 1000 * 0.1 + 1000, 0.1, 1.0, (1000, 250)),  # nnU-Net's own
        (1e7, 0.1, 1.0, (1000, 250)),  # and never more
        (300, 1.0, 2.0, (15, 18)),  # 18 iterations, so that 2 s are a tenth
        (5000, 1.0, 0.1, (1000, 4)),  # all epochs fit: the rest goes into iterations
        (10, 1.0, 5.0, (1, 5)),  # one short epoch
    ],
)
def test_the_longest_schedule_that_ends_in_time(
    nnunet: ModuleType, seconds: float, iteration: float, between: float, length: tuple[int, int]
) -> None:
    schedule = nnunet.fit_schedule(seconds, iteration, between)
    assert (schedule.epochs, schedule.iterations) == length
    assert schedule.seconds <= seconds


def test_no_time_for_an_iteration_is_said(nnunet: ModuleType) -> None:
    with pytest.raises(UserError, match="One iteration of nnU-Net takes 7 s here"):
        nnunet.fit_schedule(5, 7.0, 1.0)


def test_seconds_of_an_iteration_are_told_from_those_between_epochs(
    nnunet: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training whose first epoch is slow, whose iterations take 2 s and whose epochs end in 7 s."""
    clock = SimpleNamespace(now=0.0)
    trainer = SimpleNamespace(train_step=lambda batch: None)

    def run_training() -> None:
        for epoch in range(nnunet.TRIAL_EPOCHS):
            for _ in range(nnunet.TRIAL_ITERATIONS):
                clock.now += 2.0 if epoch else 50.0
                trainer.train_step(None)
            clock.now += 7.0

    trainer.run_training = run_training
    monkeypatch.setattr(nnunet, "make_trainer", lambda *_: trainer)
    monkeypatch.setattr(nnunet.time, "perf_counter", lambda: clock.now)
    assert nnunet.time_iterations(CPU) == (2.0, 7.0)


def test_what_nnunet_cannot_take_is_refused(nnunet: ModuleType, tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path / "a", size=SIDE)
    empty = np.where(np.arange(SIDE) < 9, UNLABELLED, 0).astype(np.uint8)
    np.save(prepared.folder / MASKS, np.broadcast_to(empty, (6, SIDE, SIDE)))
    with pytest.raises(UserError, match="no mask holds any of the classes"):
        nnunet.refuse_unfit(prepared)
    with pytest.raises(UserError, match="has no test images"):
        nnunet.refuse_unfit(
            make_prepared(tmp_path / "b", size=SIDE, counts={"train": 2, "val": 1, "unlabelled": 0, "test": 0})
        )
    with pytest.raises(UserError, match=r"manifest.json is missing.*Give a folder of the stage prepare"):
        nnunet.open_prepared(prepared.folder)


def test_a_folder_keeps_to_one_training(nnunet: ModuleType, tmp_path: Path) -> None:
    settings = {"data": "a", "minutes": 60.0, "tiny": False}
    nnunet.take_folder(tmp_path / "out", settings)
    nnunet.take_folder(tmp_path / "out", settings)
    with pytest.raises(UserError, match="another minutes"):
        nnunet.take_folder(tmp_path / "out", {**settings, "minutes": 5.0})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("kept")
    with pytest.raises(UserError, match="holds other files"):
        nnunet.take_folder(tmp_path / "mine", settings)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_without_nnunet_one_sentence_says_how_to_get_it(nnunet: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnunet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "nnunetv2==2.8.1"'):
        nnunet.require_nnunet()


def test_nothing_is_written_before_the_data_are_found_fit(nnunet: ModuleType, tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path / "prepared", size=SIDE)
    options = argparse.Namespace(prepared=prepared.folder, out=tmp_path / "out", device="cpu", minutes=1.0, tiny=True)
    with pytest.raises(UserError):
        nnunet.compare(options)
    assert not (tmp_path / "out").exists()
