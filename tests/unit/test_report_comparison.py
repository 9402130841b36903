"""The report of a comparison: means and intervals over seeds, curves, tests, failed runs, and no patient's name."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from report_folders import SECRET, draw_data, make_comparison, write_csv

from tests.journeys.browser import console_of, look_at, needs_chromium, print_to_pdf
from tskd.artifacts import SEAL, Artifact, finished_in, sealed
from tskd.comparison.grid import load_grid
from tskd.errors import UserError
from tskd.machine.disk import file_sha256, write_json
from tskd.metrics.comparison import difference_interval
from tskd.metrics.segmentation import case_means
from tskd.report import write_report
from tskd.report.blocks import Charts, Page, Pictures, Section, Table
from tskd.report.comparison import tests
from tskd.report.comparison.charts import resources_section
from tskd.report.comparison.folder import ComparisonFolder, open_comparison, read_table, value_title, value_word
from tskd.report.comparison.page import comparison_page, how_to_use, overlays_section, scores_section
from tskd.report.comparison.training import training_section
from tskd.report.comparison.transfer import transfer_section
from tskd.report.comparison.verdict import comparison_verdict
from tskd.report.pictures import ROOM, Album
from tskd.report.shareable import shareable
from tskd.report.text import INTERVAL, signed
from tskd.stages.evaluation_files import read_cases

ERROR = f"RunFailed: {SECRET}-3.png in /data/hospital cannot be read"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = draw_data(tmp_path_factory.mktemp("hospital"), empty=(1,), faint=(6,))
    return make_comparison(tmp_path_factory.mktemp("comparison"), root, failed=ERROR)


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    """The page of the folder as it is, for all tests that change nothing."""
    return comparison_page(open_comparison(folder))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit_table(path: Path, **changes: str) -> None:
    """Change columns of every row of a table."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    write_csv(path, [line | changes for line in lines])


SECTIONS: dict[str, Callable[[ComparisonFolder], Section | None]] = {
    "scores": scores_section,
    "tests": tests.tests_section,
    "resources": resources_section,
    "overlays": lambda comparison: overlays_section(comparison, Album(ROOM)),
    "transfer": lambda comparison: transfer_section(comparison, Album(ROOM)),
    "training": training_section,
}


def section_of(folder: Path, name: str) -> Section:
    """One section of a folder's page; the others, which take longer, are not drawn."""
    drawn = SECTIONS[name](open_comparison(folder))
    assert drawn is not None
    assert drawn.name == name
    return drawn


def sections_of(folder: Path) -> list[str]:
    return [section.name for section in comparison_page(open_comparison(folder)).sections]


def test_every_section_is_there(html: str) -> None:
    assert re.findall(r'<section id="(\w+)">', html) == [
        *("scores", "curves", "tests", "bias", "resources", "overlays", "failures", "transfer", "training"),
        *("failed", "limits", "reproduce"),
    ]


def test_means_and_intervals_are_over_seeds_and_cases(folder: Path) -> None:
    comparison = open_comparison(folder)
    assert list(comparison.cells) == [("cones", "4"), ("cones", "8")]
    for cells in comparison.cells.values():
        for cell in cells:
            assert cell.runs["seed"].tolist() == ["0", "1"]
            folders = [folder / "artifacts" / name for name in cell.runs["evaluation"]]
            scores = np.array([list(case_means(read_cases(path), "dice").values()) for path in folders])
            assert cell.dice == pytest.approx(scores.mean())
            assert cell.interval == difference_interval(scores, seed=0)


def test_the_score_table_says_that_volumes_were_scored(copied: Path) -> None:
    columns = lambda: next(  # noqa: E731
        block.columns for block in section_of(copied, "scores").blocks if isinstance(block, Table)
    )
    assert columns()[1] == "Dice"
    edit_table(copied / "table.csv", level="volume")
    assert columns()[1] == "3-D Dice"


