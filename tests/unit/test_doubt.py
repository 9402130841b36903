"""Doubt: what the numbers mean, by hand; what is chosen on which images; what the shipped graph answers."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import mahalanobis
from torch import Tensor, nn

from tests.made_up import SMALL_VIT, make_prepared
from tskd.data.prepared import MASKS, RECORDS, Prepared, native_path
from tskd.deploy import network_file
from tskd.deploy.doubt import TABLE, remark
from tskd.deploy.network_file import Answer
from tskd.deploy.onnx_export import Deployed, Doubts, Familiar, confidence
from tskd.metrics.doubt import Calibration, order_by_confidence, risk_by_coverage
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.stages import doubt
from tskd.stages.export import doubt_difference
from tskd.stages.network_answers import network_answer
from tskd.types import SegmentationOutput

CPU = torch.device("cpu")


def answer(*, confidence: float = 0.9, unfamiliarity: float | None = 0.5) -> Answer:
    return Answer(np.zeros((1, 1), np.uint8), np.ones((2, 1, 1), np.float32), confidence, unfamiliarity)


# what numbers mean


def test_calibration_error_is_the_gap_between_how_sure_and_how_often_right() -> None:
    """Eight pixels at 0.9, half of them right, and two at 0.5, one right: (8 x 0.4 + 2 x 0) / 10."""
    found = Calibration.empty()
    found.add(np.array([0.9] * 8), np.array([1, 0] * 4))
    found.add(np.array([0.5, 0.5]), np.array([1, 0]))
    assert found.error == pytest.approx(0.32)
    assert Calibration.empty().error is None


def test_calibration_is_by_fifteen_bins_and_gaps_in_different_ones_do_not_cancel() -> None:
    """0.61 and 0.66 lie between 9/15 and 10/15, so one right and one wrong leave 0.27 between them; 0.67 does not."""
    together, apart = Calibration.empty(), Calibration.empty()
    together.add(np.array([0.61, 0.66]), np.array([0, 1]))
    apart.add(np.array([0.61, 0.67]), np.array([0, 1]))
    assert together.error == pytest.approx(abs(1 - 1.27) / 2)
    assert apart.error == pytest.approx((0.61 + 0.33) / 2)


def test_confidence_that_follows_dice_orders_best_and_one_against_it_worst() -> None:
    dice = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95]
    cases = list("abcdefg")
    best = order_by_confidence(dice, dice, cases, seed=0)
    worst = order_by_confidence([-one for one in dice], dice, cases, seed=0)
    assert best is not None and worst is not None  # noqa: PT018
    assert (best.rank_correlation, worst.rank_correlation) == (pytest.approx(1), pytest.approx(-1))
    assert best.area == best.area_at_best < best.area_at_random < worst.area
    assert order_by_confidence([0.5] * 7, dice, cases, seed=0) is None, "it says nothing"


def test_an_interval_is_over_cases_not_over_slices() -> None:
    """Forty slices of four patients are four independent things: too few for an interval."""
    rng = np.random.default_rng(0)
    sure, dice = rng.random(40), rng.random(40)
    by_slice = order_by_confidence(sure, dice, [str(number) for number in range(40)], seed=0)
    by_patient = order_by_confidence(sure, dice, [str(number // 10) for number in range(40)], seed=0)
    assert by_slice is not None and by_patient is not None  # noqa: PT018
    assert by_slice.ci95 is not None
    assert by_slice.ci95[0] < by_slice.rank_correlation < by_slice.ci95[1]
    assert by_patient.ci95 is None
    eight, repeated = (
        order_by_confidence(
            np.repeat(sure[:8], times), np.repeat(dice[:8], times), list(np.repeat(list("abcdefgh"), times)), seed=0
        )
        for times in (1, 5)
    )
    assert eight is not None and repeated is not None  # noqa: PT018
    assert repeated.ci95 == pytest.approx(eight.ci95), "a slice that is repeated five times is no news"


def test_risk_is_that_of_the_surest_so_far() -> None:
    risks = risk_by_coverage(np.array([0.2, 0.9, 0.5]), np.array([0.0, 1.0, 0.5]))
    np.testing.assert_allclose(risks, [0, 0.25, 0.5])


def test_confidence_is_of_the_mask_and_of_the_whole_image_where_it_is_empty() -> None:
    probabilities = torch.tensor([[[0.9, 0.2], [0.8, 0.4]], [[0.1, 0.8], [0.2, 0.6]]])
    assert confidence(probabilities.argmax(dim=0), probabilities) == pytest.approx(0.7)
    empty = torch.tensor([[[0.9, 0.7]], [[0.1, 0.3]]])
    assert confidence(empty.argmax(dim=0), empty) == pytest.approx(0.8)
    for one in (probabilities, empty):  # files of before do not answer it: their readers count the same
        classes = one.argmax(dim=0)
        assert network_file.confidence(classes.numpy(), one.numpy()) == pytest.approx(float(confidence(classes, one)))


@pytest.mark.parametrize(("found", "said"), [
    (answer(), ""),
    (answer(confidence=0.5), "unsure"),
    (answer(unfamiliarity=1.2), "unlike the training images"),
    (answer(confidence=0.5, unfamiliarity=1.2), "unsure, unlike the training images"),
    (answer(unfamiliarity=None), ""),
])  # fmt: skip
def test_what_is_to_be_looked_at(found: Answer, said: str) -> None:
    assert remark(found, look_below=0.6) == said


# how far from the training images


def test_distances_are_mahalanobis_where_images_are_many() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20_000, 3)) @ np.array([[1, 0.5, 0], [0, 2, 0.5], [0, 0, 1.5]])
    inverse = np.linalg.inv(np.cov(features.T))
    expected = [mahalanobis(one, features.mean(axis=0), inverse) for one in features[:20]]
    np.testing.assert_allclose(doubt.distance(features[:20], *doubt.gaussian(features)), expected, rtol=0.02)


def test_few_images_shrink_the_spread_as_ledoit_and_wolf_say() -> None:
    """Their lemma 3.3 over single images; without it, twelve images in twenty directions have no inverse."""
    features = np.random.default_rng(0).normal(size=(12, 20)) * np.arange(1, 21)
    moved = features - features.mean(axis=0)
    covariance = moved.T @ moved / 12
    mean = np.trace(covariance) / 20
    apart = ((covariance - mean * np.eye(20)) ** 2).sum() / 20
    noise = sum(((np.outer(one, one) - covariance) ** 2).sum() / 20 for one in moved) / 12**2
    shrinkage = min(noise, apart) / apart
    inverse = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * mean * np.eye(20))
    expected = np.sqrt(np.einsum("ni,ij,nj->n", moved, inverse, moved))
    np.testing.assert_allclose(doubt.distance(features, *doubt.gaussian(features)), expected, rtol=1e-6)


@pytest.mark.parametrize("cases", [
    ["a"] * 6 + list("bcdefgh"), [f"{number // 3}" for number in range(30)], ["a"] * 20, ["a"] * 18 + ["b", "c"],
])  # fmt: skip
def test_halves_are_alike_and_cut_between_cases_where_that_can_be(cases: list[str]) -> None:
    """A half of two images has a spread of one direction, and everything else lies infinitely far from it."""
    first, second = doubt.halves(cases)
    assert (first ^ second).all()
    assert min(first.sum(), second.sum()) >= 4
    if len(set(cases)) > 3:
        assert not set(np.array(cases)[first]) & set(np.array(cases)[second])
        assert abs(int(first.sum()) - int(second.sum())) <= 3


def test_wide_features_keep_their_largest_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift along a direction that is not kept is seen all the same."""
    monkeypatch.setattr(doubt, "MOST_DIRECTIONS", 3)
    features = np.random.default_rng(0).normal(size=(500, 10)) * np.array([9, 8, 7, *[0.1] * 7])
    found = doubt.gaussian(features)
    assert found[1].shape == (3, 10)
    moved = features[:1].copy()
    moved[0, 9] += 5
    assert doubt.distance(moved, *found)[0] > 10 * doubt.distance(features[:1], *found)[0]


