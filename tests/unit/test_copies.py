from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from tskd.data.phantoms import draw_phantom
from tskd.metrics.copies import DUPLICATE, distance_to_nearest, find_copies

SIZE = 64
REFERENCES, HELD_OUT = 90, 60


@cache
def draw(family: str, count: int) -> tuple[np.ndarray, list[str]]:
    phantoms = [draw_phantom(family, number, size=SIZE, seed=5) for number in range(count)]
    return np.stack([phantom.image for phantom in phantoms]), [phantom.case for phantom in phantoms]


def shifted(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return ndimage.shift(images, (0, rows, columns, 0), order=0, mode="nearest")


def brightened(images: np.ndarray) -> np.ndarray:
    return np.clip(images * 1.15 + 15.0, 0, 255).astype(np.uint8)


def noisy(images: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 4, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


PLANTED = {
    "exact": lambda images: images,
    "flipped left to right": lambda images: images[:, :, ::-1],
    "flipped upside down": lambda images: images[:, ::-1],
    "shifted by 3 px": lambda images: shifted(images, 3, -3),
    "brightened": brightened,
    "noise on it": noisy,
    "flipped, shifted and brightened": lambda images: brightened(shifted(images[:, :, ::-1], -3, 2)),
}


@pytest.mark.parametrize(
    "family",
    [
        "kidney_us",
        "oral_ulcer",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("abdomen", "dermoscopy", "fundus")),
    ],
)
def test_planted_copies_are_caught_and_new_cases_are_not(family: str) -> None:
    images, cases = draw(family, REFERENCES + HELD_OUT)
    references, reference_cases = images[:REFERENCES], cases[:REFERENCES]
    new = images[REFERENCES:][[case not in reference_cases for case in cases[REFERENCES:]]]
    copied = np.arange(0, REFERENCES, 3)
    candidates = np.concatenate([new, *(plant(references[copied]) for plant in PLANTED.values())])
    report = find_copies(candidates, references, reference_cases)
    assert report.is_copy[: len(new)].mean() < 0.02
    planted = report.is_copy[len(new) :].reshape(len(PLANTED), -1).mean(axis=1)
    assert planted.mean() >= 0.95, dict(zip(PLANTED, planted, strict=True))
    caught = report.is_copy[len(new) :]
    sources = np.tile(copied, len(PLANTED))
    assert (report.nearest[len(new) :][caught] == sources[caught]).mean() >= 0.95, "shown beside the wrong source"


def test_duplicates_under_two_case_names_do_not_blunt_the_threshold() -> None:
    images, cases = draw("kidney_us", REFERENCES)
    doubled = np.concatenate([images, images[:60]])
    names = cases + [f"again {number}" for number in range(60)]
    report = find_copies(brightened(images[:20]), doubled, names)
    assert (report.reference_distance < DUPLICATE).sum() >= 120
    assert report.threshold > 0
    assert report.is_copy.mean() >= 0.9


def test_images_of_the_same_case_do_not_set_the_threshold() -> None:
    """Slices of one volume are alike: only distances between cases say how different a new image is."""
    images, _ = draw("kidney_us", 40)
    pairs = np.concatenate([images, noisy(images)])
    cases = [str(number) for number in range(40)] * 2
    assert find_copies(images[:1], pairs, cases).reference_distance.min() > DUPLICATE


def test_answer_does_not_depend_on_chunks_or_size() -> None:
    references, cases = draw("abdomen", 40)
    candidates = np.concatenate([references, references[:, ::-1]])
    together = find_copies(candidates, references, cases)
    alone = [find_copies(candidates[k : k + 1], references, cases).distance[0] for k in (0, 39, 79)]
    np.testing.assert_allclose(together.distance[[0, 39, 79]], alone, atol=1e-5)
    large = find_copies(
        candidates.repeat(2, axis=1).repeat(2, axis=2), references.repeat(2, axis=1).repeat(2, axis=2), cases
    )
    assert large.is_copy.all()


def test_blank_images_are_no_copies() -> None:
    references, cases = draw("abdomen", 30)
    report = find_copies(np.full((2, SIZE, SIZE, 3), 128, np.uint8), references, cases)
    assert not report.is_copy.any()


def test_what_cannot_be_compared_is_refused() -> None:
    references, cases = draw("abdomen", 6)
    with pytest.raises(ValueError, match="sizes must be equal"):
        find_copies(references[:, :32, :32], references, cases)
    with pytest.raises(ValueError, match="two cases"):
        find_copies(references, references, ["one"] * 6)
    with pytest.raises(ValueError, match="duplicate"):
        find_copies(references, np.stack([references[0]] * 4), ["a", "b", "c", "d"])


def test_a_single_reference_is_enough_to_be_near_to() -> None:
    """Images of one case have no threshold of their own; a copy of one of them is to be told all the same."""
    images, _ = draw("kidney_us", REFERENCES + HELD_OUT)
    candidates = np.stack([brightened(images[0][:, ::-1]), images[-1]])
    near, far = distance_to_nearest(candidates, images[:1])
    assert near < 0.03 < 0.1 < far
    with pytest.raises(ValueError, match="sizes must be equal"):
        distance_to_nearest(candidates[:, :32], images[:1])
