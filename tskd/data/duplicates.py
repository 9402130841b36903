"""The same picture twice: exact by pixel digest, near by perceptual hash. Across splits it is leakage."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from PIL import Image, ImageStat

from tskd.types import Record

NEAR_DISTANCE = 6
"""Bits of 64 that two perceptual hashes may differ in and still be called near duplicates.

Measured over the pairs of different cases: 209 in BUSI (780 images; the 14 least alike were looked at, each the same
scan moved or annotated), 0 in HC18 (373), 1 in DSB2018 (664, true), 2 in ACDC (958; false: hearts of two patients). At
8 BUSI gains 9 pairs and ACDC 20 false ones; at 12 HC18 has 13 false ones.
"""
FINE_DISTANCE = 58
"""Bits of 256 that two fine hashes of near duplicates may differ in.

Photographs that are all framed alike, such as a fundus in its round field, share their eight slowest waves: of 43
pairs of different cases among 600 drawn fundi, none of which is true, this leaves 5, and each of BUSI's 208, which
differ in at most 58.
"""

_FLAT_DEVIATION = 1.0  # grey levels; below it a picture is one tone, and its hash is rounding noise that matches others
_REDUCED_SIDE = (
    128  # pixels; averaging down to it first makes the hash several times cheaper and moves it by a bit or so
)
_HASHED_SIDE = 32
_COARSE, _FINE = 8, 16  # waves a side
_WAVES = np.cos(np.pi / _HASHED_SIDE * np.outer(np.arange(_FINE), np.arange(_HASHED_SIDE) + 0.5))
"""(16, 32): the slowest of a cosine transform (DCT-II), so that two products are what the hashes need of it."""
_BLOCK = 256  # rows of the distance table held at once: 5,000 images need 10 MB instead of 200


@dataclass(frozen=True)
class ImageFingerprint:
    """What is kept of an image to recognise it."""

    pixel_digest: str
    """SHA-256 of shape and pixels."""
    phash: int | None
    """64-bit perceptual hash; None: the image is one tone."""
    fine: int = 0
    """256-bit perceptual hash, which tells images apart that are only laid out alike."""


@dataclass(frozen=True)
class DuplicatePair:
    """Two records that show the same picture, ``first < second``."""

    first: str
    second: str
    distance: int
    """Bits in which the perceptual hashes differ; 0 where exact."""
    exact: bool


def fingerprint_image(image: np.ndarray) -> ImageFingerprint:
    """Return the fingerprint of an image, (H, W, 3) uint8.

    A perceptual hash is the sign of the 8x8 (fine: 16x16) lowest DCT coefficients against their median, as
    ``imagehash.phash`` has it, which the tests compare with.
    """
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    grey = Image.fromarray(image).convert("L")
    if ImageStat.Stat(grey).stddev[0] < _FLAT_DEVIATION:
        return ImageFingerprint(digest.hexdigest(), None)
    shrink = max(min(grey.size) // _REDUCED_SIDE, 1)
    small = np.asarray(grey.reduce(shrink).resize((_HASHED_SIDE, _HASHED_SIDE), Image.Resampling.LANCZOS), np.float64)
    lowest = _WAVES @ small @ _WAVES.T
    return ImageFingerprint(digest.hexdigest(), _signs(lowest[:_COARSE, :_COARSE]), _signs(lowest))


def _signs(waves: np.ndarray) -> int:
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")


def find_pairs(
    fingerprints: Mapping[str, ImageFingerprint],
    *,
    max_distance: int = NEAR_DISTANCE,
    groups: Mapping[str, str] | None = None,
) -> list[DuplicatePair]:
    """Return the duplicates among the images, sorted.

    With ``groups`` (id -> case, or id -> side of the split) only those across groups; images in no group are left out.
    Of n identical images the first is paired with each other one, so n - 1 pairs name them all. Images of one tone are
    no duplicates of each other: a blank slice says nothing about the patient.
    """
    named = fingerprints.keys() if groups is None else fingerprints.keys() & groups.keys()
    textured = {id_: fingerprints[id_] for id_ in sorted(named) if fingerprints[id_].phash is not None}
    twins = {(pair.first, pair.second): pair for pair in _exact_pairs(textured)}
    first_twin = {pair.second: pair.first for pair in twins.values()}
    distinct = {id_: one for id_, one in textured.items() if id_ not in first_twin}
    pairs = [*twins.values(), *_near_pairs(distinct, max_distance)]
    kept = pairs if groups is None else [pair for pair in pairs if groups[pair.first] != groups[pair.second]]
    return sorted(kept, key=lambda pair: (pair.distance, not pair.exact, pair.first, pair.second))


def settle_duplicates(records: Sequence[Record], pairs: Sequence[DuplicatePair]) -> tuple[Record, ...]:
    """Return the records with images that show the same in one case, so that no drawn split parts them.

    Identical images are joined always; nearly identical ones where the data set names no cases (every image is its
    own): there they are the only trace of a patient scanned twice.
    """
    caseless = all(record.case == record.id for record in records)
    return join_duplicates(records, [pair for pair in pairs if pair.exact or caseless])


def join_duplicates(records: Sequence[Record], pairs: Sequence[DuplicatePair]) -> tuple[Record, ...]:
    """Return the records with the cases of every pair made one, so that no split drawn from them parts a pair.

    An image without a split joins the part of its twin. Pairs that the data set itself puts into different splits stay
    apart: that is leakage to report.
    """
    by_id = {record.id: record for record in records}
    parent = {record.case: record.case for record in records}
    stated: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.split is not None:
            stated[record.case].add(record.split)
    for pair in pairs:
        first, second = by_id[pair.first], by_id[pair.second]
        kept, gone = sorted((_root(parent, first.case), _root(parent, second.case)))
        parts = stated[kept] | stated[gone]
        if first.split == second.split or len(parts) < 2:
            parent[gone], stated[kept] = kept, parts
    return tuple(replace(record, case=_root(parent, record.case)) for record in records)


def _root(parent: Mapping[str, str], case: str) -> str:
    while parent[case] != case:
        case = parent[case]
    return case


def _exact_pairs(fingerprints: Mapping[str, ImageFingerprint]) -> Iterator[DuplicatePair]:
    def digest(id_: str) -> str:
        return fingerprints[id_].pixel_digest

    for _, same in groupby(sorted(fingerprints, key=digest), key=digest):
        first, *others = same
        yield from (DuplicatePair(first, other, 0, exact=True) for other in others)


def _near_pairs(fingerprints: Mapping[str, ImageFingerprint], max_distance: int) -> Iterator[DuplicatePair]:
    ids = list(fingerprints)
    hashes = np.array([one.phash for one in fingerprints.values()], dtype=np.uint64)
    fine = [one.fine for one in fingerprints.values()]
    for start in range(0, len(ids), _BLOCK):
        block = hashes[start : start + _BLOCK, None]
        distance = np.bitwise_count(block ^ hashes[None, start:])
        rows, columns = np.nonzero(distance <= max_distance)
        for row, column in zip(rows[columns > rows].tolist(), columns[columns > rows].tolist()):
            if (fine[start + row] ^ fine[start + column]).bit_count() <= FINE_DISTANCE:
                yield DuplicatePair(ids[start + row], ids[start + column], int(distance[row, column]), exact=False)