def test_the_verdict_counts_settings_and_tests(folder: Path, page: Page, copied: Path) -> None:
    found = page.verdict
    with (folder / "tests.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    gain = np.mean([float(line["difference"]) for line in lines])
    clear = sum(float(line["ci95_low"]) > 0 for line in lines)
    head = "Task-specific distillation has the highest mean Dice in 2 of 2 settings; against its strongest baseline, "
    gained = f"student from scratch, it differs by {gain:+.3f} on average: "
    counts = f"clearly better (0 outside the 95\u00a0% interval) in {clear} of 2 tests, worse in 0."
    assert found == head + gained + counts
    table = (copied / "table.csv").read_text()
    table = table.replace("task_kd", "other").replace("scratch", "task_kd").replace("other", "mae")
    (copied / "table.csv").write_text(table)
    (copied / "tests.csv").unlink()
    assert re.search(
        r"highest mean Dice in 0 of 2 settings;.* differs by −0\.\d{3} on average, a pair that was not tested\.$",
        verdict_of(copied),
    )


def test_the_verdict_pools_no_data_sets(copied: Path) -> None:
    """The lines at 8 labels become those of a second data set."""
    for name in ("table.csv", "tests.csv"):
        with (copied / name).open(newline="") as file:
            lines = list(csv.DictReader(file))
        for line in lines:
            line["dataset"] = "spheres" if line["data.labels"] == "8" else "cones"
        write_csv(copied / name, lines)
    first, second = verdict_of(copied).split(" On ")
    assert first.startswith("On cones: Task-specific distillation has the highest mean Dice; against its strongest")
    assert second.startswith("spheres: Task-specific distillation has the highest mean Dice; against its strongest")
    assert "on average" not in first + second


def test_the_verdict_on_one_training_of_each_says_so(copied: Path) -> None:
    with (copied / "table.csv").open(newline="") as file:
        write_csv(copied / "table.csv", [line for line in csv.DictReader(file) if line["seed"] == "0"])
    edit_table(copied / "tests.csv", n_seeds="1")
    assert verdict_of(copied).endswith(", for one training of each.")
    caveat = comparison_page(open_comparison(copied)).caveat
    assert "Intervals say what other test cases could have shown, not what another seed" in caveat


def test_the_verdict_on_one_setting_has_no_counts(copied: Path) -> None:
    for name in ("table.csv", "tests.csv"):
        lines = (copied / name).read_text().splitlines()
        kept = [line for line in lines if "cones,8" not in line and "bad,failed" not in line]
        (copied / name).write_text("\n".join(kept) + "\n")
    assert re.fullmatch(
        r"Task-specific distillation has the highest mean Dice; against its strongest baseline, student from scratch, "
        r"it differs by \+0\.\d{3}, which is clear \(0 outside the 95\u00a0% interval\)\.",
        verdict_of(copied),
    )


COLUMNS = "dataset,measure,method,baseline,difference,ci95_low,ci95_high,p_wilcoxon,p_holm,wins,ties,losses,n_seeds"
OF_TWO = "-0.02,-0.03,-0.01,0.001,0.001,0,0,20,2"


@pytest.mark.parametrize(
    ("tests_of", "said"),
    [
        ("task_kd,scratch", f", which is clear (0 outside the {INTERVAL})"),
        ("scratch,task_kd", f", which is clear (0 outside the {INTERVAL})"),
        ("", ", a pair that was not tested"),
    ],
)
def test_the_verdict_is_on_the_seeds_that_both_have(tmp_path: Path, tests_of: str, said: str) -> None:
    """The baseline failed on the one seed where ours is at its best: over all runs ours would be ahead."""
    dice = {"task_kd": (0.6, 0.6, 0.9), "scratch": (0.62, 0.62, None), "mae": (None, None, None)}
    lines = [
        {"run": f"{method}-{seed}", "status": "failed" if found is None else "done", "method": method,
         "title": "" if found is None else method, "dataset": "cones", "seed": seed, "dice": found, "n_cases": 20,
         "evaluation": ""}
        for method, by_seed in dice.items() for seed, found in enumerate(by_seed)
    ]  # fmt: skip
    write_csv(tmp_path / "table.csv", lines)
    described = {"name": "x", "axes": {}, "replicates": ["seed"], "grid": {}, "budget_rule": "", "runs": 9, "failed": 4}
    write_json(tmp_path / "comparison.json", described)
    if tests_of:
        numbers = OF_TWO if tests_of.startswith("task_kd") else OF_TWO.replace("-0.02,-0.03,-0.01", "0.02,0.01,0.03")
        (tmp_path / "tests.csv").write_text(f"{COLUMNS}\ncones,dice,{tests_of},{numbers}\n")
    assert verdict_of(tmp_path) == (
        "Task_kd does not have the highest mean Dice; against its strongest baseline, scratch, "
        f"it differs by −0.020{said}."
    )
    write_csv(tmp_path / "table.csv", [line for line in lines if line["method"] == "task_kd" or line["seed"] == 2])
    (tmp_path / "tests.csv").unlink(missing_ok=True)
    assert verdict_of(tmp_path).startswith("The highest mean Dice is"), "no seed is of both"


@pytest.mark.parametrize(("p", "low", "clear"), [("0.001", "-0.01", 0), ("0.001", "", 0), ("0.6", "0.01", 2)], ids=str)
def test_the_interval_decides_whatever_p_is(copied: Path, p: str, low: str, clear: int) -> None:
    """Wilcoxon takes seeds as given: with few of them it finds what another seed would undo."""
    edit_table(copied / "tests.csv", p_holm=p, ci95_low=low, ci95_high=low and "0.09")
    assert verdict_of(copied).endswith(f"(0 outside the 95\u00a0% interval) in {clear} of 2 tests, worse in 0.")


def test_p_is_said_to_be_of_these_trainings(html: str) -> None:
    section = html[html.index('<section id="tests">') : html.index('<section id="bias">')]
    assert section.count("p (these trainings)") == 2, "pairs, and how differences change"
    assert "The interval decides." in section


def compare_labels(folder: Path) -> None:
    """Make of the comparison one whose label budgets are compared, 4 being the baseline."""
    description = json.loads((folder / "comparison.json").read_text())
    axes = {"method": ["task_kd", "scratch"], "data.labels": [8, 4]}
    write_json(folder / "comparison.json", description | {"compare": "data.labels", "baseline": 4, "axes": axes})
    lines = [
        {"dataset": "cones", "measure": "dice", "method": f"{method}: 8", "baseline": f"{method}: 4",
         "difference": 0.05, "ci95_low": low, "ci95_high": 0.09, "p_wilcoxon": 0.001, "p_holm": 0.002,
         "wins": 5, "ties": 1, "losses": 0, "tie_margin": 0.01, "n_cases": 6, "n_seeds": 2}
        for method, low in (("task_kd", 0.01), ("scratch", -0.01))
    ]  # fmt: skip
    write_csv(folder / "tests.csv", lines)


def test_values_of_another_axis_are_rows_of_one_table(copied: Path) -> None:
    compare_labels(copied)
    comparison = open_comparison(copied)
    assert {title: [cell.look.title for cell in cells] for title, cells in comparison.groups.items()} == {
        "cones": [
            *("task-specific distillation, 8 labelled images", "task-specific distillation, 4 labelled images"),
            *("student from scratch, 8 labelled images", "student from scratch, 4 labelled images"),
        ]
    }, "in the order of the grid"
    (table,) = (block for block in section_of(copied, "scores").blocks if isinstance(block, Table))
    assert table.rows[0][0] == "Task-specific distillation, 8 labelled images"
    assert len(table.rows) == 4
    assert section_of(copied, "overlays").blocks


def test_methods_with_one_title_are_called_by_their_own_names(copied: Path) -> None:
    text = (copied / "table.csv").read_text()
    text = text.replace(",scratch,", ",features alone,").replace("student from scratch", "task-specific distillation")
    (copied / "table.csv").write_text(text)
    cells = next(iter(open_comparison(copied).cells.values()))
    assert [cell.look.title for cell in cells] == ["task_kd", "features alone"]
    assert len({cell.look[1:] for cell in cells}) == 2


def test_a_value_that_stands_for_all_is_called_so(copied: Path) -> None:
    compare_labels(copied)
    assert open_comparison(copied).called("None") == "all labelled images"


def test_values_with_other_test_images_are_not_laid_side_by_side(copied: Path, tmp_path: Path) -> None:
    """An axis may change the test set: another split has its own images."""
    compare_labels(copied)
    lines = open_comparison(copied).runs.to_dict("records")
    changed = next(one["evaluation"] for one in lines if (one["method"], one["data.labels"]) == ("scratch", "8"))
    scored = Artifact(copied / "artifacts" / changed)
    (data,) = (one for one in finished_in(copied / "artifacts") if one.digest == scored.manifest["inputs"]["data"])
    other = data.path.with_name("prepare-other")
    shutil.copytree(data.path, other)
    image = next(other.glob("native/*_image.png"))
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    files = data.manifest["files"] | {f"native/{image.name}": file_sha256(image)}
    write_json(other / "manifest.json", {**data.manifest, "files": files, "digest": "other"})
    write_json(scored.path / "manifest.json", {**scored.manifest, "inputs": {"data": "other"}})
    heading = section_of(copied, "overlays")
    captions = {
        picture.caption for block in heading.blocks if isinstance(block, Pictures) for picture in block.pictures
    }
    assert not any("student from scratch, 8 labelled" in caption for caption in captions)
    assert any("task-specific distillation, 8 labelled" in caption for caption in captions)


def test_the_verdict_on_another_axis_is_on_its_best_value(copied: Path) -> None:
    compare_labels(copied)
    assert verdict_of(copied) == (
        "Task-specific distillation, 2 values of labelled images: 8 labelled images has the highest mean Dice; "
        "against 4 labelled images it differs by +0.050, which is clear (0 outside the 95\u00a0% interval)."
    )
    text = (copied / "tests.csv").read_text()
    (copied / "tests.csv").write_text(text.replace("0.05,0.01,0.09", "-0.05,-0.09,0.01"))
    assert verdict_of(copied) == (
        "Task-specific distillation, 2 values of labelled images: none has a higher mean Dice than 4 labelled "
        "images; the nearest, 8 labelled images, differs by −0.050, which is not clear "
        "(0 within the 95\u00a0% interval, or too few cases for one)."
    )


def verdict_of(folder: Path) -> str:
    return comparison_verdict(open_comparison(folder))


def test_without_a_baseline_the_verdict_names_the_best_setting(copied: Path) -> None:
    lines = (copied / "table.csv").read_text().splitlines()
    (copied / "table.csv").write_text("\n".join(line for line in lines if "scratch" not in line) + "\n")
    said = verdict_of(copied)
    assert re.match(r"The highest mean Dice is 0\.\d{3} \(95.% interval .*\), of task-specific distillation", said)
    assert said.endswith("on cones, 8 labelled images.")


def test_what_each_method_costs_is_a_table(page: Page) -> None:
    sections = {section.name: section for section in page.sections}
    (table,) = (block for block in sections["resources"].blocks if isinstance(block, Table))
    assert table.title == "cones"
    by_method = {row[0]: dict(zip(table.columns, row)) for row in table.rows}
    ours = by_method["Task-specific distillation"]
    assert (ours["training, s"], ours["TFLOP"], ours["an image, ms"]) == ("3", "5.4", "11.0")


def test_what_is_compared_has_its_own_row_of_costs(copied: Path) -> None:
    description = json.loads((copied / "comparison.json").read_text())
    write_json(copied / "comparison.json", description | {"compare": "data.labels"})
    (table,) = (block for block in section_of(copied, "resources").blocks if isinstance(block, Table))
    titles = [row[0] for row in table.rows]
    assert len(titles) == len(set(titles)) == 4
    assert {title.rpartition(", ")[2] for title in titles} == {"4 labelled images", "8 labelled images"}


@pytest.mark.parametrize(("held", "shown"), [("0.0", False), ("912.3", True)])
def test_memory_of_a_gpu_is_shown_where_one_was_used(copied: Path, held: str, shown: bool) -> None:
    edit_table(copied / "table.csv", peak_gpu_memory_mb=held)
    (table,) = (block for block in section_of(copied, "resources").blocks if isinstance(block, Table))
    assert ("GPU memory, MB" in table.columns) == shown


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1200, True)])
def test_a_browser_shows_all_of_it(folder: Path, tmp_path: Path, width: int, dark: bool) -> None:
    view = look_at(write_report(folder), tmp_path, width=width, dark=dark)
    assert view.needed <= view.width == width, "the page scrolls sideways"
    assert view.images > 10
    assert view.broken == view.empty_charts == view.small == 0
    assert console_of(folder / "report.html", tmp_path) == []


