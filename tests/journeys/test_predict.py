"""From a student on disk to a bundle, and from files to masks; the student is tiny and its weights are random."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.uid import JPEG2000Lossless, generate_uid

from tests.conftest import Command
from tests.dicoms import save
from tests.unit.report_folders import run_file
from tskd.artifacts import Store
from tskd.cli import main
from tskd.data.dicom import is_dicom
from tskd.data.images import IntensityWindow, read_image
from tskd.data.nifti import read_slice
from tskd.data.prepared import Prepared
from tskd.deploy.bundle import Bundle, open_bundle, write_sums
from tskd.deploy.card import model_card
from tskd.deploy.description import BundleDescription, InputRule
from tskd.deploy.network_file import ask
from tskd.deploy.outcome import Outcome, Prediction
from tskd.deploy.predict import PredictOptions, predict_paths
from tskd.engine import open_runtime
from tskd.errors import RunFailed, UserError
from tskd.machine.disk import Draft, draft, write_json
from tskd.models.description import NetworkDescription
from tskd.models.registry import build_model, load_model, save_model
from tskd.recipe.schema import EngineConfig, ExportConfig
from tskd.stages import doubt
from tskd.stages.doubt import read_doubts
from tskd.stages.export import check_parity, export_again, parity_cases
from tskd.stages.int8 import judge_int8
from tskd.stages.workbench import Workbench

DOCS = Path(__file__).parents[2] / "docs"
SIZE, CLASSES = 32, ("cyst", "duct")
SECRET = "patient-Jane-Doe"
SCORES = {
    "student": {"model": SECRET, "dice": 0.5, "dice_ci95": [0.4, 0.6], "hd95_px": 3.0, "n_cases": 3, "missed": 1,
                "false_positive": 0, "classes": {"1": {"dice": 0.4}, "2": {"dice": 0.6}}},
    "control": {"dice": 0.7, "dice_ci95": None, "hd95_px": 2.0, "n_cases": 3, "missed": 0, "false_positive": 0},
}  # fmt: skip


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_prepared(folder: Path) -> Mapping[str, float]:
    (folder / "native").mkdir()
    records = []
    parts = ["train", "val", *["unlabelled"] * 8, "test", "test", "test"]
    for row, (part, more) in enumerate(zip(parts, [0, 1, *[9] * 8, 2, 3, 4], strict=True)):
        height, width = 30 + more, 50 + more
        records.append({"id": f"{SECRET}/{row}", "case": SECRET + part, "part": part, "height": height, "width": width})
        Image.fromarray(pixels(height, width, row)).save(folder / "native" / f"{row:06d}_image.png")
        mask = np.zeros((height, width), np.uint8)
        mask[5:20, 5:20], mask[10:15, 25:40] = 1, 2
        Image.fromarray(mask).save(folder / "native" / f"{row:06d}_mask.png")
    (folder / "records.jsonl").write_text("".join(json.dumps({**r, "spacing": None}) + "\n" for r in records))
    notes = ["intensities: 8-bit values as they are", f"{SECRET}.png has no mask"]
    described = {"name": "phantoms", "classes": CLASSES, "window": None, "notes": notes}
    write_json(folder / "dataset.json", described)
    np.save(folder / "images.npy", np.stack([pixels(SIZE, SIZE, row) for row in range(len(parts))]))
    np.save(folder / "masks.npy", np.zeros((2, SIZE, SIZE), np.uint8))
    return {}


class FinishedRun(NamedTuple):
    out: Path
    prepared: Path
    student: Path


def write_student(folder: Path) -> Mapping[str, float]:
    arguments = {"backbone": "test_efficientnet", "decoder": "pyramid"}
    description = NetworkDescription("timm", arguments, tuple(CLASSES), SIZE)
    torch.manual_seed(0)
    model = build_model(description)
    model.decoder.head.weight.data.mul_(20)  # random logits near 0 would make one class of every pixel
    save_model(folder, model, replace(description, weights=f"/home/{SECRET}/w.pth"), file="student.safetensors")
    return {}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A folder as a run leaves it, exported by what ``tskd export --int8`` calls."""
    out = tmp_path_factory.mktemp("run")
    store = Store(out / "artifacts")
    prepared = store.build("prepare", write_prepared, config={}, inputs={}, seed=0, version=1)
    inputs = {"data": prepared.digest}
    student = store.build("finetune", write_student, config={}, inputs=inputs, seed=0, version=1)
    scored = {
        name: store.build(
            "evaluate", lambda _, found=found: found, config={}, inputs={"model": name}, seed=0, version=1
        )
        for name, found in SCORES.items()
    }
    bench = Workbench(store, 0, open_runtime(EngineConfig(accelerator="cpu")))
    doubted = doubt.build(bench, prepared, prepared, student)
    found = run_file(
        doubt={"artifact": doubted.path.name, **doubted.metrics},
        artifacts={"student": student.path.name},
        evaluations={name: artifact.path.name for name, artifact in scored.items()},
        metrics=SCORES,
        recipe={"export": ExportConfig().model_dump()},
        method="scratch",
    )
    write_json(out / "run.json", found.as_dict())  # without a seal, as of before there were any
    assert export_again(out, int8=True) == out / "model"
    return FinishedRun(out, prepared.path, student.path)


@pytest.fixture
def bundle(run: FinishedRun) -> Bundle:
    return open_bundle(run.out)


