"""The report of a run: what it says, what it leaves out, and what must never be in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from report_folders import SECRET, draw_data, make_run, run_file, train

from tskd.artifacts import SEAL, Artifact, Store, sealed
from tskd.errors import UserError
from tskd.experiment.summary import print_summary
from tskd.machine.disk import write_json
from tskd.metrics.comparison import PairTest
from tskd.report import REPORT, text, update_run_report, write_report
from tskd.report.blocks import Page, Section, Table
from tskd.report.pictures import Album, Gallery, failures
from tskd.report.run.folder import RunFolder, open_run
from tskd.report.run.page import run_page
from tskd.report.run.training import stage_title
from tskd.report.run.verdict import verdict
from tskd.report.shareable import shareable
from tskd.report.write import render

MOST_BYTES = 10_000_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("hospital") / "ward7", classes="<i>lesion</i>", empty=(1,), faint=(6,))


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), root)


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def sections_of(page: Page) -> list[str]:
    return [section.name for section in page.sections]


def table_of(section: Section, column: str) -> Table:
    return next(block for block in section.blocks if isinstance(block, Table) and column in block.columns)


# --- what it says ---


def test_every_section_is_there_and_reachable(html: str) -> None:
    found = re.findall(r'<section id="(\w+)">', html)
    assert found == [
        *("scores", "overlays", "failures", "transfer", "training", "resources", "data", "limits", "costs"),
        "reproduce",
    ]
    assert re.findall(r'<a href="#(\w+)">', html) == found


def test_the_score_table_repeats_run_json(folder: Path) -> None:
    run = open_run(folder)
    table = table_of(run_page(run).sections[0], "missed")
    for name, row in zip(run.models, table.rows, strict=True):
        scores = run.metrics[name]
        low, high = scores["dice_ci95"]
        assert row[1:3] == (f"{scores['dice']:.3f}", f"{low:.3f} to {high:.3f}")
        there, absent = scores["missed"] + scores["scored"], scores["false_positive"] + scores["both_empty"]
        shares = (f"{scores['missed']} of {there}", f"{scores['false_positive']} of {absent}")
        assert row[7:] == shares
        assert there + absent == scores["n_images"]  # one class
    assert table.rows[next(iter(table.strong))][0] == "Student"


@pytest.mark.parametrize(("absent", "columns"), [(0, ("model", "missed")), (3, ("model", "missed", "false positive"))])
def test_errors_that_cannot_happen_are_not_counted(absent: int, columns: tuple[str, ...]) -> None:
    """Red where test images that all show the class are told as "0 of 0" false positives."""
    here = {"missed": 0, "scored": 4, "false_positive": 0, "both_empty": absent}
    nowhere = here | {"both_empty": 0}
    rows = [("one", text.missed(one), text.false_positives(one)) for one in (here, nowhere)]
    shown, kept = text.without_idle(("model", text.MISSED, text.FALSE_POSITIVE), rows)
    assert shown == columns
    assert kept[0] == ("one", "0 of 4", "0 of 3")[: len(columns)]
    assert kept[1] == ("one", "0 of 4", text.NOTHING)[: len(columns)]


def test_training_compute_is_told_with_its_rule(html: str) -> None:
    costs = html[html.index('<section id="costs">') : html.index('<section id="reproduce">')]
    assert "Every student has the same training compute." in costs
    assert costs.count("<td>5.4</td><td>0.012</td>") == 4


def test_differences_are_paired_by_case(folder: Path) -> None:
    run = open_run(folder)
    tests = {test.method: test for test in run.tests}
    for name in ("teacher", "scratch", "control"):
        expected = run.metrics[name]["dice"] - run.metrics["student"]["dice"]
        assert tests[name].difference == pytest.approx(expected, abs=1e-12)
        assert tests[name].n_cases == 8
    # the paired interval is far shorter than those of the means, which the one failed case stretches
    low, high = tests["control"].ci95_low, tests["control"].ci95_high
    assert low is not None
    assert high is not None
    wide = run.metrics["student"]["dice_ci95"]
    assert high - low < (wide[1] - wide[0]) / 5


def test_a_failure_is_shown_with_its_class_and_number(html: str) -> None:
    failures = html[html.index('<section id="failures">') : html.index('<section id="transfer">')]
    assert "False positive: found, but not there" in failures
    invented, missed = failures.index("False positive"), failures.index("Missed: there, but not found")
    assert failures.count("<img") == 2
    assert missed < failures.index("test image 7: &lt;i&gt;lesion&lt;/i&gt;") < invented, "a missed structure is worse"
    assert invented < failures.index("test image 2: &lt;i&gt;lesion&lt;/i&gt;")


def test_an_image_that_fails_for_two_classes_is_shown_once(folder: Path) -> None:
    run = open_run(folder)
    scores = run.predictions["student"].scores
    row = next(row for row in scores if row.score.status == "false_positive")
    twice = replace(run.predictions["student"])
    vars(twice)["images"] = [row, row]  # a cached property
    (block,) = failures(Gallery(run.tested, Album()), twice)
    (picture,) = block.pictures
    assert picture.caption.endswith("<i>lesion</i>, <i>lesion</i>")


def test_a_prediction_is_found_by_the_rows_of_the_data_it_was_made_on(folder: Path, tmp_path: Path) -> None:
    """Under another label budget the same test images are other rows."""
    run = open_run(folder)
    own, gallery = run.predictions["student"], Gallery(run.tested, Album())
    for path in (own.folder / "predictions").iterdir():
        moved = tmp_path / "predictions" / f"{int(path.stem) + 1:06d}.png"
        moved.parent.mkdir(exist_ok=True)
        shutil.copy(path, moved)
    rows: Any = SimpleNamespace(row_of=lambda image: run.tested.row_of(image) + 1)
    image = own.scores[0].image
    elsewhere = replace(own, folder=tmp_path, prepared=rows)
    assert gallery.overlay(image, elsewhere, "one") == gallery.overlay(image, own, "one")


def test_distances_where_something_was_found_leave_the_diagonals_out(folder: Path) -> None:
    run = open_run(folder)
    table = table_of(run_page(run).sections[0], "missed")
    shown = dict(zip(run.models, (row[6] for row in table.rows), strict=True))
    for name in run.models:
        by_case: dict[str, list[float]] = {}
        for row in run.predictions[name].scores:
            if row.score.status == "scored":
                by_case.setdefault(row.case, []).append(row.score.hd95)
        expected = sum(sum(one) / len(one) for one in by_case.values()) / len(by_case)
        assert float(shown[name]) == pytest.approx(expected, abs=0.051)
    assert float(shown["student"]) < run.metrics["student"]["hd95_px"]


def test_overlays_show_the_same_images_for_all_models(html: str) -> None:
    overlays = html[html.index('<section id="overlays">') : html.index('<section id="failures">')]
    rows = re.findall(r"<h3>Test image (\d+): ([^<]+)</h3>", overlays)
    assert rows[0][1].startswith("worst of student")
    assert len({number for number, _ in rows}) == len(rows), "an image comes once"
    assert overlays.count("<img") == len(rows) * 5, "truth and four models"
    for model in ("student", "teacher", "student from scratch", "control (U-Net)"):
        assert sum(f"worst of {model}" in ranks.split(", ") for _, ranks in rows) >= 1


def test_copies_are_shown_beside_what_they_copy(html: str) -> None:
    transfer = html[html.index('<section id="transfer">') : html.index('<section id="training">')]
    assert "Dropped as copies: the nearest of 1" in transfer
    assert transfer.count("the training image it copies</figcaption>") == 1


def test_volumes_are_the_headline_and_slices_come_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = draw_data(tmp_path / "data", empty=(1,), slices=2)
    folder = make_run(tmp_path / "run", root, ["student", "control"], transfer=False)
    run = open_run(folder)
    own = run.metrics["student"]
    assert (run.level, own["n_cases"], own["n_volumes"], own["n_images"]) == ("volume", 4, 4, 8)
    assert own["dice"] != pytest.approx(own["slices"]["dice"])
    page = run_page(run)
    scores = page.sections[0]
    by_volume, by_slice = table_of(scores, "3-D Dice"), table_of(scores, "2-D Dice")
    for name, first, second in zip(run.models, by_volume.rows, by_slice.rows, strict=True):
        told = run.metrics[name]
        shown = dict(zip(by_volume.columns, first, strict=True))
        assert shown["3-D Dice"] == f"{told['dice']:.3f}"
        assert shown["volume error (mL)"] == f"{told['volume_error_ml']:.1f}"
        assert shown["missed"] == f"{told['missed']} of 4"
        assert second[1] == f"{told['slices']['dice']:.3f}"
    assert by_slice.note.startswith("1 of 8 slices and classes have an empty mask")
    assert "with 4 volumes (8 slices) at" in scores.lead
    assert f"scores 3-D Dice {own['dice']:.3f} on 4 test cases" in page.verdict
    assert next(one for one in page.sections if one.name == "failures").lead.startswith("Slices on which the student")
    (test,) = run.tests
    assert test.difference == pytest.approx(run.metrics["control"]["dice"] - own["dice"])
    print_summary(open_run(folder))
    said = capsys.readouterr().out
    assert "tested on 4 volumes (8 slices)" in said
    assert "3-D Dice" in said


def test_where_there_is_nothing_to_find_no_score_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight test images without a lesion: a model that marks nothing had Dice 1.000 everywhere."""
    root = draw_data(tmp_path / "data", empty=range(8))
    folder = make_run(tmp_path / "run", root, ["student", "control"], transfer=False)
    assert "nothing to find in the test images: none of their masks" in capsys.readouterr().err
    stored = json.loads((folder / "run.json").read_text())["metrics"]["student"]
    assert stored["remark"] == "nothing to find in the test images"
    assert {stored[name] for name in ("dice", "dice_ci95", "iou", "hd95_px", "assd_px")} == {None}
    assert stored["both_empty"] + stored["false_positive"] == 8
    page = run_page(open_run(folder))
    assert page.verdict.startswith("There is nothing to find in the test images (8 test cases)")
    assert [cell for row in table_of(page.sections[0], "Dice").rows for cell in row[1:7]] == ["–"] * 12
    html = write_report(folder).read_text(encoding="utf-8")
    assert "1.000" not in re.sub("<svg.*?</svg>", "", html.split("Worst, median")[0], flags=re.DOTALL)
    print_summary(open_run(folder))
    said = capsys.readouterr().out
    assert "nothing to find in the test images" in said
    assert "1.000" not in said


