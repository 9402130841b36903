from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tskd.metrics.segmentation import (
    CaseScore,
    ScoreRow,
    agreement,
    case_means,
    headline,
    mean_dice,
    score_case,
    shared_unit,
    summarise,
)
from tskd.stages.evaluation_files import CASES, pick_overlays, read_cases, read_scores, write_cases
from tskd.types import UNLABELLED

EMPTY = np.zeros((30, 40), dtype=np.uint8)


def square(top: int, left: int, *, label: int = 1, size: int = 10) -> np.ndarray:
    mask = EMPTY.copy()
    mask[top : top + size, left : left + size] = label
    return mask


def score_one(prediction: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...] | None = None) -> CaseScore:
    return score_case(prediction, mask, classes=1, spacing=spacing)[0]


def row(case: str, dice: float, *, image: str | None = None, label: int = 1, status: str = "scored") -> ScoreRow:
    return ScoreRow(case, image or case, label, "px", CaseScore(dice, dice / 2, 10 * (1 - dice), 1.0, status))  # type: ignore[arg-type]


class TestEmptyMaskPolicy:
    def test_both_empty_is_perfect(self) -> None:
        assert score_one(EMPTY, EMPTY) == CaseScore(1.0, 1.0, 0.0, 0.0, "both_empty")

    @pytest.mark.parametrize("spacing", [None, (0.5, 2.0)])
    def test_missed_and_false_positive_cost_the_diagonal(self, spacing: tuple[float, float] | None) -> None:
        diagonal = 50.0 if spacing is None else math.hypot(15, 80)
        assert score_one(EMPTY, square(5, 5), spacing) == CaseScore(0.0, 0.0, diagonal, diagonal, "missed")
        assert score_one(square(5, 5), EMPTY, spacing) == CaseScore(0.0, 0.0, diagonal, diagonal, "false_positive")

    def test_a_volume_costs_its_own_diagonal_and_its_millilitres_are_known(self) -> None:
        truth, empty = np.ones((30, 40, 120), np.uint8), np.zeros((30, 40, 120), np.uint8)
        missed = score_case(empty, truth, classes=1, spacing=(0.5, 0.5, 0.5))[0]
        assert missed == CaseScore(0.0, 0.0, 65.0, 65.0, "missed", truth_ml=18.0, volume_ml=0.0)
        assert score_case(empty, truth, classes=1, spacing=None)[0] == CaseScore(0.0, 0.0, 130.0, 130.0, "missed")
        nothing = score_case(empty, empty, classes=1, spacing=(0.5, 0.5, 0.5))[0]
        assert nothing == CaseScore(1.0, 1.0, 0.0, 0.0, "both_empty", truth_ml=0.0, volume_ml=0.0)

    def test_each_class_has_its_own_status(self) -> None:
        scores = score_case(square(2, 2), square(2, 2, label=2), classes=3, spacing=None)
        assert [score.status for score in scores] == ["false_positive", "missed", "both_empty"]