@pytest.mark.parametrize("most", [128, 3], ids=["all directions", "the rest together"])
def test_the_graph_measures_as_the_arrays_do(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubt, "MOST_DIRECTIONS", most)
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float64)
    spread, alarms = doubt.spread_of(
        doubt.Seen(np.arange(40), tuple(map(str, range(40))), np.ones(40), features, np.arange(40))
    )
    assert spread is not None
    expected = doubt.distance(features, *doubt.gaussian(features)) / float(spread.limit)
    found = Familiar(**asdict(spread))(torch.from_numpy(features).float())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    assert alarms == pytest.approx(doubt.FALSE_ALARMS, abs=0.03)


# what is chosen, and on what


class Grey(nn.Module):
    """A network whose logit is the brightness above a half, as many times as it is too sure."""

    def __init__(self, too_sure: float = 1.0) -> None:
        super().__init__()
        self.too_sure = nn.Parameter(torch.tensor(too_sure))

    def forward(self, images: Tensor) -> SegmentationOutput:
        return SegmentationOutput((), self.too_sure * 4 * (images.mean(dim=1, keepdim=True) - 0.5))


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """Masks drawn by the very chances that ``Grey`` answers; the test images are there at their own size."""
    found = make_prepared(tmp_path / "data", size=32, counts={"train": 8, "val": 8, "unlabelled": 12, "test": 6})
    rng = np.random.default_rng(0)
    chance = 1 / (1 + np.exp(-4 * (found.images.mean(axis=-1) / 255 - 0.5)))
    masks = (rng.random(chance.shape) < chance).astype(np.uint8)
    np.save(found.folder / MASKS, masks[: len(found.masks)])
    for row in found.rows("test"):
        for kind, pixels in (("image", found.images[row]), ("mask", masks[row])):
            path = native_path(found.folder, int(row), kind)
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.asarray(pixels)).save(path)
    return Prepared(found.folder)