def test_a_run_from_before_volumes_is_one_of_images(damaged: Path) -> None:
    summary = json.loads((damaged / "run.json").read_text())
    for scores in summary["metrics"].values():
        assert scores.pop("level") == "image"
    write_json(damaged / "run.json", summary)
    run = open_run(damaged)
    assert run.level == "image"
    assert table_of(run_page(run).sections[0], "Dice").columns[1] == "Dice"


RUN = RunFolder(
    Path(),
    run_file(
        labels=20,
        metrics={
            "student": {"model": "x", "dice": 0.5, "dice_ci95": [0.4, 0.6], "n_cases": 9},
            "control": {"model": "control (U-Net)"},
            "scratch": {"model": "student from scratch"},
            "mae": {"model": "MAE"},
        },
    ),
)


def pair(method: str, difference: float, low: float | None, high: float | None) -> PairTest:
    """A model against the student: the difference is model - student."""
    return PairTest("dice", method, "student", difference, low, high, 0.1, 0.1, 1, 1, 1, 0.01, 9, 1)


HEAD = "With 20 labelled images the student scores Dice 0.500 (95\u00a0% interval 0.400 to 0.600) on 9 test cases"


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ([], "; no baseline was trained beside it."),
        (
            [pair("control", -0.1, -0.15, -0.05)],
            ": better than the control (U-Net) (+0.100, 95\u00a0% interval +0.050 to +0.150).",
        ),
        (
            [pair("control", 0.1, 0.05, 0.15)],
            ": worse than the control (U-Net) (−0.100, 95\u00a0% interval −0.150 to −0.050).",
        ),
        (
            [pair("control", -0.1, -0.25, 0.05)],
            ": not clearly different from the control (U-Net) (+0.100, 95\u00a0% interval −0.050 to +0.250).",
        ),
        ([pair("control", -0.1, None, None)], ": +0.100 against the control (U-Net), on too few cases to say more."),
        (
            [pair("scratch", -0.2, -0.3, -0.1), pair("mae", -0.1, -0.2, -0.05)],
            ": better than the MAE (+0.100, 95\u00a0% interval +0.050 to +0.200).",
        ),
        (
            [pair("teacher", 0.3, 0.2, 0.4)],
            "; no baseline was trained beside it. "
            "It is worse than the teacher (−0.300, 95\u00a0% interval −0.400 to −0.200).",
        ),
    ],
)
def test_the_verdict_is_one_sentence_that_names_the_hardest_baselines(tests: list[PairTest], said: str) -> None:
    assert verdict(RUN, tests) == HEAD + said


