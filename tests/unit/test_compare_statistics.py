"""tests.csv, changes.csv and ranks.csv of hand-made cases.csv: numbers by hand, or by scipy where it is a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from tskd.comparison.grid import Grid, GridRun
from tskd.comparison.job import Outcome
from tskd.comparison.statistics import Scored, as_rows, columns_of, columns_of_changes, compare_groups
from tskd.metrics.comparison import MeanRank, PairTest
from tskd.metrics.segmentation import CaseScore, ScoreRow
from tskd.recipe.schema import Recipe
from tskd.stages.evaluate import CASES, write_cases
from tskd.stages.evaluation_files import read_scores

AXES: dict[str, tuple[Any, ...]] = {"method": ("kd", "scratch"), "data.labels": (20, 40), "seed": (0, 1)}


def grid(axes: Mapping[str, tuple[Any, ...]] = AXES, *, compare: str = "method", baseline: Any = None) -> Grid:
    return Grid("hand", axes, ("seed",), (), compare, baseline, False, {})


def run(folder: Path, point: Mapping[str, Any], cases: Mapping[str, Any], *, dataset: str = "set") -> Scored:
    """A finished run; ``cases`` maps a case to the Dice of its images (one value, or a list of [class 1, class 2])."""
    name = "-".join(map(str, point.values()))
    rows = [
        ScoreRow(case, f"{case}/{image}", label, "px", CaseScore(dice, dice, 100 * (1 - dice), 1.0, "scored"))
        for case, images in cases.items()
        for image, classes in enumerate(images if isinstance(images, list) else [[images]])
        for label, dice in enumerate(classes, start=1)
    ]
    (folder / name).mkdir(parents=True)
    write_cases(rows, folder / name / CASES)
    recipe = Recipe(method=str(point.get("method", "task_kd")))
    return Scored(GridRun(name, point, recipe), Outcome(name, None, {"dataset": dataset}, {}), folder / name)


def point(method: str, labels: int, seed: int) -> dict[str, Any]:
    return {"method": method, "data.labels": labels, "seed": seed}


@pytest.fixture
def runs(tmp_path: Path) -> list[Scored]:
    """At 20 labels kd wins by 0.2, 0.1 and 0.005 in the mean over seeds; at 40 it loses by 0.1, 0.2, 0.3."""
    return [
        # case a: two images of two classes, means 0.8 and 0.6 -> 0.7
        run(tmp_path, point("kd", 20, 0), {"a": [[0.9, 0.7], [0.5, 0.7]], "b": 0.6, "c": 0.505}),
        run(tmp_path, point("kd", 20, 1), {"a": 0.7, "b": 0.7, "c": 0.505}),
        run(tmp_path, point("scratch", 20, 0), {"a": 0.4, "b": 0.5, "c": 0.5}),
        run(tmp_path, point("scratch", 20, 1), {"a": 0.6, "b": 0.6, "c": 0.5}),
        run(tmp_path, point("kd", 40, 0), {"a": 0.5, "b": 0.5, "c": 0.5}),
        run(tmp_path, point("kd", 40, 1), {"a": 0.5, "b": 0.5, "c": 0.5}),
        run(tmp_path, point("scratch", 40, 0), {"a": 0.6, "b": 0.7, "c": 0.8}),
        run(tmp_path, point("scratch", 40, 1), {"a": 0.6, "b": 0.7, "c": 0.8}),
    ]


def test_tests_by_hand(runs: list[Scored]) -> None:
    rows = as_rows(compare_groups(grid(baseline="scratch"), runs).tests)
    assert [(row["data.labels"], row["measure"]) for row in rows] == [
        (20, "dice"), (20, "hd95_px"), (40, "dice"), (40, "hd95_px"),
    ]  # fmt: skip
    first = rows[0]
    assert list(first) == columns_of(grid(), PairTest)
    assert (first["dataset"], first["method"], first["baseline"]) == ("set", "kd", "scratch")
    assert (first["n_cases"], first["n_seeds"]) == (3, 2)
    assert first["difference"] == pytest.approx((0.2 + 0.1 + 0.005) / 3)
    assert (first["wins"], first["ties"], first["losses"]) == (2, 1, 0)
    assert first["p_wilcoxon"] == pytest.approx(stats.wilcoxon([0.2, 0.1, 0.005]).pvalue)
    assert first["ci95_low"] is first["ci95_high"] is None, "three cases"
    distances = rows[1]
    assert distances["difference"] == pytest.approx(-100 * (0.2 + 0.1 + 0.005) / 3)
    assert (distances["wins"], distances["ties"], distances["losses"]) == (2, 1, 0), "a smaller distance wins"
    assert (rows[2]["difference"], rows[2]["losses"]) == (pytest.approx(-0.2), 3)


def test_volumes_are_tested_where_there_are_any_and_never_against_slices(tmp_path: Path) -> None:
    """By slice kd wins by 0.4 in each case, by volume it loses by 0.2."""
    found = []
    for method, by_slice, by_volume in (("kd", 0.9, 0.4), ("scratch", 0.5, 0.6)):
        scored = run(tmp_path, point(method, 20, 0), dict.fromkeys("abc", by_slice))
        rows = read_scores(scored.evaluation)
        volumes = [replace(row, level="volume", score=replace(row.score, dice=by_volume)) for row in rows]
        write_cases([*rows, *volumes], scored.evaluation / CASES)
        found.append(scored)
    dice, _ = (test for _, test in compare_groups(grid(baseline="scratch"), found).tests)
    assert (dice.difference, dice.losses) == (pytest.approx(-0.2), 3)
    slices = run(tmp_path, point("other", 20, 0), dict.fromkeys("abc", 0.9))
    with_other = grid({**AXES, "method": ("kd", "scratch", "other")}, baseline="scratch")
    tested = {test.method for _, test in compare_groups(with_other, [*found, slices]).tests}
    assert tested == {"kd"}


def test_holm_is_over_the_whole_table(runs: list[Scored]) -> None:
    """Four tests, each with the smallest p that three cases allow, 1/4: Holm multiplies by 4, then no less."""
    rows = as_rows(compare_groups(grid(), runs).tests)
    assert [row["p_wilcoxon"] for row in rows] == [0.25] * 4
    assert [row["p_holm"] for row in rows] == [1.0] * 4


def test_changes_by_hand(runs: list[Scored]) -> None:
    """kd leads by 0.2, 0.1, 0.005 at 20 labels and by -0.1, -0.2, -0.3 at 40: each case's lead falls by about 0.3."""
    rows = as_rows(compare_groups(grid(baseline="scratch"), runs).changes)
    assert [row["measure"] for row in rows] == ["dice", "hd95_px"]
    first = rows[0]
    assert set(first) <= set(columns_of_changes(grid()))
    assert (first["dataset"], first["axis"], first["first"], first["last"]) == ("set", "data.labels", 20, 40)
    assert (first["method"], first["baseline"]) == ("kd", "scratch")
    assert first["difference"] == pytest.approx((-0.3 - 0.3 - 0.305) / 3)
    assert (first["wins"], first["losses"], first["n_seeds"]) == (0, 3, 2)
    assert first["p_wilcoxon"] == pytest.approx(stats.wilcoxon([-0.3, -0.3, -0.305]).pvalue)
    assert first["p_holm"] == pytest.approx(min(1.0, 2 * first["p_wilcoxon"])), "over this table alone"
    assert rows[1]["difference"] == pytest.approx(100 * (0.3 + 0.3 + 0.305) / 3)


