"""Duplicates: found whatever the file looks like, not invented between blank or unlike images."""

from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageFilter

from tskd.data.duplicates import (
    FINE_DISTANCE,
    NEAR_DISTANCE,
    DuplicatePair,
    ImageFingerprint,
    find_pairs,
    fingerprint_image,
    join_duplicates,
    settle_duplicates,
)
from tskd.types import Record

BUSI = Path(__file__).parents[3] / "shared" / "data" / "busi" / "images"


def draw_scene(seed: int, size: tuple[int, int] = (120, 160)) -> np.ndarray:
    """A smooth random picture, (H, W, 3) uint8."""
    noise = np.random.default_rng(seed).integers(0, 255, (12, 16), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC).convert("RGB"))


def pairs_of(*images: np.ndarray, **options) -> list[DuplicatePair]:
    return find_pairs({chr(97 + index): fingerprint_image(image) for index, image in enumerate(images)}, **options)


def test_identical_pixels_are_exact():
    assert pairs_of(draw_scene(0), draw_scene(1), draw_scene(0)) == [DuplicatePair("a", "c", 0, exact=True)]


def test_the_same_bytes_in_another_shape_are_not_exact():
    image = draw_scene(0)
    assert fingerprint_image(image).pixel_digest != fingerprint_image(image.reshape(160, 120, 3)).pixel_digest


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((80, 60)),
        lambda image: image.filter(ImageFilter.GaussianBlur(1)),
        lambda image: image.point(lambda value: value * 0.8 + 10),
    ],
    ids=["smaller", "blurred", "darker"],
)
def test_a_changed_copy_is_near(change):
    scene = draw_scene(0)
    (pair,) = pairs_of(scene, np.asarray(change(Image.fromarray(scene))), draw_scene(1))
    assert (pair.first, pair.second, pair.exact) == ("a", "b", False)
    assert pair.distance <= NEAR_DISTANCE


def test_blank_images_are_no_duplicates_of_each_other():
    blank = np.full((40, 40, 3), 7, np.uint8)
    almost = blank.copy()
    almost[0, 0] = 9
    assert pairs_of(blank, blank, almost) == []


def test_images_that_are_only_laid_out_alike_are_no_duplicates():
    """Photographs of one kind, all framed alike, share their slowest waves; without this a thousand become one case."""
    fine = {"a": 0, "b": (1 << FINE_DISTANCE) - 1, "c": ((1 << 30) - 1) << 200}
    found = find_pairs({name: ImageFingerprint(name, 5, bits) for name, bits in fine.items()})
    assert [(pair.first, pair.second) for pair in found] == [("a", "b"), ("a", "c")]


def test_pairs_within_one_group_and_outside_all_groups_are_left_out():
    scene = draw_scene(0)
    found = pairs_of(scene, scene, scene, scene, groups={"b": "train", "c": "train", "d": "test"})
    assert [(pair.first, pair.second) for pair in found] == [("b", "d")]


def test_distances_agree_with_comparing_every_pair():
    """More images than one block of the distance table, against a plain loop."""
    generator = np.random.default_rng(0)
    centres = generator.integers(0, 2**63, 60)
    hashes = {f"{index:04d}": int(centres[index % 60]) ^ (1 << int(generator.integers(63))) for index in range(600)}
    fingerprints = {id_: ImageFingerprint(id_, phash) for id_, phash in hashes.items()}
    expected = {
        (first, second): (hashes[first] ^ hashes[second]).bit_count()
        for first, second in combinations(hashes, 2)
        if (hashes[first] ^ hashes[second]).bit_count() <= 2
    }
    found = find_pairs(fingerprints, max_distance=2)
    assert {(pair.first, pair.second): pair.distance for pair in found} == expected
    assert [pair.distance for pair in found] == sorted(expected.values())


@pytest.mark.slow
def test_five_thousand_images_are_compared_quickly():
    hashes = np.random.default_rng(0).integers(0, 2**63, 5000)
    fingerprints = {str(index): ImageFingerprint(str(index), int(phash)) for index, phash in enumerate(hashes)}
    start = time.process_time()
    find_pairs(fingerprints)
    assert time.process_time() - start < 5  # 0.2 s measured; a loop over pairs takes minutes


def test_joined_cases_hold_every_pair_together():
    records = [Record(name, f"case-{name}", Path(name)) for name in "abcd"]
    pairs = [DuplicatePair("b", "c", 0, exact=True), DuplicatePair("a", "c", 2, exact=False)]
    assert [record.case for record in join_duplicates(records, pairs)] == ["case-a", "case-a", "case-a", "case-d"]


def test_a_pair_that_the_data_set_parts_stays_apart():
    records = [Record("a", "a", Path("a"), split="train"), Record("b", "b", Path("b"), split="test")]
    assert join_duplicates(records, [DuplicatePair("a", "b", 0, exact=True)]) == tuple(records)


def test_an_image_without_a_split_joins_its_twin_and_parts_nothing_that_is_stated():
    splits = {"a": "test", "b": None, "c": "train", "d": None}
    records = [Record(name, name, Path(name), split=split) for name, split in splits.items()]
    pairs = [DuplicatePair("a", "b", 0, exact=True), DuplicatePair("b", "c", 0, exact=True)]
    assert [record.case for record in join_duplicates(records, pairs)] == ["a", "a", "c", "d"]


@pytest.mark.parametrize(("cases", "settled"), [("abcd", "aacc"), ("pqrs", "pprs")])
def test_near_duplicates_are_joined_where_the_data_set_names_no_cases_and_identical_ones_always(
    cases: str, settled: str
):
    records = [Record(name, case, Path(name)) for name, case in zip("abcd", cases)]
    pairs = [DuplicatePair("a", "b", 0, exact=True), DuplicatePair("c", "d", 3, exact=False)]
    assert [record.case for record in settle_duplicates(records, pairs)] == list(settled)


@pytest.mark.skipif(not BUSI.is_dir(), reason="the local data sets are not here")
def test_known_duplicates_of_busi():
    names = ("benign_433", "malignant_145", "benign_001", "benign_318", "normal_001")
    images = {name: np.asarray(Image.open(BUSI / f"{name}.jpg").convert("RGB")) for name in names}
    found = find_pairs({name: fingerprint_image(image) for name, image in images.items()})
    assert [(pair.first, pair.second, pair.exact) for pair in found] == [
        ("benign_433", "malignant_145", True),
        ("benign_001", "benign_318", False),
    ]


@pytest.mark.parametrize("seed", range(8))
def test_the_perceptual_hash_is_the_one_of_imagehash(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rough = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    picture = rough.resize((int(draw.integers(40, 120)), 90), Image.Resampling.BICUBIC)
    bits = np.packbits(imagehash.phash(picture.convert("L")).hash)
    fine = np.packbits(imagehash.phash(picture.convert("L"), hash_size=16, highfreq_factor=2).hash)
    found = fingerprint_image(np.asarray(picture))
    assert (found.phash, found.fine) == tuple(int.from_bytes(one.tobytes(), "big") for one in (bits, fine))