@pytest.mark.parametrize("method", ["control_pseudo", "unet", "unet_imagenet"])
def test_a_u_net_that_is_shipped_is_called_one(method: str) -> None:
    run = RunFolder(RUN.path, replace(RUN.summary, method=method))
    assert run.title("student") == "U-Net"
    assert verdict(run, []) == HEAD.replace("student", "U-Net") + "; no baseline was trained beside it."


def test_stages_that_a_run_has_several_of_say_for_which_model(root: Path, tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path, root, ("teacher", "student", "scratch"), transfer=False))
    starts = {name: add_start(run, name) for name in ("student", "scratch")}
    titles = {name: stage_title(open_run(tmp_path), artifact) for name, artifact in starts.items()}
    assert titles == {"student": "distillation, student", "scratch": "distillation, student from scratch"}
    assert stage_title(run, run.made_by("teacher")[0]) == "teacher"


def add_start(run: RunFolder, name: str) -> Artifact:
    """Let a model of the run be one that started from another artifact."""
    store, prepared = Store(run.path / "artifacts"), run.made_by("prepare")[0]
    start = train(store, prepared, "distill", name)
    model = train(store, prepared, "finetune", name, start=start.digest)
    summary = json.loads((run.path / "run.json").read_text())
    summary["artifacts"][name] = model.path.name
    if name == "student":  # a run scores the start of its own method too
        summary["artifacts"]["student_before_finetune"] = start.path.name
    stages = {start.path.name: {}, **summary["stages"], model.path.name: {}}
    write_json(run.path / "run.json", {**summary, "stages": stages})
    return start