def test_a_pair_has_one_direction_whichever_run_failed(runs: list[Scored]) -> None:
    """Seed 0 of kd at 20 labels is gone, so scratch has the first run there."""
    seeds_first = {name: AXES[name] for name in ("seed", "data.labels", "method")}
    left = sorted((one for one in runs if one.run.name != "kd-20-0"), key=lambda one: one.place["seed"])
    found = compare_groups(grid(seeds_first), left)
    assert {(test.method, test.baseline) for _, test in found.tests} == {("kd", "scratch")}
    assert len(found.changes) == 2


def test_no_change_is_told_along_seeds_of_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axes = {"method": ("kd", "scratch"), "data.split_seed": (0, 1), "seed": (0,)}
    several = [
        run(tmp_path, {"method": method, "data.split_seed": split, "seed": 0}, {f"case {split}": dice})
        for method, dice in (("kd", 0.7), ("scratch", 0.5))
        for split in (0, 1)
    ]
    found = compare_groups(grid(axes), several)
    assert len(found.tests) == 4
    assert not found.changes
    assert not capsys.readouterr().err


def test_changes_take_the_seeds_that_all_four_have(runs: list[Scored]) -> None:
    """Seed 1 of scratch at 20 labels is gone: what is left is seed 0, where kd led by 0.3, 0.1, 0.005."""
    (first, _) = as_rows(compare_groups(grid(), [one for one in runs if one.run.name != "scratch-20-1"]).changes)
    assert first["n_seeds"] == 1
    assert first["difference"] == pytest.approx((-0.4 - 0.3 - 0.305) / 3)


