"""Labels that say nothing: files that can be read, and from which nothing can be learned or scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

LOOK = (
    "Look at the masks: the label may be in another channel or file, or its values mapped to the background "
    "(`labels` in dataset.yaml)."
)


class Doubt(NamedTuple):
    """What speaks against the labels of a whole data set."""

    message: str
    remedy: str
    severity: Literal["error", "warning"]

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


def doubts(
    found: Mapping[str, frozenset[int]], names: Sequence[str], sides: Mapping[str, str] | None = None
) -> Iterator[Doubt]:
    """Yield what speaks against the labels.

    ``found`` is the id of each labelled image and the class indices in its mask, background (0) included; ``names`` are
    the foreground classes 1..K; ``sides`` says which id is in ``train``, ``val`` or ``test``, where that is known.
    """
    present = frozenset().union(*found.values()) if found else frozenset()
    if not present:
        return
    if present == {0}:
        yield Doubt(f"no mask of {len(found)} holds any foreground: there is nothing to learn.", LOOK, "error")
        return
    if len(present) == 1:
        (only,) = present
        message = (
            f"every labelled pixel of all {len(found)} masks is {_name(only, names)}: there is nothing to tell apart."
        )
        yield Doubt(message, LOOK, "error")
        return
    absent = [index for index in range(1, len(names) + 1) if index not in present]
    if absent:
        yield Doubt(f"no mask holds {_named(absent, names)}.", "It cannot be learned: " + _REMEDY, "warning")
    if sides:
        yield from _doubts_of_sides(found, names, present - {0}, sides)


_REMEDY = "label it somewhere, or take it out of `classes`."


def _doubts_of_sides(
    found: Mapping[str, frozenset[int]], names: Sequence[str], present: frozenset[int], sides: Mapping[str, str]
) -> Iterator[Doubt]:
    trained, validated, tested = (
        _union(values for id_, values in found.items() if sides.get(id_) == side) for side in ("train", "val", "test")
    )
    if trained is not None and not trained & present:
        message = "no training image holds any foreground: there is nothing to learn."
        yield Doubt(message, "Label images of training cases that show some, or correct the split.", "error")
    elif trained is not None and (unseen := sorted(present - trained)):
        message = f"no training image holds {_named(unseen, names)}."
        yield Doubt(message, "It cannot be learned: label it in training cases, or correct the split.", "warning")
    if validated is not None and not validated & present:
        message = "nothing to find in the validation images: none of their masks holds any foreground."
        yield Doubt(message, "Which training step was best cannot be told; put cases that show some there.", "warning")
    if tested is not None and not tested & present:
        message = "nothing to find in the test images: none of their masks holds any foreground."
        yield Doubt(message, "No score can be told; put cases that show some into the test.", "warning")
    elif tested is not None and (untested := sorted(present - tested)):
        message = f"nothing to find of {_named(untested, names)} in the test images."
        yield Doubt(message, "No score of it can be told; put cases that show it into the test.", "warning")


def _union(sets: Iterable[frozenset[int]]) -> frozenset[int] | None:
    sets = list(sets)
    return frozenset().union(*sets) if sets else None


def _named(indices: Sequence[int], names: Sequence[str]) -> str:
    one = len(indices) == 1
    return f"{'the class' if one else 'the classes'} {', '.join(_name(index, names) for index in indices)}"


def _name(index: int, names: Sequence[str]) -> str:
    return "background" if index == 0 else names[index - 1] if index <= len(names) else str(index)