def labels(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    return ask(bundle.session(1), image).classes


def described(bundle: Bundle, **changes: Any) -> BundleDescription:
    """Return what the bundle's card is made from, with some of it changed."""
    values = {
        one.name: bundle.description[one.name] for one in fields(BundleDescription) if one.name in bundle.description
    }
    shown = InputRule(**{one.name: values["input"][one.name] for one in fields(InputRule)})
    return BundleDescription(**{**values, "input": shown, **changes})


# --- the bundle ---


def test_bundle_rebuilds_the_network_and_names_no_case(run: FinishedRun, bundle: Bundle) -> None:
    ours, shipped = load_model(run.student).state_dict(), load_model(bundle.folder).state_dict()
    assert all(torch.equal(ours[name], shipped[name]) for name in ours)
    content = b"".join(file.read_bytes() for file in bundle.folder.iterdir())
    assert SECRET.encode() not in content
    assert str(run.out).encode() not in content


def test_card_tells_scores_of_baselines_and_the_verdict_on_int8(bundle: Bundle) -> None:
    card = (bundle.folder / "MODEL_CARD.md").read_text()
    expected = (
        "not a medical device",
        "| **this model** | 0.500 | 0.400 to 0.600 | 3.0 | 3 | 1 | 0 |",
        "Better than this model by Dice: control",
        "| scored once, never trained on | 3 | 1 |",
        "- int8: ",
        "A small segmentation network, trained by `tskd` (method `scratch`).",
    )
    assert [text for text in expected if text not in card] == []
    volumes = {**bundle.description["scores"]["student"], "level": "volume", "slices": {"dice": 0.75}}
    told = model_card(described(bundle, scores={"student": volumes}))
    assert "| model | 3-D Dice |" in told
    assert "the distance the volume diagonal" in told
    assert "Slice by slice this model has Dice 0.750" in told
    shipped = bundle.description["export"]["int8"]["shipped"]
    assert (bundle.folder / "model.int8.onnx").exists() == shipped


def python_of(page: str) -> str:
    """Return the last Python example of a page, as a reader copies it."""
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]