def without_validation(prepared: Prepared) -> Prepared:
    """The same data, its validation images without labels."""
    path = prepared.folder / RECORDS
    path.write_text(path.read_text(encoding="utf-8").replace('"part": "val"', '"part": "unlabelled"'), encoding="utf-8")
    return Prepared(prepared.folder)


def test_a_network_that_is_three_times_too_sure_is_cooled_by_three(prepared: Prepared) -> None:
    temperature, images = doubt.fit_temperature(Grey(3.0), prepared, CPU)
    assert (temperature, images) == (pytest.approx(3.0, rel=0.15), 8)


def test_a_temperature_is_fitted_on_so_many_pixels_at_most(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view of the chosen pixels kept all of them in memory."""
    rows = prepared.rows("val")
    monkeypatch.setattr(doubt, "MOST_PIXELS", 1000)
    logits, masks = doubt.labelled_pixels(Grey(3.0), prepared, rows, CPU)
    assert 500 < len(masks) <= 1000
    assert logits.untyped_storage().nbytes() == logits.numel() * logits.element_size()
    temperature, images = doubt.fit_temperature(Grey(3.0), prepared, CPU)
    assert (temperature, images) == (pytest.approx(3.0, rel=0.3), len(rows))


def test_without_validation_images_nothing_is_calibrated_and_the_limit_is_of_unlabelled_ones(
    prepared: Prepared, tmp_path: Path
) -> None:
    found = doubt.measure(Grey(), without_validation(prepared), prepared, tmp_path, device=CPU)
    assert (found["temperature"], found["calibrated_on"]) == (1.0, 0)
    assert (found["chosen_on"], found["chosen_images"]) == ("unlabelled", 20)
    assert found["familiar_images"] == 0, "this network offers no features"
    assert doubt.read_doubts(tmp_path) == Doubts(1.0)


def test_calibration_lowers_the_error_on_test_images_it_has_not_seen(prepared: Prepared, tmp_path: Path) -> None:
    found = doubt.measure(Grey(3.0), prepared, prepared, tmp_path, device=CPU)
    assert found["ece"] < 0.5 * found["ece_uncalibrated"]


def test_test_images_choose_nothing(prepared: Prepared, tmp_path: Path) -> None:
    """Other test images: the same temperature and limits."""
    first = doubt.measure(Grey(2.0), prepared, prepared, tmp_path, device=CPU)
    for path in (prepared.folder / "native").iterdir():
        Image.fromarray(255 * (np.asarray(Image.open(path)) // 255)).save(path)
    second = doubt.measure(Grey(2.0), prepared, prepared, tmp_path, device=CPU)
    same = ("temperature", "look_below", "chosen_images", "familiar_images", "false_alarms")
    assert [first[key] for key in same] == [second[key] for key in same]
    assert first["ece"] != second["ece"]


def test_each_test_image_has_a_line_and_strange_ones_are_called_so(prepared: Prepared, tmp_path: Path) -> None:
    """Inverted pictures are further from those of the training than the training's own kind."""
    torch.manual_seed(0)
    student = TimmSegmenter(SMALL_VIT, "plain", classes=1, image_size=32)
    found = doubt.measure(student, prepared, prepared, tmp_path, device=CPU)
    with (tmp_path / TABLE).open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == [f"test{number}" for number in range(6)]
    doubts = doubt.read_doubts(tmp_path)
    own, inverted = (
        [
            network_answer(student.eval(), change(prepared.native_image(row)), doubts).unfamiliarity
            for row in range(28, 34)
        ]
        for change in (lambda image: image, lambda image: 255 - image)
    )
    assert [float(line["unfamiliarity"]) for line in lines] == pytest.approx(own)
    assert np.median(inverted) > 1.5 * np.median(own)
    assert found["images"] == 6


def test_the_shipped_graph_is_cooled_and_answers_the_same_classes() -> None:
    torch.manual_seed(0)
    student = TimmSegmenter(SMALL_VIT, "plain", classes=2, image_size=32).eval()
    image = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8)
    with torch.inference_mode():
        plain, cooled = Deployed(student)(image), Deployed(student, Doubts(2.0))(image)
    assert torch.equal(plain[0], cooled[0])
    roots = plain[1].sqrt()
    torch.testing.assert_close(cooled[1], roots / roots.sum(dim=0))
    assert cooled[2] < plain[2]