@pytest.mark.slow
@needs_chromium
def test_the_page_can_be_printed(folder: Path, tmp_path: Path) -> None:
    printed = print_to_pdf(write_report(folder), tmp_path)
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", printed)) > 2
    assert len(re.findall(rb"/Subtype /Image\b", printed)) > 10


def test_every_training_of_the_first_replicate_has_its_line(folder: Path, page: Page) -> None:
    comparison = open_comparison(folder)
    ours, scratch = next(iter(comparison.cells.values()))
    assert [one.manifest["stage"] for one in comparison.trainings(ours)] == ["teacher", "distill", "finetune"]
    assert [one.manifest["stage"] for one in comparison.trainings(scratch)] == ["finetune"]
    sections = {section.name: section for section in page.sections}
    (charts,) = sections["training"].blocks
    assert isinstance(charts, Charts)
    stages = ["Diffusion model", "Teacher", "Distillation", "Fine-tuning"]
    assert [chart.title for chart in charts.charts] == [f"{stage}: loss" for stage in stages]
    assert [key.title for key in charts.keys] == ["task-specific distillation", "student from scratch"]


def test_every_data_set_has_its_training_curves(copied: Path) -> None:
    with (copied / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    write_csv(copied / "table.csv", [
        line | {"dataset": "spheres" if line["data.labels"] == "8" else "cones"} for line in lines
    ])  # fmt: skip
    first, second = section_of(copied, "training").blocks
    assert isinstance(first, Charts)
    assert isinstance(second, Charts)
    assert first.charts[-1].title == "Fine-tuning: loss (cones, 4 labelled images)"
    assert second.charts[-1].title == "Fine-tuning: loss (spheres, 8 labelled images)"


def test_every_transfer_set_has_its_row_and_its_pictures(page: Page) -> None:
    sections = {section.name: section for section in page.sections}
    table, *blocks = sections["transfer"].blocks
    assert isinstance(table, Table)
    titles = ["cones, 4 labelled images", "cones, 8 labelled images"]
    # of 20 images some are for validation, of 9 synthetic ones one is a copy
    assert table.rows == ((titles[0], "19", "8", "0"), (titles[1], "18", "8", "0"))
    for title in titles:
        drawn = {one.title: len(one.pictures) for one in blocks if isinstance(one, Pictures) and title in one.title}
        assert drawn == {
            f"{title}: Synthetic images that were kept": 6,
            f"{title}: Training images, for comparison (not their sources)": 6,
            f"{title}: Dropped as copies: the nearest of 1": 2,
        }


def test_transfer_sets_of_compared_values_are_told_apart(copied: Path) -> None:
    compare_labels(copied)
    table = section_of(copied, "transfer").blocks[0]
    assert isinstance(table, Table)
    ours = "cones, task-specific distillation"
    assert [row[0] for row in table.rows] == [f"{ours}, 8 labelled images", f"{ours}, 4 labelled images"]


def test_copies_are_told_where_no_synthetic_image_was_left(copied: Path) -> None:
    """All dropped is the worst that the gate can find."""
    for manifest in copied.glob("artifacts/transfer-*/manifest.json"):
        changed = json.loads(manifest.read_text())
        changed["metrics"] |= {"synthetic": 0}
        write_json(manifest, sealed({name: value for name, value in changed.items() if name != SEAL}))
    titles = [one.title for one in section_of(copied, "transfer").blocks if isinstance(one, Pictures)]
    assert "cones, 4 labelled images: Dropped as copies: the nearest of 1" in titles
    assert not any("that were kept" in title for title in titles)


def test_copies_are_not_drawn_from_other_samples(copied: Path) -> None:
    """A block of samples that is gone would move the numbers of all that follow."""
    for block in copied.glob("artifacts/samples-*/samples.npy"):
        block.unlink()
    assert not any("Dropped" in one.title for one in section_of(copied, "transfer").blocks if isinstance(one, Pictures))


def test_a_transfer_set_that_is_gone_is_left_out(copied: Path) -> None:
    for artifact in copied.glob("artifacts/transfer-*"):
        shutil.rmtree(artifact)
    assert "transfer" not in sections_of(copied)


def test_failures_are_those_of_task_specific_distillation(folder: Path, page: Page) -> None:
    sections = {section.name: section for section in page.sections}
    blocks = [block for block in sections["failures"].blocks if isinstance(block, Pictures)]
    scores = read_cases(folder / "artifacts" / open_comparison(folder).cells["cones", "4"][0].first["evaluation"])
    statuses = [row.score.status for row in scores]
    whose = "cones, 4 labelled images, task-specific distillation"
    expected = {
        f"{whose}: Missed: there, but not found": statuses.count("missed"),
        f"{whose}: False positive: found, but not there": statuses.count("false_positive"),
    }
    assert {block.title: len(block.pictures) for block in blocks} == expected
    assert min(expected.values()) > 0


def test_errors_are_counted_of_all_that_could_be(copied: Path) -> None:
    def errors() -> list[tuple[str, str]]:
        page = comparison_page(open_comparison(copied))
        blocks = [block for section in page.sections for block in section.blocks]
        tables = [block for block in blocks if isinstance(block, Table) and "missed" in block.columns]
        return [(row[5], row[6]) for row in tables[0].rows]

    cell = open_comparison(copied).cells["cones", "4"][0]
    names = ("missed", "scored", "false_positive", "both_empty")
    missed, scored, invented, empty = (cell.mean(name) or 0.0 for name in names)
    expected = f"{missed:.1f} of {missed + scored:.0f}", f"{invented:.1f} of {invented + empty:.0f}"
    assert expected in errors()
    table = copied / "table.csv"
    table.write_text(table.read_text().replace(",scored,", ",unknown,", 1))  # as earlier versions wrote it
    assert (f"{missed:.1f}", f"{invented:.1f}") in errors()


def test_the_data_are_named_by_their_digest(folder: Path, html: str) -> None:
    comparison = open_comparison(folder)
    digest = comparison.data_digest(comparison.cells["cones", "4"][0])
    assert digest
    assert f"sha256 {digest}" in html


def test_a_curve_has_a_line_a_method_over_the_axis(page: Page) -> None:
    sections = {section.name: section for section in page.sections}
    (charts,) = (block for block in sections["curves"].blocks if isinstance(block, Charts))
    assert [chart.title for chart in charts.charts] == ["cones: labelled images"]
    assert charts.charts[0].svg.count("stroke: var(--paper)") >= 4
    assert [key.title for key in charts.keys] == ["task-specific distillation", "student from scratch"]


def test_an_axis_value_that_is_no_number_stands_at_the_end(copied: Path) -> None:
    text = (copied / "table.csv").read_text()
    (copied / "table.csv").write_text(text.replace("cones,8,", "cones,,").replace("cones,4,", "cones,16,"))
    edit = open_comparison(copied)
    assert [setting[1] for setting in edit.cells] == ["16", ""]
    assert edit.title(("cones", "")) == "cones, all labelled images"


@pytest.mark.parametrize(
    ("axis", "value", "said"),
    [
        ("data.labels", "20", "20 labelled images"),
        ("transfer.real", "", "all real transfer images"),
        ("teacher.rank", "4", "LoRA rank 4"),
        ("distill.encoder_loss", "mse", "distill.encoder_loss mse"),
        ("data.tile", "", "data.tile none"),
    ],
)
def test_settings_read_as_words(axis: str, value: str, said: str) -> None:
    assert value_title(axis, value) == said
    assert value or value_word(axis, value) == {"transfer.real": "all", "data.tile": "none"}[axis]


def test_times_are_told_apart_by_a_tile_under_another_name(copied: Path) -> None:
    """A mean over whole images and tiles is the time of neither."""
    description = json.loads((copied / "comparison.json").read_text())
    description["grid"]["axes"]["data.labels"] = [{"name": 4, "data.tile": None}, {"name": 8, "data.tile": 96}]
    write_json(copied / "comparison.json", description)
    section = resources_section(open_comparison(copied))
    assert section is not None
    assert [table.title for table in section.blocks if isinstance(table, Table)] == [
        "cones, 4 labelled images",
        "cones, 8 labelled images",
    ]


def test_a_failed_run_is_listed_without_what_its_error_says(page: Page, html: str) -> None:
    sections = {section.name: section for section in page.sections}
    (table,) = (block for block in sections["failed"].blocks if isinstance(block, Table))
    assert table.rows == (("student from scratch", "", "8", "2", "RunFailed"),)
    assert "1 run of 9 failed" in html


def test_no_patient_and_no_path_is_on_the_page(html: str, folder: Path) -> None:
    for unwanted in (SECRET, "Doe", "hospital", "/data", "/tmp", str(folder)):
        assert unwanted not in html
    assert "root: DATA" in html


def test_how_differences_change_is_said_with_its_axis(copied: Path) -> None:
    """The lead at 8 labelled images minus that at 4, which is what the hand-written changes.csv holds."""
    (line,) = csv.DictReader((copied / "changes.csv").open(encoding="utf-8"))
    section = section_of(copied, "tests")
    (table,) = (block for block in section.blocks if isinstance(block, Table) and block.title.startswith("How"))
    (row,) = table.rows
    assert row[1:3] == ("4 to 8 labelled images", "Dice")
    assert row[3] == signed(float(line["difference"]))
    assert table.title == f"How differences change: against student from scratch, {line['n_cases']} cases, 2 replicates"


def test_settings_that_differ_from_the_defaults_are_listed(html: str) -> None:
    assert "Settings changed from the defaults" in html
    assert re.search(r">teacher\.rank<.{0,60}>7<", html)
    assert "save as grid.yaml, then tskd compare grid.yaml --data DATA --out OUT" in html


def test_a_folder_of_an_earlier_version_is_still_reported(copied: Path) -> None:
    """It has the path of a recipe, and the versions of the process that wrote it alone."""
    description = json.loads((copied / "comparison.json").read_text())
    description["grid"]["recipe"] = "base.yaml"
    description["versions"] = description.pop("made_with")[0]
    write_json(copied / "comparison.json", description)
    assert "torch 2" in write_report(copied).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["labels", "phantoms", "paper_table", "cross_domain"])