class TestScores:
    def test_shift_by_three_pixels(self) -> None:
        score = score_one(square(5, 8), square(5, 5))
        assert score.dice == pytest.approx(2 * 70 / 200)
        assert score.iou == pytest.approx(70 / 130)
        assert score.hd95 == pytest.approx(3.0)

    def test_spacing_is_row_then_column(self) -> None:
        assert score_one(square(5, 8), square(5, 5), (9.0, 0.5)).hd95 == pytest.approx(1.5)
        assert score_one(square(8, 5), square(5, 5), (0.5, 9.0)).hd95 == pytest.approx(1.5)

    def test_perfect_prediction(self) -> None:
        assert score_one(square(5, 5), square(5, 5)) == CaseScore(1.0, 1.0, 0.0, 0.0, "scored")

    def test_unlabelled_pixels_count_for_neither(self) -> None:
        mask = square(5, 5)
        mask[:, 20:] = UNLABELLED
        assert score_one(square(5, 5) | square(5, 25), mask).dice == 1.0

    def test_single_pixels_have_a_distance(self) -> None:
        score = score_one(square(3, 4, size=1), square(0, 0, size=1))
        assert (score.hd95, score.assd, score.dice, score.status) == (5.0, 5.0, 0.0, "scored")

    def test_the_last_pixels_of_a_large_image_count(self) -> None:
        """Pixels are counted a million at a time: what is left after the last whole million is a part too."""
        mask = np.zeros((1025, 1025), np.uint8)
        mask[-1, -10:] = 1
        prediction = np.roll(mask, -5, axis=1)
        (score,) = score_case(prediction, mask, classes=1, spacing=None, distances=False)
        assert score.dice == 0.5

    @pytest.mark.parametrize(
        ("prediction", "mask", "message"),
        [
            (np.zeros((3, 4), np.uint8), EMPTY, r"\(3, 4\).*\(30, 40\)"),
            (square(5, 5, label=3), EMPTY, "prediction holds class 0 to 3, allowed are 0 to 1"),
            (EMPTY, square(5, 5, label=2), "mask holds class 0 to 2"),
            (EMPTY, np.full_like(EMPTY, UNLABELLED), "no labelled pixel"),
        ],
    )
    def test_what_cannot_be_scored_is_refused(self, prediction: np.ndarray, mask: np.ndarray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            score_case(prediction, mask, classes=1, spacing=None)


def test_agreement_averages_classes_and_counts_absent_ones_as_agreed() -> None:
    assert agreement(square(5, 8), square(5, 5), 2) == pytest.approx((0.7 + 1.0) / 2)


@pytest.mark.parametrize(
    ("spacings", "unit", "told"),
    [
        ([(1.0, 1.0), (2.0, 1.0)], "mm", False),
        ([(1.0, 1.0), None], "px", True),
        ([None, None], "px", False),
    ],
)
def test_millimetres_need_every_spacing(spacings: list[tuple[float, float] | None], unit: str, told: bool) -> None:
    found, remark = shared_unit(spacings)
    assert found == unit
    assert (remark is not None) == told
    if remark:
        assert remark.startswith("1 of 2 images have no pixel spacing")


class TestSummary:
    def test_a_case_counts_once_however_many_images_it_has(self) -> None:
        rows = [row("a", 1.0), *(row("b", 0.5, image=f"b/{k}") for k in range(9))]
        summary = summarise(rows, seed=0)
        assert summary.dice.mean == 0.75
        assert (summary.n_cases, summary.n_images) == (2, 10)

    def test_every_status_is_counted_and_none_left_out_of_the_mean(self) -> None:
        statuses = ("scored", "missed", "false_positive", "both_empty", "missed")
        rows = [row(f"c{k}", float(status != "missed"), status=status) for k, status in enumerate(statuses)]
        summary = summarise(rows, seed=0)
        assert summary.dice.mean == pytest.approx(3 / 5)
        counts = (summary.scored, summary.missed, summary.false_positive, summary.both_empty)
        assert counts == (1, 2, 1, 1)

    def test_a_class_that_is_missed_everywhere_counts(self) -> None:
        """Left out as one that no mask holds, it would make a model that never finds it perfect."""
        rows = [row("a", 1.0), row("a", 0.0, label=2, status="missed")]
        assert summarise(rows, seed=0).dice.mean == mean_dice(rows) == 0.5

    def test_the_seed_is_that_of_the_intervals(self) -> None:
        rows = [row(f"c{k}", 0.1 * k) for k in range(8)]
        first, again, other = (summarise(rows, seed=seed).dice.ci95 for seed in (1, 1, 2))
        assert first == again != other

    def test_classes_are_told_apart(self) -> None:
        rows = [row(f"c{k}", dice, label=label) for k in range(4) for label, dice in ((1, 0.9), (2, 0.5))]
        summary = summarise(rows, seed=0)
        assert summary.dice.mean == pytest.approx(0.7)
        assert {label: part.dice.mean for label, part in summary.by_class.items()} == {1: 0.9, 2: 0.5}
        assert summary.n_images == 4

    def test_json_has_the_names_of_run_json_with_the_unit(self) -> None:
        fields = summarise([row(f"c{k}", 0.1 * k) for k in range(6)], seed=0).as_dict()
        assert {"dice", "dice_ci95", "hd95_px", "n_cases", "missed", "false_positive", "both_empty"} <= fields.keys()
        assert json.loads(json.dumps(fields, allow_nan=False)) == fields

    def test_two_cases_give_no_interval_but_valid_json(self) -> None:
        assert summarise([row("a", 0.5), row("b", 0.7)], seed=0).as_dict()["dice_ci95"] is None

    def test_mixed_units_and_repeated_images_are_refused(self) -> None:
        millimetres = ScoreRow("b", "b", 1, "mm", row("b", 0.5).score)
        with pytest.raises(ValueError, match="one unit"):
            summarise([row("a", 0.5), millimetres], seed=0)
        with pytest.raises(ValueError, match="appears twice"):
            summarise([row("a", 0.5), row("a", 0.6)], seed=0)


def test_rows_survive_a_csv_file() -> None:
    for unit in ("px", "mm"):
        written = ScoreRow("a", "a/1", 2, unit, CaseScore(0.1 + 0.2, 0.5, 3.25, 1 / 3, "scored"))  # type: ignore[arg-type]
        assert ScoreRow.from_dict({name: str(value) for name, value in written.as_dict().items()}) == written


def test_a_foreign_csv_line_is_refused() -> None:
    with pytest.raises(ValueError, match="not a line of a cases"):
        ScoreRow.from_dict({"case": "a", "dice": "1"})


def volume(case: str, name: str, dice: float, truth: float | None = None, found: float | None = None) -> ScoreRow:
    return ScoreRow(case, name, 1, "mm", CaseScore(dice, dice, 5.0, 1.0, "scored", truth, found), "volume")


def test_volumes_are_summarised_by_case_with_the_error_of_their_millilitres() -> None:
    rows = [volume("a", "a/1", 0.8, 100, 90), volume("a", "a/2", 0.4, 50, 80), volume("b", "b/1", 0.3, 10, 10)]
    fields = summarise(rows, seed=0).as_dict()
    assert fields["level"] == "volume"
    assert (fields["n_cases"], fields["n_volumes"]) == (2, 3)
    assert "n_images" not in fields
    assert fields["dice"] == pytest.approx((0.6 + 0.3) / 2)
    assert fields["volume_error_ml"] == pytest.approx(((10 + 30) / 2 + 0) / 2)
    assert "volume_error_ml" not in summarise([volume("a", "a/1", 0.8)], seed=0).as_dict()


def test_slices_and_volumes_are_never_averaged_together() -> None:
    rows = [volume("a", "a/1", 0.8), row("a", 1.0, image="a/1/0"), row("a", 0.0, image="a/1/1")]
    assert headline(rows) == rows[:1]
    assert headline(rows[1:]) == rows[1:]
    with pytest.raises(ValueError, match="of one level"):
        summarise([rows[0], ScoreRow("b", "b", 1, "mm", rows[0].score, "image")], seed=0)


def test_a_file_with_both_levels_reads_back_and_one_without_is_of_images(tmp_path: Path) -> None:
    rows = [row("a", 0.5, image="a/1/0"), volume("a", "a/1", 0.8, 1.5, 0.1 + 0.2)]
    write_cases(rows, tmp_path / CASES)
    assert read_scores(tmp_path) == rows
    assert read_cases(tmp_path) == rows[1:]
    old = {name: str(value) for name, value in rows[0].as_dict().items() if name != "level"}
    assert ScoreRow.from_dict(old) == rows[0]


def test_case_means_are_sorted_by_case() -> None:
    rows = [row("b", 0.2), row("a", 0.4), row("a", 0.8, image="a2")]
    assert list(case_means(rows, "dice").items()) == [("a", pytest.approx(0.6)), ("b", 0.2)]


class TestWhatToLookAt:
    def test_images_that_show_nothing_are_no_worst_and_no_best(self) -> None:
        rows = [
            row("healthy", 1.0, status="both_empty"),
            row("invented", 0.0, status="false_positive"),
            row("missed", 0.0, status="missed"),
            row("good", 0.9),
            row("fair", 0.5),
        ]
        picked = {(rank, image) for rank, image, _ in pick_overlays(rows, 3)}
        assert picked == {("worst", "missed"), ("median", "fair"), ("best", "good")}

    def test_an_image_with_one_class_of_two_shows_something(self) -> None:
        rows = [row("a", 0.8), row("a", 1.0, label=2, status="both_empty")]
        assert pick_overlays(rows, 3) == [("worst", "a", pytest.approx(0.9))]

    def test_where_no_image_shows_anything_all_are_taken(self) -> None:
        assert len(pick_overlays([row("a", 1.0, status="both_empty"), row("b", 0.0, status="false_positive")], 6)) == 2


def test_what_is_in_no_mask_has_counts_and_no_score() -> None:
    """Red where both being empty is told as Dice 1, of all classes together or of one of them."""
    mask, marked = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    first = [
        ScoreRow(f"p{number}", f"p{number}", label, "px", score)
        for number, prediction in enumerate((mask, marked))
        for label, score in enumerate(score_case(prediction, mask, classes=2, spacing=None), start=1)
    ]
    told = summarise(first, seed=0).as_dict()
    assert [told[name] for name in ("dice", "iou", "hd95_px", "assd_px", "dice_ci95")] == [None] * 5
    assert (told["both_empty"], told["false_positive"]) == (3, 1)
    there = [
        ScoreRow("p9", "p9", label, "px", score)
        for label, score in enumerate(score_case(marked, marked, classes=2, spacing=None), start=1)
    ]
    told = summarise([*first, *there], seed=0).as_dict()
    assert told["dice"] == told["classes"]["1"]["dice"] == pytest.approx(2 / 3), "the absent class is in no mean"
    assert told["classes"]["2"]["dice"] is None


def test_ids_of_any_name_come_back_from_the_table_of_cases(tmp_path: Path) -> None:
    """Names that are not UTF-8, and such as a spreadsheet would run: predictions are found by them again."""
    names = ["\udce4rzte", "=HYPERLINK(1)", "-scan", "'quoted'", "Ärzte 😀"]
    (score,) = score_case(np.ones((4, 4), np.uint8), np.ones((4, 4), np.uint8), classes=1, spacing=None)
    write_cases([ScoreRow(name, name, 1, "px", score) for name in names], tmp_path / "cases.csv")
    assert [row.image for row in read_scores(tmp_path)] == names
    assert b"'=HYPERLINK" in (tmp_path / "cases.csv").read_bytes()


def test_overlaps_are_the_same_without_distances() -> None:
    mask, prediction = np.zeros((2, 12, 12), np.uint8)
    mask[2:8, 2:8], prediction[3:9, 2:8] = 1, 1
    (whole,), (bare,) = (
        score_case(prediction, mask, classes=1, spacing=None, distances=distances) for distances in (True, False)
    )
    assert (bare.dice, bare.iou, bare.status) == (whole.dice, whole.iou, whole.status)
    assert math.isnan(bare.hd95)
    assert math.isnan(bare.assd)


def test_the_mean_dice_is_that_of_the_summary() -> None:
    masks = np.zeros((3, 12, 12), np.uint8)
    masks[0, 2:8, 2:8], masks[1, 1:3, 1:9] = 1, 2
    rows = [
        ScoreRow(case, f"{case}{number}", label, "px", one)
        for number, (case, mask) in enumerate(zip("aab", masks, strict=True))
        for label, one in enumerate(score_case(np.roll(mask, 2), mask, classes=3, spacing=None), start=1)
    ]
    assert mean_dice(rows) == summarise(rows, seed=0).dice.mean
    assert mean_dice([row for row in rows if row.case == "b"]) is None
