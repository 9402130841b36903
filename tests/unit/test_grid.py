"""The grid: what it expands to, what names its runs, and that every mistake in it is named before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tskd.comparison.decompose import decomposition_columns
from tskd.comparison.grid import Grid, load_grid
from tskd.comparison.statistics import columns_of, columns_of_changes
from tskd.comparison.tables import table_columns
from tskd.errors import UserError
from tskd.metrics.comparison import MeanRank, PairTest
from tskd.report.comparison.files import RESULT_COLUMNS, STATISTICS_COLUMNS

AXES: dict[str, Any] = {"method": ["task_kd", "scratch"], "data.labels": [20, 40], "seed": [0, 1, 2]}


def load(folder: Path, *overrides: str, **content: Any) -> Grid:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"name": "try", "axes": AXES, **content}, sort_keys=False), encoding="utf-8")
    return load_grid(path, overrides)


def refusal(folder: Path, **content: Any) -> str:
    with pytest.raises(UserError) as error:
        load(folder, **content)
    return str(error.value)


def test_the_runs_are_the_product_of_the_axes_in_their_order(tmp_path: Path) -> None:
    grid = load(tmp_path, recipe={"data": {"image_size": 64}})
    assert len(grid.runs) == 12
    assert [tuple(run.point.values()) for run in grid.runs[:4]] == [
        ("task_kd", 20, 0), ("task_kd", 20, 1), ("task_kd", 20, 2), ("task_kd", 40, 0),
    ]  # fmt: skip
    last = grid.runs[-1].recipe
    assert (last.method, last.data.labels, last.seed, last.data.image_size) == ("scratch", 40, 2, 64)
    assert grid.runs[-1].label == "method scratch, data.labels 40, seed 2"


def test_keys_that_vary_together_are_one_axis_under_a_name(tmp_path: Path) -> None:
    grid = load(
        tmp_path,
        axes={
            "dataset": [
                {"name": "skin", "data.root": "a", "data.classes": None, "evaluate.data.root": "b"},
                {"name": "mouth", "data.root": "b"},
            ],
            "seed": [{"name": 7, "seed": 7, "data.budget_seed": 7}],
        },
    )
    assert grid.axes == {"dataset": ("skin", "mouth"), "seed": (7,)}
    assert [run.recipe.data.root for run in grid.runs] == ["a", "b"]
    assert [run.recipe.evaluate.data and run.recipe.evaluate.data.root for run in grid.runs] == ["b", None]
    assert grid.runs[0].point == {"method": "task_kd", "dataset": "skin", "seed": 7}
    assert (grid.runs[0].recipe.seed, grid.runs[0].recipe.data.budget_seed) == (7, 7)


def test_replicates_are_axes_of_seeds_and_label_draws_alone(tmp_path: Path) -> None:
    draws = [{"name": n, "seed": n, "data.budget_seed": n} for n in range(2)]
    assert load(tmp_path, axes={"draw": draws, "teacher.rank": [1]}).replicates == ("draw",)
    assert load(tmp_path, axes={"data.budget_seed": [0, 1], "seed": [0]}).replicates == ("data.budget_seed", "seed")
    split = [{"name": n, "seed": n, "data.split_seed": n} for n in range(2)]
    assert load(tmp_path, axes={"split": split}).replicates == ()


def test_crossed_replicates_are_refused(tmp_path: Path) -> None:
    """Runs that share a label draw are not independent: nine of them are not nine seeds."""
    with pytest.raises(
        UserError, match=r"seed and data\.budget_seed repeat .* are crossed: .* vary together in one axis"
    ):
        load(tmp_path, axes={"seed": [0, 1, 2], "data.budget_seed": [0, 1, 2]})


def test_what_is_compared_and_within_what(tmp_path: Path) -> None:
    grid = load(tmp_path)
    assert (grid.compare, grid.groups) == ("method", ("data.labels",))
    ranks = {"method": ["task_kd"], "dataset": [{"name": "a", "data.root": "a"}], "teacher.rank": [1, 4], "seed": [0]}
    assert load(tmp_path, axes=ranks).compare == "teacher.rank"
    assert load(tmp_path, axes=ranks, compare="teacher.rank", baseline=4).groups == ("method", "dataset")
    assert load(tmp_path, axes={"seed": [0, 1]}).compare is None


def test_a_run_keeps_its_name_in_another_grid_and_on_another_machine(tmp_path: Path) -> None:
    names = {run.name for run in load(tmp_path).runs}
    more = load(tmp_path, name="more", axes={**AXES, "seed": [0, 1, 2, 3]}, recipe={"engine": {"threads": 1}})
    assert names < {run.name for run in more.runs}
    assert names.isdisjoint(run.name for run in load(tmp_path, recipe={"engine": {"precision": "bf16-mixed"}}).runs)
    assert all(name.startswith(("task_kd-", "scratch-")) for name in names)


def test_the_base_recipe_may_be_a_file_beside_the_grid_and_overrides_change_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("teacher: {rank: 8, steps: 7}\n")
    recipe = load(tmp_path, "teacher.steps=9", recipe="base.yaml").runs[0].recipe
    assert (recipe.teacher.rank, recipe.teacher.steps) == (8, 9)


def test_a_built_in_recipe_is_taken_by_its_name(tmp_path: Path) -> None:
    """As ``tskd run laptop`` does; a file of that name beside the grid comes first."""
    found = load(tmp_path, recipe="laptop").runs[0].recipe
    assert (found.data.image_size, found.distill.steps, found.student.decoder) == (128, 800, "unet")
    (tmp_path / "laptop").write_text("distill: {steps: 7}\n")
    assert load(tmp_path, recipe="laptop").runs[0].recipe.distill.steps == 7
    with pytest.raises(UserError, match=r"recipe 'lap' is not known.*laptop"):
        load(tmp_path, recipe="lap")


def test_what_is_kept_of_a_grid_makes_the_same_runs_without_its_recipe_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("teacher: {rank: 8, steps: 7}\n")
    grid = load(tmp_path, "teacher.steps=9", recipe="base.yaml")
    (tmp_path / "kept.yaml").write_text(yaml.safe_dump(dict(grid.source), sort_keys=False))
    (tmp_path / "base.yaml").unlink()
    assert [run.name for run in load_grid(tmp_path / "kept.yaml").runs] == [run.name for run in grid.runs]


@pytest.mark.parametrize(
    ("override", "axes", "said"),
    [
        ("seed=7", {"seed": [0, 1]}, "seed is given, but the axis seed sets seed"),
        ("data.root=mine", {"family": [{"name": "a", "data.phantom.family": "dermoscopy"}]},
         "data.root is given, but the axis family sets data.phantom.family"),
        ("data.labels=9", {"a": [{"name": "b", "data.root": "c", "data.labels": 3}]}, "the axis a sets data.labels"),
    ],
)  # fmt: skip
def test_a_setting_that_an_axis_would_overwrite_is_refused(
    tmp_path: Path, override: str, axes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load(tmp_path, override, axes=axes)


def test_an_axis_of_phantoms_goes_with_phantoms_alone(tmp_path: Path) -> None:
    axes = {"family": [{"name": "a", "data.phantom": {"family": "dermoscopy"}}], "seed": [0]}
    assert len(load(tmp_path, "data.root=phantoms", axes=axes).runs) == 1
    with pytest.raises(UserError, match=r"the axis family sets data\.phantom\. Change the axis"):
        load(tmp_path, "data.root=mine", axes=axes)


def test_bias_and_variance_are_not_asked_of_federations(tmp_path: Path) -> None:
    """Their test images lie at sites; told before a run is made, for one federated run among others too."""
    federated = {"sites": {"north": {"split_seed": 1}, "south": {"split_seed": 2}}, "transfer": {"split_seed": 3}}
    axes = {"where": [{"name": "here", "federated": None}, {"name": "sites", "federated": federated}], "seed": [0, 1]}
    assert len(load(tmp_path, axes=axes).runs) == 4
    assert "bias_variance: it asks all trained models for the same test images" in refusal(
        tmp_path, axes=axes, bias_variance=True
    )


def test_an_axis_is_no_column_of_results(tmp_path: Path) -> None:
    """Its values would stand where scores are looked for."""
    ranks = [{"name": rank, "teacher.rank": rank} for rank in (1, 4)]
    for name in ("dice", "status", "n_cases", "variance"):
        assert "tables have a column of that name" in refusal(tmp_path, axes={name: ranks})
    axes: dict[str, Any] = {"losses": ranks, "seed": [0]}
    assert load(tmp_path, axes=axes).compare == "losses", "the axis that is compared is no column of tests.csv"
    message = refusal(tmp_path, axes={**axes, "method": ["task_kd", "scratch"]})
    assert "axes.losses: tables have a column of that name" in message


def test_every_column_beside_axes_is_known(tmp_path: Path) -> None:
    grid = load(tmp_path)
    distances = [dict.fromkeys(("hd95_px", "hd95_mm", "assd_px", "assd_mm"), 1.0)]
    results = {*table_columns(grid, distances), *decomposition_columns(grid)}
    assert results - RESULT_COLUMNS == {"method", "dataset", *grid.axes}
    statistics = {*columns_of(grid, PairTest), *columns_of(grid, MeanRank), *columns_of_changes(grid)}
    assert statistics - STATISTICS_COLUMNS == {"method", "dataset", "data.labels"}


def test_a_name_stays_a_name(tmp_path: Path) -> None:
    for name in ("../out", "a/b", ".hidden", ""):
        assert "names a folder" in refusal(tmp_path, name=name)


def test_seeds_that_vary_with_something_else_are_no_replicates_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = [{"name": n, "seed": n, "data.split_seed": n} for n in range(2)]
    load(tmp_path, axes={"split": split})
    assert "axes.split sets data.split_seed beside a seed" in capsys.readouterr().err


def test_every_problem_is_named_with_the_number_of_runs_that_have_it(tmp_path: Path) -> None:
    message = refusal(
        tmp_path, axes={"method": ["task_kd", "magic"], "teacher.rank": [0, 4], "data.labls": [3], "seed": [0, 1]}
    )
    assert "grid.yaml cannot be used" in message
    assert "data.labls: unknown key. Did you mean data.labels? Allowed here: allow_duplicates" in message
    assert "(8 runs)" in message
    assert "teacher.rank: Input should be greater than or equal to 1 (given: 0) (4 runs)" in message
    assert "method: 'magic' is not known" in message, "a problem that another one hides in every run"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"axes": {"seed": []}}, "axes.seed: no values"),
        ({"axes": {"seed": [1, 1]}}, "axes.seed: 1 is there twice"),
        ({"axes": {"seed": [[1, 2]]}}, "axes.seed: a value is a number"),
        ({"axes": {"x": [{"seed": 1}]}}, "axes.x: every mapping needs a name"),
        ({"axes": {"seed": [1, {"name": "a"}]}}, "axes.seed: values and mappings are mixed"),
        ({"axes": {"x": [{"name": "a", "seed": 1}], "seed": [2]}}, "seed is set by 2 axes"),
        ({"axes": {"x": [{"name": "a"}, {"name": "b"}]}}, "x b' is the same run as 'method task_kd, x a'"),
        ({"axis": {}}, "axis: unknown key. Did you mean axes? Allowed here: axes, baseline"),
        ({"recipe": {"teacher": {"rnk": 3}}}, "teacher.rnk: unknown key"),
        ({"recipe": "absent.yaml"}, "no such recipe"),
        ({"compare": "seed"}, "'seed' is not an axis whose values can be tested. Choose one of: method, data.labels"),
        ({"baseline": "mae"}, "baseline: 'mae' is not on the axis method. Choose one of: task_kd, scratch"),
        ({"recipe": {"engine": {"devices": 2}}}, "a run of a comparison has one device"),
        ({"axes": {"evaluate.data.rot": ["a"]}}, "rot: unknown key. Did you mean evaluate.data.root? Allowed here: "),
    ],
)  # fmt: skip
def test_a_mistake_says_what_is_wrong(tmp_path: Path, content: dict[str, Any], expected: str) -> None:
    assert expected in refusal(tmp_path, **content)


def test_a_key_that_is_missing_is_named_alone(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("axes: {seed: [0]}\n")
    with pytest.raises(UserError, match=r"grid\.yaml cannot be used:\n  name: is missing$"):
        load_grid(tmp_path / "grid.yaml")


def test_files_that_are_no_grid(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such grid"):
        load_grid(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="a grid is a mapping"):
        load_grid(tmp_path / "list.yaml")


def test_a_baseline_is_the_axis_value_that_equals_it(tmp_path: Path) -> None:
    """Its name is looked up as text later: 1 and 1.0 are one number and two texts."""
    grid = load(tmp_path, axes={"diffusion.guidance": [1.0, 2.0], "seed": [0]}, baseline=1)
    assert str(grid.baseline) == "1.0"


def test_a_baseline_of_null_is_to_be_named(tmp_path: Path) -> None:
    """It read as none at all, and every pair was tested."""
    said = refusal(tmp_path, axes={"data.tile": [None, 96]}, baseline=None)
    assert "Name the value, as in `{name: whole, data.tile: null}`, and give `baseline: whole`" in said
    named = [{"name": "whole", "data.tile": None}, {"name": "cut", "data.tile": 96}]
    assert load(tmp_path, axes={"tile": named}, baseline="whole").baseline == "whole"


def test_a_grid_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(UserError, match=r"grid\.yaml is not a text file"):
        load_grid(tmp_path / "grid.yaml")


def test_more_runs_than_anybody_trains_are_refused_at_once(tmp_path: Path) -> None:
    """A thousand values on each of three axes made a list of 10^9 runs until the memory was full."""
    axes = {
        "method": ["task_kd"],
        "seed": list(range(1000)),
        "data.labels": list(range(1, 1001)),
        "student.patch": [8, 16],
    }
    assert "its axes make 2000000 runs, of at most 10000" in refusal(tmp_path, axes=axes)


def test_long_values_are_cut_short_in_messages(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, axes={"method": ["x" * 100_000]})) < 1000
    assert len(refusal(tmp_path, axes={"method": ["x" * 100_000] * 2})) < 1000


def test_a_baseline_without_an_axis_to_test_is_said(tmp_path: Path) -> None:
    said = refusal(tmp_path, axes={"method": ["task_kd"]}, baseline="task_kd")
    assert "baseline: 'task_kd' is given, and no axis has several values to test" in said


def test_a_control_character_in_a_grid_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "nul.yaml").write_bytes(b"name: x\naxes: {method: [a\0b]}\n")
    with pytest.raises(UserError, match=r"nul\.yaml is not valid YAML: .*special characters are not allowed"):
        load_grid(tmp_path / "nul.yaml")