def test_the_command_that_the_page_shows_for_a_grid_works(name: str, tmp_path: Path) -> None:
    grid = load_grid(Path(__file__).parents[2] / f"recipes/compare/{name}.yaml")
    shown = shareable(grid.source)
    (tmp_path / "grid.yaml").write_text(
        yaml.safe_dump(shown, sort_keys=False).replace("DATA", "first", 1).replace("DATA", "second")
    )
    assert ("--data" in how_to_use(shown)) == (grid.runs[0].recipe.data.root == "mine")
    assert len(load_grid(tmp_path / "grid.yaml").runs) == len(grid.runs)


def test_versions_that_differ_between_runs_are_all_named(html: str) -> None:
    assert "Libraries (6 runs)" in html
    assert "Libraries (2 runs)" in html
    assert "torch 3" in html


def test_tables_that_were_not_written_leave_their_sections_out(copied: Path) -> None:
    for name in ("tests.csv", "changes.csv", "ranks.csv", "bias_variance.csv"):
        (copied / name).unlink()
    assert {"tests", "bias"}.isdisjoint(sections_of(copied))


def test_a_run_that_failed_after_its_table_was_written_has_no_training_curves(copied: Path) -> None:
    for state in (copied / "runs").iterdir():
        write_json(state, {"artifacts": {}})
    assert "training" not in sections_of(copied)


