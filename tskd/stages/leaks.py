"""Leaks: what was learned from must not be what is tested, across data sets and models."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tskd.data.prepared import ONE_TONE, Prepared, content_of
from tskd.errors import UserError

OF_A_SPLIT = "Take other images than are tested ({key}), or state which cases are the test's in the data set itself."
"""The remedy where one folder is learned from and tested, in parts that are drawn apart from each other."""


def refuse_seen_cases(seen: Iterable[str], prepared: Prepared, *, what: str, remedy: str) -> None:
    """Raise UserError where a test case was, or would be, learned from; ``remedy``: a sentence."""
    if shared := sorted(set(seen) & prepared.cases("test")):
        raise UserError(
            f"{what} has seen {len(shared)} test cases (first: {', '.join(shared[:3])}); scores would be too good. "
            f"{remedy}"
        )


def refuse_seen_images(prepared: Prepared, tested: Prepared, *, trained: str, testing: str) -> None:
    """Raise UserError where a test image of another data set is a training image under another name, pixel by pixel.

    Images of one tone do not count: every volume may begin with an empty slice.
    """
    if shared := seen_images(prepared, tested):
        raise UserError(
            f"{testing}: {shared} test images are training images of {trained} as well; scores "
            "would be too good. Take the copies out of one of the two, or set data.allow_duplicates=true."
        )


def seen_images(prepared: Prepared, tested: Prepared) -> int:
    """Return how many test images of a data set are, pixel by pixel, images that another trains on."""
    seen = _contents(prepared, prepared.rows("train", "val", "unlabelled"))
    return len(_contents(tested, tested.rows("test")) & seen)


def _contents(prepared: Prepared, rows: np.ndarray) -> set[str]:
    """Return the digests of the rows' images, of tiles those of the whole images that they were cut from."""
    known = (prepared.records[row].content or content_of(prepared.images[row]) for row in rows)
    return {digest for digest in known if digest != ONE_TONE}


def refuse_other_classes(prepared: Prepared, tested: Prepared) -> None:
    """Raise UserError where a data set to be tested on has other classes than the one trained on."""
    if prepared.classes != tested.classes:
        raise UserError(
            f"evaluate.data has the classes {', '.join(tested.classes)}, training has {', '.join(prepared.classes)}: "
            "they must be the same, in one order. Name them with evaluate.data.classes, or take another data set."
        )