def test_changes_that_cannot_be_paired_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A larger test set has other cases."""
    axes: dict[str, tuple[Any, ...]] = {"method": ("kd", "scratch"), "data.test_share": (0.1, 0.2), "seed": (0,)}
    listed = [
        run(tmp_path, {"method": method, "data.test_share": share, "seed": 0}, dict.fromkeys(f"{share}xyz", 0.5))
        for share in (0.1, 0.2)
        for method in ("kd", "scratch")
    ]
    found = compare_groups(grid(axes), listed)
    assert len(found.tests) == 4
    assert found.changes == ()
    said = capsys.readouterr().err
    assert (
        "no comparison of kd at data.test_share 0.2, scratch at data.test_share 0.2, kd at data.test_share 0.1" in said
    )
    assert "their test images differ" in said


def test_yes_and_no_are_no_numbers(tmp_path: Path) -> None:
    axes: dict[str, tuple[Any, ...]] = {"method": ("kd", "scratch"), "transfer.flip": (False, True), "seed": (0,)}
    listed = [
        run(tmp_path, {"method": method, "transfer.flip": flip, "seed": 0}, dict.fromkeys("xyz", 0.5))
        for flip in (False, True)
        for method in ("kd", "scratch")
    ]
    assert compare_groups(grid(axes), listed).changes == ()


def test_changes_go_along_numbers_alone_and_within_the_other_axes(tmp_path: Path) -> None:
    """From the lowest to the highest value, the middle left out; never from one backbone to another."""
    axes: dict[str, tuple[Any, ...]] = {
        "method": ("kd", "scratch"), "student.backbone": ("a", "b"), "data.labels": (20, 40, 80), "seed": (0,),
    }  # fmt: skip
    lead = {("a", 20): 0.3, ("a", 40): 0.0, ("a", 80): 0.1, ("b", 20): 0.1, ("b", 40): 0.0, ("b", 80): 0.1}
    listed = [
        run(tmp_path, {**point(method, labels, 0), "student.backbone": backbone}, dict.fromkeys("xyz", dice))
        for (backbone, labels), gain in lead.items()
        for method, dice in (("kd", 0.5 + gain), ("scratch", 0.5))
    ]
    found = [
        (row["student.backbone"], row["first"], row["last"], round(row["difference"], 3))
        for row in as_rows(compare_groups(grid(axes), listed).changes)
        if row["measure"] == "dice"
    ]
    assert found == [("a", 20, 80, -0.2), ("b", 20, 80, 0.0)]


def test_ranks_by_hand(runs: list[Scored]) -> None:
    rows = as_rows(compare_groups(grid(), runs).ranks)
    assert list(rows[0]) == columns_of(grid(), MeanRank)
    found = [
        (row["data.labels"], row["measure"], row["method"], row["mean_rank"])
        for row in rows
        if row["measure"] == "dice"
    ]
    assert found == [
        (20, "dice", "kd", 1.0),
        (20, "dice", "scratch", 2.0),
        (40, "dice", "scratch", 1.0),
        (40, "dice", "kd", 2.0),
    ]
    assert rows[0]["mean_score"] == pytest.approx((0.7 + 0.65 + 0.505) / 3)


def test_a_seed_that_failed_is_left_out(runs: list[Scored]) -> None:
    rows = as_rows(compare_groups(grid(), [one for one in runs if one.run.name != "scratch-20-1"]).tests)
    assert rows[0]["n_seeds"] == 1
    assert rows[0]["difference"] == pytest.approx((0.3 + 0.1 + 0.005) / 3)
    assert rows[2]["n_seeds"] == 2


def test_a_method_that_failed_takes_no_seed_from_the_tests_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of mae seed 0 failed, of moco seed 1; kd and scratch keep both, ranks need a seed that all have."""
    done = [("kd", 0), ("kd", 1), ("scratch", 0), ("scratch", 1), ("mae", 1), ("moco", 0)]
    listed = [run(tmp_path, point(method, 20, seed), {"a": 0.5, "b": 0.4 + 0.1 * seed}) for method, seed in done]
    found = compare_groups(grid(AXES | {"method": ("kd", "scratch", "mae", "moco")}), listed)
    seeds = {(test.method, test.baseline): test.n_seeds for _, test in found.tests if test.measure == "dice"}
    assert seeds == {
        ("kd", "scratch"): 2, ("kd", "mae"): 1, ("kd", "moco"): 1, ("scratch", "mae"): 1, ("scratch", "moco"): 1,
    }  # fmt: skip
    assert found.ranks == ()
    said = capsys.readouterr().err
    place = "in dataset set, data.labels 20: no seed is finished for all of them"
    assert said.count(f"no test between mae, moco {place}") == 1
    assert said.count(f"no comparison of kd, scratch, mae, moco {place}") == 1


