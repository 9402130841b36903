"""What runs and models answer in Python: the numbers of their files, as tables and pictures."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import tskd
from tests.unit.report_folders import draw_data, make_run
from tskd.api.experiments import ComparisonResult, RunResult
from tskd.api.recipes import as_changes
from tskd.api.show import Table
from tskd.comparison.grid import load_grid
from tskd.recipe.built_in import find_grid
from tskd.report.run.folder import open_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = draw_data(tmp_path_factory.mktemp("hospital"), empty=(1,), faint=(6,))
    return make_run(tmp_path_factory.mktemp("run"), root)


def test_scores_are_those_of_the_run(folder: Path) -> None:
    """Red where a column holds another measure, or a model another's scores."""
    scores = RunResult(folder).scores.set_index("name")
    metrics = open_run(folder).metrics
    assert list(scores.index) == open_run(folder).models
    for name, told in metrics.items():
        assert scores.loc[name, ["dice", "dice_low", "dice_high"]].tolist() == [told["dice"], *told["dice_ci95"]]
        assert scores.loc[name, "hd95_px"] == told["hd95_px"]
        assert scores.loc[name, "missed"] == told["missed"]


def test_cases_give_the_means(folder: Path) -> None:
    result = RunResult(folder)
    means = result.cases.groupby("name")["dice"].mean()
    scores = result.scores.set_index("name")["dice"]
    pandas.testing.assert_series_equal(means.sort_index(), scores.sort_index(), check_names=False)


def test_a_notebook_shows_table_and_pictures_and_no_name_of_a_file(folder: Path) -> None:
    html = RunResult(folder)._repr_html_()
    assert html.count("<table") == 1
    assert html.count("<img") == len(RunResult(folder).pictures[:6]) > 0
    assert "Doe" not in html, "part of every image's name"


def test_a_value_called_none_is_no_missing_number(tmp_path: Path) -> None:
    (tmp_path / "tests.csv").write_text("method,dice_difference\nNone,0.5\nnull,\n")
    found = tskd.ComparisonResult(tmp_path).tests
    assert found["method"].tolist() == ["None", "null"]
    assert found["dice_difference"].isna().tolist() == [False, True]


def test_settings_that_would_be_ignored_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(tskd.UserError, match="target_minutes chooses settings"):
        tskd.run("quick", data=str(tmp_path), out=tmp_path / "out", target_minutes=5)
    (tmp_path / "file").write_text("")
    with pytest.raises(tskd.UserError, match="is a file"):
        tskd.run("quick", data=str(tmp_path), out=tmp_path / "file")


def test_a_score_is_that_of_a_run_and_says_where_one_is_empty() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 1
    table = tskd.score(np.where(mask, 1, 0), mask, spacing=(0.5, 0.5), classes=["one", "two"])
    assert [table[0][name] for name in ("class", "dice", "hd95_mm", "status")] == ["one", 1.0, 0.0, "scored"]
    assert table[1]["status"] == "both_empty"
    assert pandas.DataFrame(table).loc[1, "dice"] == 1
    with pytest.raises(tskd.UserError, match="score"):
        tskd.score(mask[:4], mask)


@pytest.mark.parametrize("found", [0, 1])
def test_a_white_mask_is_not_scored_as_unlabelled(found: int) -> None:
    """A model that found nothing, and one that found all, had Dice 1 against a mask read from a usual file."""
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    prediction = found * (mask > 0)
    with pytest.raises(tskd.UserError, match="0 and 255 alone"):
        tskd.score(prediction, mask)
    assert tskd.score(prediction, mask > 0)[0]["dice"] == found
    mask[2, 2] = 1  # labelled in part
    assert tskd.score(prediction, mask)[0]["dice"] == found


HALF = np.repeat([0, 1], 32).reshape(8, 8)
"""The mask of one class."""


def test_a_mask_given_by_its_name_is_refused() -> None:
    with pytest.raises(tskd.UserError, match=r"Image\.open"):
        tskd.score(np.zeros((8, 8), np.uint8), "mask.png")


def test_a_case_without_any_of_several_classes_is_scored_beside_its_unlabelled_border() -> None:
    rows = tskd.score(np.zeros((8, 8), np.uint8), HALF * 255, classes=["one", "two"])
    assert [row["status"] for row in rows] == ["both_empty"] * 2


@pytest.mark.parametrize(
    ("prediction", "mask", "options", "words"),
    [
        (HALF * 255, HALF.T * 255, {}, "the prediction holds 255"),
        (HALF * 255, HALF.T, {}, "the prediction holds 255"),
        (HALF, HALF * 255, {"classes": ["one"]}, "the mask holds 0 and 255 alone"),
        (HALF * 0.7, HALF, {}, "prediction > 0.5"),
        (HALF, HALF / 2, {}, "mask > 0.5"),
        (np.full((8, 8), np.nan), HALF, {}, "no class indices"),
        (HALF, HALF, {"spacing": (0, 0)}, r"spacing \(0, 0\)"),
        (HALF, HALF, {"spacing": "near"}, "spacing 'near'"),
        (HALF, HALF, {"classes": 0}, "classes 0"),
    ],
)
def test_what_is_no_mask_is_not_scored(prediction: Any, mask: Any, options: dict[str, Any], words: str) -> None:
    """Red where a score is told of numbers that mean something else, or a traceback is all that is said."""
    with pytest.raises(tskd.UserError, match=words):
        tskd.score(prediction, mask, **options)