def test_without_artifacts_the_table_is_still_reported(copied: Path) -> None:
    shutil.rmtree(copied / "artifacts")
    comparison = open_comparison(copied)
    assert all(cell.interval is None for cells in comparison.cells.values() for cell in cells)
    assert "overlays" not in sections_of(copied)
    assert write_report(copied).is_file()


def test_changed_predictions_are_not_believed(copied: Path) -> None:
    comparison = open_comparison(copied)
    first = comparison.runs["evaluation"].iloc[0]
    (copied / "artifacts" / first / "cases.csv").write_text("case,image\n")
    cell = next(iter(comparison.cells.values()))[0]
    assert cell.interval is None
    assert comparison.predictions(cell) is None


def test_all_runs_failed(copied: Path) -> None:
    edit_table(copied / "table.csv", dice="", status="failed", error="RunFailed: no memory")
    assert verdict_of(copied) == "Every run failed: there is nothing to compare."
    assert {"scores", "curves", "resources"}.isdisjoint(sections_of(copied))


def drop(folder: Path, key: str) -> None:
    description = json.loads((folder / "comparison.json").read_text())
    del description[key]
    (folder / "comparison.json").write_text(json.dumps(description))


def test_a_damaged_comparison_is_refused(copied: Path) -> None:
    drop(copied, "grid")
    with pytest.raises(UserError, match=r"comparison\.json lacks grid"):
        open_comparison(copied)
    (copied / "comparison.json").write_text("[]")
    with pytest.raises(UserError, match=r"comparison\.json lacks"):
        open_comparison(copied)
    (copied / "comparison.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        open_comparison(copied)


def test_a_table_without_its_columns_is_refused(copied: Path) -> None:
    (copied / "table.csv").write_text("run,status\na,done\n")
    with pytest.raises(UserError, match=r"table\.csv has no rows, or lacks method"):
        open_comparison(copied)


def test_axes_are_what_varies_beside_method_and_seed(folder: Path) -> None:
    comparison: ComparisonFolder = open_comparison(folder)
    assert comparison.axes == ("data.labels",)
    assert comparison.replicates == ("seed",)


def test_a_table_that_says_other_scores_than_the_evaluations_is_refused(copied: Path) -> None:
    table = copied / "table.csv"
    lines = list(csv.DictReader(table.open(newline="", encoding="utf-8")))
    lines[1]["dice"] = "0.987"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    with pytest.raises(UserError, match=rf"dice of {lines[1]['run']} in table\.csv is not that of artifacts/evaluate-"):
        open_comparison(copied)


def test_figures_are_read_as_numbers_and_the_values_of_axes_as_they_are(tmp_path: Path) -> None:
    """An axis may hold 010 or NA; a mean of texts, or a label budget of 10.0, would be another comparison."""
    table = tmp_path / "table.csv"
    table.write_text("run,method,note,seed,dice,seconds\nr1,task_kd,'=1,010,0.30000000000000004,12\nr2,NA,,1,,\n")
    frame = read_table(table)
    assert frame["dice"].tolist()[0] == 0.1 + 0.2, "every bit: it is compared with the evaluation's"
    assert frame["dice"].isna().tolist() == [False, True]
    assert frame["seconds"].sum() == 12
    assert frame[["method", "note", "seed"]].values.tolist() == [["task_kd", "=1", "010"], ["NA", "", "1"]]


@pytest.mark.parametrize("row", ["r1,task_kd,much", "r1,task_kd,0.5,more"])
def test_a_table_that_is_none_is_refused(row: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(f"run,method,dice\n{row}\n")
    with pytest.raises(ValueError, match=r"much|fields"):
        read_table(tmp_path / "table.csv")
