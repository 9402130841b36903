"""Labels from which nothing can be learned or scored are told, and good ones are not suspected."""

from __future__ import annotations

import pytest

from tskd.data.label_sense import doubts

NAMES = ("liver", "spleen")


def found(*masks: set[int]) -> dict[str, frozenset[int]]:
    return {f"p{number}": frozenset(values) for number, values in enumerate(masks)}


@pytest.mark.parametrize(
    ("masks", "severity", "said"),
    [
        (({0}, {0}), "error", "no mask of 2 holds any foreground"),
        (({1}, {1}), "error", "every labelled pixel of all 2 masks is liver"),
        (({0, 1}, {0, 1}), "warning", "no mask holds the class spleen"),
    ],
)
def test_masks_that_say_nothing(masks: tuple[set[int], ...], severity: str, said: str) -> None:
    (doubt,) = doubts(found(*masks), NAMES)
    assert doubt.severity == severity
    assert said in doubt.message
    assert doubt.remedy


@pytest.mark.parametrize("masks", [(), ({0, 1, 2},), ({0}, {0, 1}, {2}), ({1, 2}, {1, 2}), ({0}, {1}, {2})])
def test_good_labels_are_not_suspected(masks: tuple[set[int], ...]) -> None:
    """Single empty or full masks are nothing odd, nor is a set without background."""
    assert list(doubts(found(*masks), NAMES)) == []


SIDES = {"p0": "train", "p1": "train", "p2": "val", "p3": "test"}


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        (({0, 1}, {0, 2}, {0, 1}, {1, 2}), []),
        (({0, 1}, {0, 2}, {0}, {1, 2}), [("warning", "nothing to find in the validation images")]),
        (({0, 1}, {0, 1}, {0, 2}, {0, 1, 2}), [("warning", "no training image holds the class spleen")]),
        (({0, 1, 2}, {0}, {0, 2}, {0, 1}), [("warning", "nothing to find of the class spleen in the test images")]),
        (({0, 1, 2}, {0}, {0}, {0}), [("warning", "nothing to find in the validation images"),
                                      ("warning", "nothing to find in the test images")]),
        (({0}, {0}, {0, 1}, {2}), [("error", "no training image holds any foreground"),
                                   ("warning", "nothing to find of the class liver")]),
    ],
)  # fmt: skip
def test_what_one_part_lacks_is_told(masks: tuple[set[int], ...], expected: list[tuple[str, str]]) -> None:
    told = list(doubts(found(*masks), NAMES, SIDES))
    assert [doubt.severity for doubt in told] == [severity for severity, _ in expected]
    assert all(said in doubt.message for doubt, (_, said) in zip(told, expected, strict=True))


def test_without_a_test_part_nothing_is_said_of_it() -> None:
    assert list(doubts(found({0, 1, 2}, {0}), NAMES, {"p0": "train", "p1": "train"})) == []