def test_one_name_one_spacing_and_a_number_of_classes_are_understood() -> None:
    assert [row["class"] for row in tskd.score(HALF, HALF, classes="ulcer")] == ["ulcer"]
    assert [row["class"] for row in tskd.score(HALF > 0, HALF * 1.0, classes=2)] == ["class1", "class2"]
    shifted = np.roll(HALF, 1, axis=0)
    assert tskd.score(shifted, HALF, spacing=0.2) == tskd.score(shifted, HALF, spacing=(0.2, 0.2))


def test_a_prediction_is_printed_in_a_line() -> None:
    classes = np.zeros((2, 5), np.uint8)
    classes[0, 0] = 2
    prediction = tskd.Prediction(classes, np.zeros((3, 2, 5)), ("ulcer", "reflex"), np.zeros((2, 5, 3), np.uint8))
    assert repr(prediction) == "Prediction(5x2: ulcer 0.0%, reflex 10.0%)"


def test_a_table_is_aligned_and_its_names_are_no_markup() -> None:
    table = Table([{"class": "<b>", "dice": 0.5}, {"class": "nerve", "dice": 1.0}])
    assert repr(table).splitlines() == ["class   dice", "  <b>  0.500", "nerve  1.000"]
    assert "<td>&lt;b&gt;</td><td>0.500</td>" in table._repr_html_()
    assert repr(Table()) == ""


def test_a_recipe_is_changed_by_sections_and_by_keys() -> None:
    changed = tskd.load_recipe("quick", seed=3, teacher={"rank": 8})
    quick = tskd.load_recipe("quick")
    assert (changed.seed, changed.teacher.rank, changed.teacher.steps) == (3, 8, quick.teacher.steps)
    again = tskd.load_recipe(changed, **{"teacher.rank": 2, "distill.augment.crop": 0.25})
    assert (again.seed, again.teacher.rank, again.distill.augment.crop) == (3, 2, 0.25)
    with pytest.raises(tskd.UserError, match=r"data\.rot: unknown key. Did you mean data\.root"):
        tskd.Recipe(data={"rot": 1})
    with pytest.raises(tskd.UserError, match=r"is not known\. Give a YAML file, or one of: gpu, laptop, paper, quick"):
        tskd.load_recipe("labtop")


def test_an_empty_section_is_there_with_its_defaults() -> None:
    """Red where what is switched on by ``{}`` stays off, or ``{}`` puts what was set before back."""
    changed = tskd.load_recipe(
        None,
        distill={"augment": {"appearance": {}}},
        data={"phantom": {"scanners": {"plain": {}, "noisy": {"noise": 0.1}}}},
        transfer={"target": {}},
    )
    assert changed.distill.augment.appearance is not None
    assert set(changed.data.phantom.scanners) == {"plain", "noisy"}
    assert changed.transfer.target is not None
    assert tskd.load_recipe(tskd.Recipe(teacher={"rank": 3}), teacher={}).teacher.rank == 3


def test_other_columns_take_the_place_of_those_before() -> None:
    """Red where images have to fit the columns of the recipe's file and those of the change, which none may."""
    file = tskd.Recipe(data={"where": {"site": "north"}})
    assert tskd.load_recipe(file, data={"where": {"modality": "gray"}}).data.where == {"modality": ("gray",)}


def test_settings_in_the_place_of_a_recipe_are_refused() -> None:
    with pytest.raises(tskd.UserError, match="a dict is none"):
        tskd.load_recipe({"seed": 1})


def test_a_folder_of_results_may_be_a_text(folder: Path, tmp_path: Path) -> None:
    assert RunResult(str(folder)).report.parent == folder
    with pytest.raises(tskd.UserError, match="no finished comparison"):
        _ = ComparisonResult(str(tmp_path)).table


def test_a_folder_of_a_recipes_name_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tskd run quick --out quick` leaves one, and the same command has to go on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").mkdir()
    (tmp_path / "smoke").mkdir()
    assert tskd.load_recipe("quick") != tskd.Recipe()
    assert find_grid("smoke").is_file()


def test_changes_of_a_section_are_those_of_its_settings() -> None:
    assert as_changes({"data": {"root": Path("my data")}, "seed": 1}) == [("data.root", "my data"), ("seed", 1)]


def test_a_grid_keeps_what_a_change_does_not_name(tmp_path: Path) -> None:
    """Red where a change of one setting puts all others of its part back."""
    file = tmp_path / "grid.yaml"
    file.write_text(
        "{name: g, recipe: {data: {phantom: {family: abdomen, train: 60}, where: {site: a}}}, axes: {seed: [1, 2]}}"
    )
    changes = {"data": {"phantom": {"train": 20}, "where": {"modality": "gray"}}, "transfer": {"target": {}}}
    recipe = load_grid(file, as_changes({**changes, "distill": {}})).runs[0].recipe
    assert (recipe.data.phantom.family, recipe.data.phantom.train) == ("abdomen", 20)
    assert recipe.data.where == {"modality": ("gray",)}
    assert recipe.transfer.target is not None


def test_a_script_that_compares_in_every_process_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where the process of a run, while it imports the script, begins another comparison and fails for it."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    monkeypatch.setattr("tskd.comparison.workflow.compare", pytest.fail)
    with pytest.raises(tskd.UserError, match="__main__"):
        tskd.compare("smoke")


def test_importing_and_loading_take_no_torch(folder: Path) -> None:
    """Red where a name of the front door drags the training libraries in."""
    code = "import sys, tskd; tskd.run, tskd.load, tskd.check, tskd.score; print({'torch', 'pandas'} & {*sys.modules})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