# --- what it leaves out ---


def test_a_single_validation_is_drawn_as_no_curve(root: Path, tmp_path: Path) -> None:
    """A short fine-tuning had an empty chart with one dot."""
    for validations, drawn in (((30,), False), ((20, 30), True)):
        run = make_run(tmp_path / str(drawn), root, ("student",), transfer=False, validations=validations)
        assert (": validation" in write_report(run).read_text(encoding="utf-8")) == drawn


def test_what_a_run_did_without_leaves_its_section_out(root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, root, ("student",), transfer=False)
    page = run_page(open_run(run))
    assert "transfer" not in sections_of(page)
    assert "no baseline was trained beside it" in page.verdict
    assert [block.title for block in page.sections[0].blocks if isinstance(block, Table)] == [""], "no paired table"
    silent = make_run(tmp_path / "silent", root, ("student",), transfer=False, validations=None)
    assert "training" not in sections_of(run_page(open_run(silent)))
    assert write_report(silent).stat().st_size < MOST_BYTES


def test_a_page_is_drawn_anew_only_where_something_has_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red where a second start draws all pictures again, or keeps a page that is cut, edited or of other results."""
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    run = open_run(copied)
    (copied / REPORT).unlink(missing_ok=True)
    path = update_run_report(run)
    whole = path.read_bytes()
    drawn: list[str] = []
    monkeypatch.setattr("tskd.report.write.run_page", lambda run, *, room: run.path)
    monkeypatch.setattr("tskd.report.write.render", lambda page: drawn.append(page.name) or "new")
    assert update_run_report(open_run(copied)) == path
    assert not drawn
    assert path.read_bytes() == whole
    other = replace(run, summary=replace(run.summary, seconds=run.summary.seconds + 1))
    changes = {"cut": whole[:-500], "edited": whole.replace(b"Dice", b"dice", 1), "empty": b"", "as it was": whole}
    for number, (kind, content) in enumerate(changes.items(), start=1):
        path.write_bytes(content)
        update_run_report(other if kind == "as it was" else run)
        assert len(drawn) == number, kind


def test_no_patient_and_no_path_is_on_the_page(html: str, root: Path, folder: Path) -> None:
    words = re.sub(r"base64,[\w+/=]+", "", html)  # any three letters may stand in a picture's code
    for unwanted in (SECRET, "Doe", "hospital", "ward7", str(root), str(folder), "/tmp"):
        assert unwanted not in words
    assert "root: DATA" in html
    assert "weights: sam-vit-base" in html, "the last name of the weights says what they are"


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"data": {"root": "/mnt/Doe"}}, {"data": {"root": "DATA"}}),
        ({"data.root": ["a/b", "phantoms"]}, {"data.root": ["DATA", "phantoms"]}),
        ({"teacher": {"weights": "facebook/sam-vit-base"}}, {"teacher": {"weights": "sam-vit-base"}}),
        ({"base": "../recipes/Doe.yaml", "x": r"C:\Doe", "y": "~/Doe"}, {"base": "FILE", "x": "FILE", "y": "FILE"}),
        ({"backbone": "vit_tiny", "steps": 3, "none": None}, {"backbone": "vit_tiny", "steps": 3, "none": None}),
    ],
)
def test_settings_are_shown_without_paths(settings: dict[str, Any], shown: dict[str, Any]) -> None:
    assert shareable(settings) == shown


def test_names_are_text_and_never_markup(html: str) -> None:
    assert "cones &lt;b&gt;&amp;amp;&lt;/b&gt;" in html
    assert "<b>" not in html
    assert "<i>lesion" not in html


def test_the_page_needs_nothing_else(html: str) -> None:
    assert "<script" not in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert not re.search(r"url\((?!#)", html)
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert len(html.encode()) < MOST_BYTES


def test_pictures_stop_where_the_room_ends() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    album = Album(room=60_000)
    pictures = [album.add(noise, "") for _ in range(20)]
    kept = [picture for picture in pictures if picture]
    assert 0 < len(kept) < 20
    assert album.left_out == 20 - len(kept)
    assert sum(len(picture.source) for picture in kept) < 4 / 3 * 60_000 + 100 * len(kept)


def test_a_page_full_of_pictures_stays_small(folder: Path) -> None:
    page = run_page(open_run(folder), room=20_000)
    assert len(render(page)) < 400_000
    assert re.fullmatch(r"\d+ pictures left out to keep this file under 10 MB\.", page.footnote)


def test_charts_and_tables_that_need_much_room_take_it_from_the_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    without = len(render(run_page(open_run(copy), room=0)).encode())
    assert write_report(copy).stat().st_size > without + 1000
    monkeypatch.setattr("tskd.report.write.MOST_BYTES", without + 1000)
    assert write_report(copy).stat().st_size < without + 1000


# --- what it refuses ---


def spoil_json(run: Path) -> None:
    (run / "run.json").write_text("{")


def drop_key(run: Path) -> None:
    summary = json.loads((run / "run.json").read_text())
    del summary["evaluations"]
    (run / "run.json").write_text(json.dumps(summary))


def remove_artifact(run: Path) -> None:
    shutil.rmtree(next(run.glob("artifacts/finetune-*")))


def change_prediction(run: Path) -> None:
    next(run.glob("artifacts/evaluate-*/predictions/*.png")).write_bytes(b"no picture")


def flip_a_bit_of_the_weights(run: Path) -> None:
    """Scores beside weights that are not those that were scored."""
    name = json.loads((run / "run.json").read_text())["artifacts"]["student"]
    path = max((run / "artifacts" / name).iterdir(), key=lambda one: (one.name != "manifest.json", one.stat().st_size))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty_the_gate(run: Path) -> None:
    next(run.glob("artifacts/transfer-*/gate.json")).write_text("")


def rename_evaluation(run: Path) -> None:
    summary = json.loads((run / "run.json").read_text())
    summary["evaluations"]["student"] = "evaluate-of-another-run"
    (run / "run.json").write_text(json.dumps(summary))


def flatter(run: Path, **more: str) -> None:
    summary = json.loads((run / "run.json").read_text())
    summary["metrics"]["student"]["dice"] = 0.987
    (run / "run.json").write_text(json.dumps(summary | more))


def flatter_a_sealed_one(run: Path) -> None:
    """Here what was changed is a figure that no artifact repeats."""
    sealed_one = sealed(json.loads((run / "run.json").read_text()))
    (run / "run.json").write_text(json.dumps({**sealed_one, "seconds": 1e-3}))


def flatter_everywhere(run: Path) -> None:
    flatter(run)
    name = json.loads((run / "run.json").read_text())["evaluations"]["student"]
    path = run / "artifacts" / name / "manifest.json"
    manifest = json.loads(path.read_text())
    assert SEAL in manifest
    path.write_text(json.dumps({**manifest, "metrics": {**manifest["metrics"], "dice": 0.987}}))


def point_outside(run: Path) -> None:
    summary = json.loads((run / "run.json").read_text())
    summary["evaluations"]["student"] = "../../elsewhere"
    (run / "run.json").write_text(json.dumps(summary))


def nest(run: Path) -> None:
    (run / "run.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (flatter, r"dice of student in run.json is not that of artifacts/evaluate-\w+"),
        (flatter_a_sealed_one, "run.json was changed after it was written"),
        (flatter_everywhere, r"artifacts/evaluate-\w+ is damaged \(manifest.json was changed"),
        (point_outside, "names an artifact that cannot be one"),
        (nest, "run.json cannot be read"),
        (spoil_json, "run.json cannot be read"),
        (drop_key, "run.json lacks evaluations"),
        (remove_artifact, r"artifacts/finetune-\w+ is gone"),
        (change_prediction, r"artifacts/evaluate-\w+ is damaged \(predictions/\d+.png has changed\)"),
        (flip_a_bit_of_the_weights, r"artifacts/finetune-\w+ is damaged \(\S+ has changed\)"),
        (empty_the_gate, r"artifacts/transfer-\w+ is damaged \(gate.json has changed\)"),
        (rename_evaluation, "artifacts/evaluate-of-another-run is gone"),
    ],
)
def test_a_damaged_run_is_refused_and_the_old_report_stays(
    damaged: Path, spoil: Callable[[Path], None], said: str
) -> None:
    (damaged / REPORT).write_text("old")
    spoil(damaged)
    with pytest.raises(UserError, match=said):
        write_report(damaged)
    assert (damaged / REPORT).read_text() == "old"


def test_a_folder_without_a_run_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run\.json and no comparison\.json"):
        write_report(tmp_path)


def test_reading_a_run_loads_no_network() -> None:
    code = "import sys, tskd.report; print([name for name in ('torch', 'monai', 'matplotlib') if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_digests_and_versions_are_those_of_the_manifests(html: str, folder: Path) -> None:
    prepared = Artifact(next(folder.glob("artifacts/prepare-*")))
    assert prepared.digest in html
    for path in folder.glob("artifacts/*-*"):
        assert Artifact(path).digest[:16] in html
    for name, version in prepared.manifest["libraries"].items():
        assert f"{name} {version}" in html


@pytest.mark.parametrize(
    "text", [b"", bytes(200), b"[]", b"[" * 100_000, b"\xff"], ids=["empty", "NULs", "list", "deep", "no text"]
)
def test_a_manifest_that_cannot_be_read_is_named_whichever_it_is(damaged: Path, text: bytes) -> None:
    """Those of evaluations were; one of another stage ended the report with a traceback."""
    for place in sorted((damaged / "artifacts").glob("*/manifest.json")):
        whole = place.read_bytes()
        place.write_bytes(text)
        with pytest.raises(UserError, match=rf"artifacts/{place.parent.name} is damaged .manifest.json is missing"):
            write_report(damaged)
        place.write_bytes(whole)