def test_the_files_confidence_is_held_against_its_own_mask() -> None:
    """A pixel at the border of two classes that goes to the other one is no fault; a confidence that is off is."""
    foreground = np.array([[0.9, 0.5 + 1e-7, 0.1]], np.float32)
    probabilities = np.stack([1 - foreground, foreground])
    ours = Answer(np.array([[1, 1, 0]], np.uint8), probabilities, 0.7)
    theirs = Answer(np.array([[1, 0, 0]], np.uint8), probabilities, 0.9)
    assert doubt_difference(ours, theirs) < 1e-6
    assert doubt_difference(ours, theirs._replace(confidence=0.8)) == pytest.approx(0.1)


def test_of_a_cut_image_the_tiles_are_taken_together() -> None:
    """An answer averages its tiles; limits of single ones would never be reached."""
    image_of = np.array([0, 0, 1, 1])
    found = doubt.of_images(np.array([0.9, 0.5, 0.6, 0.8]), np.array([30, 10, 0, 0]), image_of)
    assert found.tolist() == pytest.approx([0.8, 0.7]), "by the pixels found; over all where none was"
    seen = doubt.Seen(np.array([0, 2]), ("a", "b"), found, None, image_of)
    assert seen.means(np.array([1.0, 3.0, 5.0, 6.0])).tolist() == [2.0, 5.5]