def test_the_examples_of_card_and_page_run(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where the graph answers more than an example takes, or an example names what is not there."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle.folder, "model")
    Path("out").mkdir()
    shutil.copytree(bundle.folder, "out/model")
    Image.fromarray(pixels(40, 50)).save("image.png")
    ours = ask(bundle.session(1), pixels(40, 50))

    card: dict[str, Any] = {}
    exec(python_of(bundle.folder.joinpath("MODEL_CARD.md").read_text()).replace("model.onnx", "model/model.onnx"), card)
    assert (card["classes"] == ours.classes).all()
    assert (card["probabilities"] == ours.probabilities).all()

    page: dict[str, Any] = {}
    exec(python_of(re.split("## What an export", (DOCS / "reference/bundle.md").read_text())[0]), page)
    assert (page["classes"] == ours.classes).all()


def test_the_card_tells_no_score_where_there_was_nothing_to_find(bundle: Bundle) -> None:
    nothing = dict.fromkeys(("dice", "dice_ci95", "hd95_px")) | {"n_cases": 3, "missed": 0, "false_positive": 1}
    own = {**nothing, "classes": {"1": {"dice": None, "dice_ci95": None, "hd95_px": None}}}
    told = model_card(described(bundle, scores={"student": own, "control": nothing}))
    assert "| **this model** |  | nothing to find in the test images |  | 3 | 0 | 1 |" in told
    assert "| 1 | cyst |  | nothing to find in the test images |  |" in told
    assert "Better than this model" not in told


def test_names_of_others_are_text_in_the_card(bundle: Bundle) -> None:
    names = ["<script>alert(1)</script>", "a | b", "[x](javascript:alert(1))", "two\n# lines", "\u202ecod.exe"]
    card = model_card(described(bundle, classes=tuple(names), dataset="<img src=x>"))
    raw = ("<script", "<img", "](javascript", "\n# lines", "\u202e")
    assert [text for text in raw if text in card] == []
    assert "| 1 | &lt;script&gt;alert(1)&lt;/script&gt; |" in card
    assert "| 2 | a \\| b |" in card


def test_a_file_that_differs_from_the_network_fails_and_names_the_worst_case(run: FinishedRun, bundle: Bundle) -> None:
    segmenter, cases = load_model(run.student), parity_cases(Prepared(run.prepared), 2)
    assert [case.image.shape[:2] for case in cases] == [(32, 52), (34, 54)], "native size, first and last of the test"
    segmenter.decoder.head.bias.data.add_(1.0)
    with pytest.raises(RunFailed, match=rf"differs by .* on {SECRET}"):
        check_parity(segmenter, bundle.session(1), cases, max_dice_drop=0.001)
    with pytest.raises(RunFailed, match="a probability differs"):
        check_parity(segmenter, bundle.session(1), cases, max_dice_drop=1.0)


def test_a_run_of_before_is_told_what_its_bundle_lacks(run: FinishedRun, tmp_path: Path) -> None:
    shutil.copytree(run.out, tmp_path / "run")
    summary = json.loads((run.out / "run.json").read_text())
    del summary["doubt"]
    write_json(tmp_path / "run/run.json", summary)
    with pytest.raises(UserError, match=r"of its doubts is not there.*same settings again"):
        export_again(tmp_path / "run")


def test_a_file_with_other_doubts_than_the_network_fails(run: FinishedRun, bundle: Bundle) -> None:
    """Spread and limit that went into the file are those that were measured."""
    segmenter, cases = load_model(run.student), parity_cases(Prepared(run.prepared), 2)
    doubts = read_doubts(next((run.out / "artifacts").glob("doubt-*")))
    assert check_parity(segmenter, bundle.session(1), cases, max_dice_drop=0.001, doubts=doubts)
    assert doubts.familiar is not None
    doubts.familiar.weights.mul_(4)
    with pytest.raises(RunFailed, match="its doubt differs"):
        check_parity(segmenter, bundle.session(1), cases, max_dice_drop=0.001, doubts=doubts)


@pytest.mark.parametrize(
    ("drop", "int8_ms", "shipped"),
    [
        (0.0, 5.0, True),
        (0.005, 5.0, True),
        (0.006, 5.0, False),
        (0.0, 10.0, False),
        (-0.1, 9.9, True),
        (None, 5.0, False),
    ],
)
def test_int8_has_to_be_as_good_and_faster(drop: float | None, int8_ms: float, shipped: bool) -> None:
    assert judge_int8("static", drop, 10.0, int8_ms, megabytes=1).shipped is shipped


@pytest.mark.parametrize(("said", "measured"), [(None, True), (False, False)])
def test_an_export_again_keeps_what_the_recipe_says(
    run: FinishedRun, said: bool | None, measured: bool, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(run.out, tmp_path / "out"))
    summary = json.loads((out / "run.json").read_text())
    summary["recipe"]["export"]["int8"] = True
    write_json(out / "run.json", summary)
    assert ("int8" in open_bundle(export_again(out, int8=said)).description["export"]) is measured


def test_an_export_needs_the_run_it_belongs_to(run: FinishedRun, tmp_path: Path) -> None:
    shutil.copytree(run.out / "model", tmp_path / "model")
    with pytest.raises(UserError, match=r"there is no run\.json"):
        export_again(tmp_path / "model", int8=True)
    shutil.copyfile(run.out / "run.json", tmp_path / "run.json")
    for evaluation in run.out.glob("artifacts/evaluate-*"):
        shutil.copytree(evaluation, tmp_path / "artifacts" / evaluation.name)
    with pytest.raises(UserError, match=r"the student that run\.json names is gone"):
        export_again(tmp_path / "model", int8=True)
    shutil.copytree(run.student, tmp_path / "artifacts" / run.student.name)
    with pytest.raises(UserError, match="data the student was trained on is gone"):
        export_again(tmp_path / "model", int8=True)


def damage_weights(run: FinishedRun, out: Path) -> None:
    path = out / "artifacts" / run.student.name / "student.safetensors"
    content = bytearray(path.read_bytes())
    content[-40:] = bytes(40)
    path.write_bytes(content)


def damage_data(run: FinishedRun, out: Path) -> None:
    native = out / "artifacts" / run.prepared.name / "native"
    shutil.copyfile(native / "000003_mask.png", native / "000010_mask.png")


def raise_a_score(run: FinishedRun, out: Path) -> None:
    summary = json.loads((out / "run.json").read_text())
    summary["metrics"]["student"]["dice"] = 0.987
    write_json(out / "run.json", summary)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_weights, r"finetune-\w+ is damaged \(student.safetensors has changed\)"),
        (damage_data, r"prepare-\w+ is damaged \(native/000010_mask.png has changed\)"),
        (raise_a_score, r"dice of student in run.json is not that of artifacts/evaluate-\w+"),
    ],
)
def test_what_was_changed_since_the_run_is_not_exported(
    run: FinishedRun, tmp_path: Path, damage: Callable[[FinishedRun, Path], None], said: str
) -> None:
    """Parity would compare the damaged network with itself, and the card tell the scores of the whole one."""
    out = Path(shutil.copytree(run.out, tmp_path / "out"))
    before = (out / "model" / "SHA256SUMS").read_bytes()
    damage(run, out)
    with pytest.raises(UserError, match=said):
        export_again(out)
    assert (out / "model" / "SHA256SUMS").read_bytes() == before


# --- prediction ---


def test_intensities_are_windowed_as_in_training(bundle: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle.folder, tmp_path / "model")
    description = json.loads((folder / "model.json").read_text())
    description["input"]["window"] = [-100.0, 155.0]
    write_json(folder / "model.json", description)
    write_sums(folder)
    values = np.random.default_rng(1).integers(-1000, 1000, (24, 20, 2), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "ct.nii")
    predict_paths(open_bundle(folder), [tmp_path / "ct.nii"], tmp_path / "out")
    windowed = read_image(tmp_path / "ct.nii", index=0, intensity=IntensityWindow(-100, 155))
    answer = read_slice(tmp_path / "out" / "ct.nii.gz", 0)
    np.testing.assert_array_equal(answer, labels(bundle, windowed))
    assert (answer != labels(bundle, read_image(tmp_path / "ct.nii", index=0))).any()


def test_folders_keep_their_shape_and_a_bad_file_stops_nothing(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "in" / "predictions"
    (source / "deep").mkdir(parents=True)
    images = {"a.png": pixels(40, 60, 1), "deep/b.tif": pixels(33, 33, 2), "z.bmp": pixels(20, 90, 3)}
    for name, image in images.items():
        Image.fromarray(image).save(source / name)
    (source / "broken.png").write_bytes(b"not an image")
    (source / "notes.txt").write_text("passed over")
    outcome = predict_paths(bundle, [source], out)
    for name, image in images.items():
        written = np.asarray(Image.open((out / name).with_suffix(".png")))
        np.testing.assert_array_equal(written, labels(bundle, image))
    assert [failure.source for failure in outcome.failures] == [source / "broken.png"]
    assert "broken.png" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"1 input could not be predicted(.|\n)*broken\.png"):
        outcome.require_complete()
    again = predict_paths(bundle, [source], out, options=PredictOptions(overwrite=True))
    assert len(again.predictions) == 3, "results in the folder are no inputs"