def test_a_group_without_a_second_method_or_the_baseline_is_left_out(
    runs: list[Scored], capsys: pytest.CaptureFixture[str]
) -> None:
    some = [one for one in runs if one.run.point["method"] == "kd" or one.run.point["data.labels"] == 40]
    rows = as_rows(compare_groups(grid(baseline="scratch"), some).tests)
    assert {row["data.labels"] for row in rows} == {40}
    assert "no tests for dataset set, data.labels 20" in capsys.readouterr().err
    assert compare_groups(grid(), runs[:2]).tests == ()


def test_data_sets_are_never_mixed(tmp_path: Path) -> None:
    listed = [
        run(tmp_path / name, point(method, 20, 0), cases, dataset=name)
        for name, cases in (("one", {"a": 0.5, "b": 0.6}), ("two", {"c": 0.5, "d": 0.6, "e": 0.7}))
        for method in ("kd", "scratch")
    ]
    rows = as_rows(compare_groups(grid(), listed).tests)
    assert [(row["dataset"], row["n_cases"]) for row in rows] == [("one", 2), ("one", 2), ("two", 3), ("two", 3)]


def test_other_axes_than_the_method_are_compared_within_each_method(tmp_path: Path) -> None:
    axes: dict[str, tuple[Any, ...]] = {"method": ("teacher", "task_kd"), "teacher.rank": (1, 4), "seed": (0,)}
    listed = [
        run(tmp_path, {"method": method, "teacher.rank": rank, "seed": 0}, {"a": dice, "b": dice, "c": dice})
        for method, rank, dice in (("teacher", 1, 0.5), ("teacher", 4, 0.6), ("task_kd", 1, 0.4), ("task_kd", 4, 0.7))
    ]
    rows = as_rows(compare_groups(grid(axes, compare="teacher.rank", baseline=1), listed).tests)
    found = [(row["method"], row["baseline"], round(row["difference"], 3)) for row in rows if row["measure"] == "dice"]
    assert found == [("teacher: 4", "teacher: 1", 0.1), ("task_kd: 4", "task_kd: 1", 0.3)]
    assert "teacher.rank" not in rows[0]


def test_runs_on_other_test_cases_are_not_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [run(tmp_path, point(method, 20, 0), {case: 0.5}) for method, case in (("kd", "a"), ("scratch", "b"))]
    assert compare_groups(grid(), listed).tests == ()
    assert "their test images differ" in capsys.readouterr().err


def test_cases_of_one_name_with_other_images_are_not_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two data sets may both call their cases case0, case1, ..."""
    listed = [run(tmp_path, point(method, 20, 0), {"case0": 0.5}) for method in ("kd", "scratch")]
    listed = [replace(one, tested_images=digest) for one, digest in zip(listed, ("skin", "mouth"))]
    assert compare_groups(grid(), listed).tests == ()
    assert "their test images differ" in capsys.readouterr().err