def test_the_summary_counts_images_masks_and_empty_ones(tmp_path: Path) -> None:
    found = Prediction(Path("a.png"), None, Path("a.png"), 4, 4, (3, 0), None)
    slices = [Prediction(Path("v.nii"), k, Path("v.nii.gz"), 4, 4, (0, k), None) for k in range(3)]
    nothing = Prediction(Path("b.png"), None, Path("b.png"), 4, 4, (0, 0), None)
    outcome = Outcome(CLASSES, [found, *slices, nothing], seconds=61.0)
    assert outcome.summary(tmp_path) == (
        f"5 images in 1 min 01 s (12.20 s each); 3 masks in {tmp_path}, 1 of them empty; "
        f"areas in {tmp_path / 'predictions.csv'}"
    )


def test_the_command_ends_with_the_summary_or_with_json(run: FinishedRun, tskd: Command, tmp_path: Path) -> None:
    Image.fromarray(pixels(40, 60, 1)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    said = tskd("predict", run.out, tmp_path / "a.png", "--out", out)
    assert said.returncode == 0
    assert re.fullmatch(rf"1 image in \d+ s \(\d+\.\d\d s each\); 1 mask in {out}, 0 of them empty; .*\n", said.stdout)
    said = tskd("predict", run.out, tmp_path / "a.png", "--out", out, "--overwrite", "--json")
    assert json.loads(said.stdout)["predictions"][0]["output"] == "a.png"


def test_table_counts_pixels_of_each_class(bundle: Bundle, tmp_path: Path) -> None:
    image = pixels(40, 60, 1)
    Image.fromarray(image).save(tmp_path / "a.png")
    predict_paths(bundle, [tmp_path / "a.png"], tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    expected = np.bincount(labels(bundle, image).ravel(), minlength=3)
    assert [(line["name"], int(line["pixels"])) for line in lines] == [("cyst", expected[1]), ("duct", expected[2])]
    assert expected[1:].all(), "the random network must find both classes, or this test proves nothing"
    assert {(line["height"], line["width"], line["mm2"]) for line in lines} == {("40", "60", "")}


def test_extras_are_written_when_asked(bundle: Bundle, tmp_path: Path) -> None:
    image = pixels(40, 60, 1)
    Image.fromarray(image).save(tmp_path / "a.png")
    options = PredictOptions(probabilities=True, overlays=True)
    predict_paths(bundle, [tmp_path / "a.png"], tmp_path / "out", options=options)
    names = ["a.overlay.png", "a.png", "a.probabilities.npz", "predictions.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    stored = np.load(tmp_path / "out" / "a.probabilities.npz", allow_pickle=False)["probabilities"]
    np.testing.assert_array_equal(stored.argmax(axis=0), labels(bundle, image))


def test_nothing_is_overwritten_unasked_and_inputs_never(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels(20, 20)).save(path)
    before = path.read_bytes()
    predict_paths(bundle, [path], tmp_path / "out")
    with pytest.raises(UserError, match="--overwrite"):
        predict_paths(bundle, [path], tmp_path / "out")
    predict_paths(bundle, [path], tmp_path / "out", options=PredictOptions(overwrite=True))
    with pytest.raises(UserError, match="never replace"):
        predict_paths(bundle, [path], tmp_path, options=PredictOptions(overwrite=True))
    with pytest.raises(UserError, match="is a file"):
        predict_paths(bundle, [path], path)
    assert path.read_bytes() == before


def test_two_inputs_with_one_answer_are_named_and_the_others_done(bundle: Bundle, tmp_path: Path) -> None:
    """They ended everything before the first mask. Neither gets a mask: whose it is could not be told."""
    for name in ("a.png", "a.bmp", "b.png", "c_0000.png"):
        Image.fromarray(pixels(20, 20)).save(tmp_path / name)
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 1), np.int16), np.eye(4)), tmp_path / "c.nii")
    options = PredictOptions(probabilities=True)
    outcome = predict_paths(bundle, [tmp_path], tmp_path / "out", options=options)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "b.png", "b.probabilities.npz", "predictions.csv",
    }  # fmt: skip
    assert [line.source.name for line in outcome.failures] == ["a.bmp", "a.png", "c.nii", "c_0000.png"]
    assert re.search(
        r"a\.bmp: would be answered in a\.png, and so would \S*a\.png\. Rename one", outcome.failures[0].problem
    )
    assert "c_0000.probabilities.npz" in outcome.failures[2].problem
    assert outcome.not_done == []


def test_an_empty_or_missing_input_is_said_plainly(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image found"):
        predict_paths(bundle, [tmp_path], tmp_path / "out")
    with pytest.raises(UserError, match="no such file"):
        predict_paths(bundle, [tmp_path / "nowhere"], tmp_path / "out")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_nifti_labels_lie_on_the_volumes_own_grid(bundle: Bundle, codes: str, axis: int, tmp_path: Path) -> None:
    """Sliced as the network saw it, whatever the file's own order of axes."""
    bundle.description["input"]["axis"] = axis
    values = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    canonical = nibabel.Nifti1Image(values, np.array([[2.0, 0.1, 0, 5], [0, 3, 0, -7], [0, 0, 4, 9], [0, 0, 0, 1]]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(canonical.affine), nibabel.orientations.axcodes2ornt(codes)
    )
    path = tmp_path / "liver.v1.nii.gz"
    nibabel.save(canonical.as_reoriented(turn), path)
    outcome = predict_paths(bundle, [path], tmp_path / "out")
    written = tmp_path / "out" / "liver.v1.nii.gz"
    source, answer = nibabel.load(path), nibabel.load(written)
    np.testing.assert_allclose(answer.affine, source.affine, atol=1e-5)
    assert (answer.shape, answer.get_data_dtype()) == (source.shape, np.uint8)
    count, area = {0: (24, 12), 1: (20, 8), 2: (3, 2 * np.hypot(0.1, 3))}[axis]
    for index in range(3):
        expected = labels(bundle, read_image(path, index=index, axis=axis))
        np.testing.assert_array_equal(read_slice(written, index, axis=axis), expected)
    assert outcome.predictions[0].pixel_mm2 == pytest.approx(area, rel=2e-3)
    assert [prediction.slice for prediction in outcome.predictions] == list(range(count))


def test_areas_are_in_square_millimetres_and_lost_grey_levels_are_told(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red where micrometres are taken for millimetres, an area is rounded to 0, or 12 bits in 16 pass in silence."""
    grey = (pixels(40, 48)[..., 0].astype(np.uint16) << 4).T
    volume = nibabel.Nifti1Image(np.stack([grey] * 2, axis=2), np.diag([-0.9, 0.9, 3, 1]))
    volume.header.set_xyzt_units("micron")
    (tmp_path / "in").mkdir()
    nibabel.save(volume, tmp_path / "in/micron.nii.gz")
    Image.fromarray(grey).save(tmp_path / "in/deep.png")
    outcome = predict_paths(bundle, [tmp_path / "in"], tmp_path / "out")
    areas = [line for line in outcome.lines() if line["mm2"]]
    assert areas
    assert all(line["mm2"] == pytest.approx(line["pixels"] * 8.1e-7, rel=1e-5) for line in areas)
    (told,) = [line for line in capsys.readouterr().err.replace("\n", " ").split("warning: ") if "grey levels" in line]
    assert "deep.png: only 17 grey levels reach the network: the values 0 to 4080 are in use, of 65535" in told
    assert "data.window=[0,4080]" in told


@pytest.mark.parametrize("axis", [0, 2])
def test_nifti_frames_are_answered_frame_by_frame(bundle: Bundle, axis: int, tmp_path: Path) -> None:
    bundle.description["input"]["axis"] = axis
    values = np.random.default_rng(0).integers(0, 256, (10, 12, 3, 2), dtype=np.uint8)
    affine = np.diag([-2.0, 3, 4, 1])
    path = tmp_path / "cine.nii"
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    predict_paths(bundle, [path], tmp_path / "out")
    answer = nibabel.load(tmp_path / "out" / "cine.nii.gz")
    assert answer.shape == values.shape
    np.testing.assert_allclose(answer.affine, affine)
    for frame in range(2):
        alone = tmp_path / f"frame{frame}.nii"
        nibabel.save(nibabel.Nifti1Image(values[..., frame], affine), alone)
        predict_paths(bundle, [alone], tmp_path / f"out{frame}")
        expected = nibabel.load(tmp_path / f"out{frame}" / f"frame{frame}.nii.gz")
        np.testing.assert_array_equal(np.asarray(answer.dataobj)[..., frame], np.asarray(expected.dataobj))


def write_dicom(path: Path, number: int, *, series: str, z: float | None, **tags: object) -> Path:
    """Write 20 rows and 24 columns of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plane = {"ImagePositionPatient": [-10.0, -20.0, z], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    named = {"PatientName": SECRET, "PatientID": SECRET, "SeriesInstanceUID": series, "InstanceNumber": number}
    placed = {} if z is None else {**plane, "PixelSpacing": [0.5, 0.7]}
    return save(pixels(20, 24, number)[..., 0], path, **{**named, **placed, **tags})


def test_a_dicom_series_becomes_one_volume_in_order_of_position(bundle: Bundle, tmp_path: Path) -> None:
    series, heights = generate_uid(), {"c.dcm": 0.0, "a.dcm": 5.0, "b.dcm": 10.0}
    for number, (name, z) in enumerate(heights.items()):
        write_dicom(tmp_path / "in" / "case7" / name, number, series=series, z=z)
    outcome = predict_paths(bundle, [tmp_path / "in"], tmp_path / "out")
    volume = nibabel.load(tmp_path / "out" / "case7.nii.gz")
    expected = [labels(bundle, read_image(tmp_path / "in" / "case7" / name)) for name in heights]
    np.testing.assert_array_equal(np.asarray(volume.dataobj), np.stack([plane.T for plane in expected], axis=2))
    # row 0, column 0 of the first slice at (-10, -20, 0) in DICOM's LPS is (10, 20, 0) in NIfTI's RAS
    np.testing.assert_allclose(volume.affine, [[-0.7, 0, 0, 10], [0, -0.5, 0, 20], [0, 0, 5, 0], [0, 0, 0, 1]])
    assert [prediction.pixel_mm2 for prediction in outcome.predictions] == pytest.approx([0.35] * 3)
    everything = b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert SECRET.encode() not in everything


@pytest.mark.parametrize("heights", [[None, None], [0.0, 5.0, 13.0]], ids=["no geometry", "uneven"])
def test_dicom_files_that_form_no_grid_become_images(
    bundle: Bundle, heights: list[float | None], tmp_path: Path
) -> None:
    series = generate_uid()
    paths = [write_dicom(tmp_path / f"1.2.{n}", n, series=series, z=z) for n, z in enumerate(heights)]
    assert pydicom.misc.is_dicom(paths[0])
    predict_paths(bundle, [tmp_path], tmp_path / "out")
    for path in paths:
        written = np.asarray(Image.open(tmp_path / "out" / f"{path.name}.png"))
        np.testing.assert_array_equal(written, labels(bundle, read_image(path)))


def test_results_are_the_same_whatever_the_number_of_threads(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red where a table or warnings come in the order in which threads end: the first file takes longest here."""
    scans = tmp_path / "in"
    scans.mkdir()
    for number in range(8):
        if number % 3 == 1:
            (scans / f"{number}.png").write_bytes(b"not an image")
        elif number % 3 == 2:
            Image.fromarray(pixels(20, 30, number)[..., 0].astype(np.uint16) << 4).save(scans / f"{number}.png")
        else:
            Image.fromarray(pixels(20 + number, 30, number)).save(scans / f"{number}.png")

    def slow_at_first(path: Path, **options: object) -> np.ndarray:
        time.sleep(0.05 * (path.name in ("0.png", "4.png")))
        return read_image(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("tskd.deploy.predict.read_image", slow_at_first)
    said, made = [], []
    for threads in (1, 4):
        out = tmp_path / f"out{threads}"
        predict_paths(bundle, [scans], out, options=PredictOptions(overlays=True, probabilities=True, threads=threads))
        said.append(capsys.readouterr().err)
        made.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert said[0] == said[1]
    assert re.findall(r"in/(\d)\.png: ", said[0]) == ["1", "2", "4", "5", "7"]
    assert made[0].keys() == made[1].keys()
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell lets what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM"])
def test_a_table_lists_what_was_written_before_a_stop(
    by: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in range(5):
        Image.fromarray(pixels(20, 30, number)).save(scans / f"{number}.png")
    before, shown = signal.getsignal(signal.SIGTERM), threading.Event()
    publish = Draft.publish

    def published(self: Draft) -> None:
        publish(self)
        if self.path.name == "1.png":
            shown.set()

    def stopped(path: Path, **options: object) -> np.ndarray:
        if path.name == "2.png":  # by now 3.png is in work too, and perhaps written: both are lost
            assert shown.wait(10)
            time.sleep(0.5)  # the main thread notes what it has published just now
            signal.raise_signal(signal.SIGTERM if by == "SIGTERM" else signal.SIGINT)
        return read_image(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Draft, "publish", published)
    monkeypatch.setattr("tskd.deploy.predict.read_image", stopped)
    with pytest.raises(SystemExit, match="130"):
        main(["predict", str(bundle.folder), str(scans), "--out", str(tmp_path / "out"), "--json", "--threads", "1"])
    said = capsys.readouterr()
    assert "stopped before the end, 3 not done: 2 images" in said.err
    told = json.loads(said.out)
    assert {line["output"] for line in told["predictions"]} == {"0.png", "1.png"}
    assert told["not_done"] == [str(scans / f"{number}.png") for number in (2, 3, 4)]
    assert told["error"] == "stopped before the end"
    assert signal.getsignal(signal.SIGTERM) is before
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        assert {line["output"] for line in csv.DictReader(file)} == {"0.png", "1.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0.png", "1.png", "predictions.csv"}


def test_a_file_that_may_not_be_read_does_not_stop_the_others(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("locked", "open"):
        Image.fromarray(pixels(20, 30)).save(scans / f"{name}.png")
    really = io.open

    def refuse(file: Any, *arguments: Any, **options: Any) -> Any:  # root may read all: permissions cannot be tried
        if str(file).endswith("locked.png"):
            raise PermissionError(13, "Permission denied", str(file))
        return really(file, *arguments, **options)

    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    outcome = predict_paths(bundle, [scans], tmp_path / "out")
    assert [failure.source.name for failure in outcome.failures] == ["locked.png"]
    assert "locked.png: the file may not be read (permission denied)" in outcome.failures[0].problem
    assert [prediction.source.name for prediction in outcome.predictions] == ["open.png"]


def test_a_gap_gives_two_volumes_and_other_objects_are_counted(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, series = tmp_path / "in" / "case", generate_uid()
    for number, z in enumerate((0.0, 5.0, 15.0, 20.0)):
        write_dicom(folder / f"{number}.dcm", number, series=series, z=z)
    for number in range(2):
        write_dicom(
            folder / f"plan{number}.dcm", 9, series=generate_uid(), z=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.5"
        )
    outcome = predict_paths(bundle, [tmp_path / "in"], tmp_path / "out")
    assert not outcome.failures
    assert {str(one.output) for one in outcome.predictions} == {"case_1.nii.gz", "case_2.nii.gz"}
    assert nibabel.load(tmp_path / "out/case_2.nii.gz").affine[2].tolist() == [0, 0, 5, 15]
    said = capsys.readouterr().err
    assert "case: slices of a series are missing: the distance is 5 mm, but 10 mm" in said
    assert said.count("passed over, since they are not scans: 2 RT plan (RTPLAN).") == 1


def test_a_slice_with_damaged_pixels_leaves_the_others_as_images(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, series = tmp_path / "in" / "case", generate_uid()
    noise = pixels(64, 64)[..., 0]
    plane = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.5, 0.7], "SeriesInstanceUID": series}
    folder.mkdir(parents=True)
    paths = [
        save(noise, folder / f"{number}.dcm", compress=JPEG2000Lossless, ImagePositionPatient=[0, 0, number], **plane)
        for number in range(3)
    ]
    data = pydicom.dcmread(paths[1])
    data.PixelData = data.PixelData[:60] + bytes(len(data.PixelData) - 60)
    data.save_as(paths[1])
    Image.fromarray(pixels(20, 30)).save(tmp_path / "in" / "z.png")
    outcome = predict_paths(bundle, [tmp_path / "in"], tmp_path / "out")
    assert [failure.source for failure in outcome.failures] == [paths[1]]
    assert [str(one.output) for one in outcome.predictions] == ["case/0.png", "case/2.png", "z.png"]
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out/case/2.png")), labels(bundle, read_image(paths[2]))
    )
    said = capsys.readouterr().err
    assert "1.dcm: its compressed pixels" in said
    assert "2 others are written as single images" in said


@pytest.mark.parametrize("error", [RuntimeError("of the network"), MemoryError(), IndexError(SECRET), RecursionError()])
def test_whatever_goes_wrong_with_one_item_costs_that_item(
    error: Exception,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.fromarray(pixels(20, 30 + number, number)).save(tmp_path / "in" / f"{number}.png")

    def fails(session: object, image: np.ndarray) -> object:
        if image.shape[1] == 31:
            raise error
        return ask(session, image)  # type: ignore[arg-type]

    monkeypatch.setattr("tskd.deploy.predict.ask", fails)
    outcome = predict_paths(bundle, [tmp_path / "in"], tmp_path / "out")
    assert [failure.source.name for failure in outcome.failures] == ["1.png"]
    assert [str(one.output) for one in outcome.predictions] == ["0.png", "2.png"]
    said = capsys.readouterr().err
    assert f"1.png: could not be predicted ({type(error).__name__})" in said
    assert SECRET not in said


def test_a_full_disk_ends_it_with_what_is_finished_listed(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.fromarray(pixels(20, 30, number)).save(tmp_path / "in" / f"{number}.png")

    others = threading.Event()

    def full(path: Path, content: bytes) -> Draft:
        if path.name == "1.png":
            others.wait(10)  # the later one has room, and must not appear all the same: no table would list it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        made = draft(path, content)
        if path.name == "2.png":
            others.set()
        return made

    monkeypatch.setattr("tskd.deploy.label_files.draft", full)
    with pytest.raises(OSError, match="No space left on device"):
        predict_paths(bundle, [tmp_path / "in"], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "predictions.csv"]
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        assert {line["output"] for line in csv.DictReader(file)} == {"0.png"}


def test_large_images_are_answered_one_at_a_time(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red where each thread takes one of 60 million pixels, and the system ends the process."""
    for number in range(4):
        Image.fromarray(pixels(20, 30, number)).save(tmp_path / f"{number}.png")
    inside, most = [], []

    def watched(session: Any, image: np.ndarray) -> Any:
        inside.append(image)
        most.append(len(inside))
        time.sleep(0.05)
        answer = ask(session, image)
        inside.pop()
        return answer

    monkeypatch.setattr("tskd.deploy.predict.ask", watched)
    for limit, expected in ((1000, 1), (1200, 2)):
        monkeypatch.setattr("tskd.deploy.predict.MAX_PIXELS", limit)
        most.clear()
        options = PredictOptions(threads=4, overwrite=True)
        predict_paths(bundle, sorted(tmp_path.glob("*.png")), tmp_path / "out", options=options)
        assert max(most) == expected


def test_lost_grey_levels_are_told(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.arange(600, dtype=np.uint16).reshape(20, 30)
    save(values, tmp_path / "wide.dcm", Modality="MR", WindowCenter=32768, WindowWidth=65536)
    save(values, tmp_path / "fit.dcm", Modality="MR", WindowCenter=300, WindowWidth=600)
    predict_paths(bundle, [tmp_path / "fit.dcm"], tmp_path / "out", options=PredictOptions(dicom_seg=None))
    assert capsys.readouterr().err == ""
    predict_paths(bundle, [tmp_path / "wide.dcm"], tmp_path / "out2")
    assert "wide.dcm: only 3 grey levels reach the network: the values 0 to 599" in capsys.readouterr().err


def test_the_files_that_pydicom_and_nibabel_are_tested_with(run: FinishedRun, tskd: Command, tmp_path: Path) -> None:
    """Each is read as its library reads it or named; nothing ends the batch, nothing of a library's own is printed."""
    shipped = Path(pydicom.data.__file__).parent / "test_files"
    volumes = Path(nibabel.__file__).parent / "tests" / "data"
    folder = tmp_path / "in"
    shutil.copytree(shipped, folder / "dicom", ignore=shutil.ignore_patterns("TINY_ALPHA", "*.py"))
    shutil.copytree(volumes, folder / "nifti", ignore=shutil.ignore_patterns("*.py"))
    done = tskd("predict", run.out, folder, "--out", tmp_path / "out", "--json")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert all(line.startswith(("warning: ", "error: ", "  ", "predict: ")) for line in done.stderr.splitlines()), (
        done.stderr
    )
    told = json.loads(done.stdout)
    read = {Path(line["file"]).name for line in told["predictions"]}
    failed = {Path(line["file"]).name for line in told["failures"]}
    copies = set(re.findall(r"([^/]+): is a copy of", done.stderr))
    (counts,) = re.findall(r"passed over, since they are not scans: (.*)\.", done.stderr)
    given = {path.name for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR" and is_dicom(path)}
    assert len(given - read - failed - copies) == sum(map(int, re.findall(r"(?:^|, )(\d+) ", counts))), "none is lost"
    assert {
        "CT_small.dcm",
        "MR_small.dcm",
        "JPEG2000.dcm",
        "693_J2KI.dcm",
        "image_dfl.dcm",
        "examples_palette.dcm",
    } <= read
    assert {
        "SC_rgb_rle_32bit_2frame.dcm",
        "examples_overlay.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "anatomical.nii",
    } <= read
    assert {"MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm"} <= copies, "of MR_small.dcm"
    assert "MR_truncated.dcm" in failed
    assert not read & failed
    for kind in ("RTDOSE", "RTPLAN", "RTSTRUCT", "SEG", "SR", "waveform"):
        assert kind in done.stderr


def test_a_folder_that_cannot_be_made_is_one_error(bundle: Bundle, tmp_path: Path) -> None:
    Image.fromarray(pixels(20, 30)).save(tmp_path / "a.png")
    with pytest.raises(NotADirectoryError, match=r"a\.png/out"):
        predict_paths(bundle, [tmp_path / "a.png"], tmp_path / "a.png" / "out")


def test_a_place_that_takes_nothing_is_not_said_to_hold_masks(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red where masks are spoken of that were never made: a read-only folder is one line."""

    def refuses(path: Path, content: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    Image.fromarray(pixels(20, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr("tskd.deploy.label_files.draft", refuses)
    with pytest.raises(OSError, match="Read-only"):
        predict_paths(bundle, [tmp_path / "a.png"], tmp_path / "out")
    assert capsys.readouterr().err == ""


# --- names and disks ---


def write_image(path: Path) -> None:
    Image.fromarray(pixels(12, 10)).save(path, "PNG")


def test_names_that_are_no_text_or_too_long_or_formulas_cost_no_result(
    bundle: Bundle, tskd: Command, tmp_path: Path
) -> None:
    """A name in Latin-1 lost the whole table, one of 245 letters the rest of the folder."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    long = "x" * 245 + ".png"
    names = [os.fsdecode(b"\xe4rzte.png"), "=HYPERLINK(1).png", "good.png", long]
    for name in names:
        write_image(images / name)
    answer = tskd("predict", bundle.folder, *(images / name for name in names), "--out", out, "--overlays")
    assert (answer.returncode, "Traceback" in answer.stderr) == (2, False)
    assert f"{long[:-4]}.overlay.png: the name of this result is too long" in answer.stderr
    made = {path.name for path in out.iterdir()}
    assert made >= {name for name in names if name != long}
    rows = list(csv.DictReader((out / "predictions.csv").open(newline="", encoding="utf-8")))
    assert [row["output"] for row in rows[::2]] == ["\\udce4rzte.png", "'=HYPERLINK(1).png", "good.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are Unix's")
def test_a_limit_of_the_disk_is_one_line_and_leaves_whole_files_only(bundle: Bundle, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(3):
        Image.fromarray(pixels(90, 90, number)).save(images / f"{number}.png")
    line = [sys.executable, "-m", "tskd.cli", "predict", bundle.folder, images, "--probabilities", "--out", out]
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (8192, 8192))
    answer = subprocess.run(line, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert answer.returncode == 1
    assert re.fullmatch(rf"error: {out}/0.probabilities.npz: File too large\..*\n", answer.stderr)
    assert [path.name for path in out.iterdir()] == ["predictions.csv"]
    again = subprocess.run([*line, "--overwrite"], capture_output=True, text=True, check=False)
    assert (again.returncode, len(list(out.glob("*.npz")))) == (0, 3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda place: place.symlink_to(place), "Too many levels of symbolic links"),
        (lambda place: place.symlink_to("nowhere"), "is a link that leads nowhere"),
        (lambda place: place.write_text("mine"), "is a file"),
        (lambda place: os.mkfifo(place), "is a file"),
    ],
    ids=["loop", "broken link", "file", "pipe"],
)
def test_a_place_that_takes_no_results_is_one_line(
    bundle: Bundle, tskd: Command, tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    write_image(tmp_path / "one.png")
    make(tmp_path / "out")
    answer = tskd("predict", bundle.folder, tmp_path / "one.png", "--out", tmp_path / "out")
    assert answer.returncode in (1, 2)
    assert answer.stderr.startswith(f"error: {tmp_path / 'out'}")
    assert said in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["check", "run", "predict"])
def test_a_name_never_breaks_a_message_in_two(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Each message quotes the folder and a file; both have names that break lines, steer a terminal or turn text."""
    root = tmp_path / "da\nta"
    names = ("new\nline.png", "car\rriage.png", "e\x1b[31msc.png", "bi\u202edi.png", "u\u2028x.png")
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for name in names:
        (root / "images" / name).write_bytes(b"no image")
        (root / "images" / f"link {name}").symlink_to("nowhere")
        (root / "masks" / f"alone {name}").write_bytes(b"no image")
    arguments = {
        "check": ["check", str(root)],
        "run": ["run", "laptop", "--data", str(root), "--out", str(tmp_path / "o\nut")],
        "predict": ["predict", str(bundle.folder), str(root), "--out", str(tmp_path / "o\nut")],
    }[command]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    said = "".join(capsys.readouterr())
    assert not set(said) & {"\r", "\x1b", "\u202e", "\u2028"}
    assert r"new\nline.png" in said
    broken = [
        line for line in said.split("\n") if line.strip() in ("da", "o") or line.startswith(("ta", "ut", "line."))
    ]
    assert broken == []
