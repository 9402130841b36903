"""Which records train, validate and test: split by case, stratified, with label budgets that are nested."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Literal

import numpy as np

from tskd.errors import UserError
from tskd.seeding import numpy_generator
from tskd.types import Record

_EMPTY = 0
"""The stratum of empty masks; foreground classes start at 1."""


@dataclass(frozen=True)
class Split:
    """The record ids of each part, sorted; the parts are disjoint and no case lies in two of training, val and test."""

    train: tuple[str, ...]
    """Labelled, used for gradients."""
    val: tuple[str, ...]
    """Labelled, used for selection: a part of the label budget."""
    unlabelled: tuple[str, ...]
    """The remaining training records, those whose label the budget hides included."""
    test: tuple[str, ...]
    """Labelled, used for scores only; independent of the label budget."""

    def sides(self) -> dict[str, str]:
        """Return ``id -> "train" | "val" | "test"``; unlabelled records are on the training side."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {id_: side for side, ids in named.items() for id_ in ids} | dict.fromkeys(self.unlabelled, "train")


@dataclass(frozen=True)
class _Case:
    name: str
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    strata: frozenset[int]
    """Classes present in its masks, and ``_EMPTY`` where one of them is empty."""
    official: str | None


@dataclass(frozen=True)
class _Budgeted:
    """A labelled training case in the order in which budgets take it."""

    case: _Case
    side: Literal["train", "val"]


def make_split(
    records: Sequence[Record],
    *,
    presence: Mapping[str, frozenset[int]],
    labels: int | None = None,
    label_cases: int | None = None,
    seed: int = 0,
    budget_seed: int | None = None,
    val_share: float = 0.2,
    test_share: float = 0.25,
) -> Split:
    """Split the records by case and hide the labels that exceed the budget.

    ``presence`` maps the id of every labelled record to the classes in its mask. ``labels`` counts labelled images,
    ``label_cases`` labelled cases, validation included; None takes all. For one seed a smaller budget is a subset of
    a larger one, in ``train`` and in ``val``, and ``test`` does not depend on it. Another ``budget_seed`` (None: as
    ``seed``) draws other labels for the same test. With a ``val_share`` of 0 all labels train, but for those of cases
    that the data set itself keeps for validation: these are left out.

    A split stated by the data set holds; where it names no labelled test case, ``test_share`` of the labelled
    training cases is held out, and of cases without a stated split in any case. Officially ``val`` and ``test`` cases
    never train, so what has no label there, or lies beyond the budget, is left out; so is what has no label in a
    case that validates.

    Raises UserError if the data or the budget leaves one of train, val (unless its share is 0) and test without a case.
    """
    _require_shares(val_share, test_share)
    cases = _group_cases(records, presence)
    test = _choose_test(cases, test_share, seed)
    tested = {case.name for case in test}
    eligible = [case for case in cases if case.labelled and case.name not in tested]
    order = _budget_order(eligible, val_share, seed if budget_seed is None else budget_seed)
    _require_cases(order, test, {"train", "val"} if val_share else {"train"})
    chosen = _choose_labelled(order, labels=labels, label_cases=label_cases)
    train = {id_ for item in order if item.side == "train" for id_ in item.case.labelled if id_ in chosen}
    val = chosen - train
    validating = {item.case.name for item in order if item.side == "val" and not val.isdisjoint(item.case.labelled)}
    training = [case for case in cases if case.official in (None, "train") and case.name not in tested | validating]
    seen = {id_ for case in training for id_ in case.labelled + case.unlabelled}
    held_out = (id_ for case in test for id_ in case.labelled)
    return Split(_sorted(train), _sorted(val), _sorted(seen - train), _sorted(held_out))


def save_split(split: Split, path: Path) -> None:
    """Write the split as JSON, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    text = json.dumps(asdict(split), indent=1, ensure_ascii=False) + "\n"
    partial.write_text(text, encoding="utf-8", errors="surrogateescape")  # a name of a file need not be UTF-8
    partial.replace(path)


def _sorted(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(ids))


def _group_cases(records: Sequence[Record], presence: Mapping[str, frozenset[int]]) -> list[_Case]:
    """Return the cases sorted by name, so that nothing depends on the order of the files."""
    members: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        members[record.case].append(record)
    return [_build_case(name, members[name], presence) for name in sorted(members)]


def _build_case(name: str, records: Sequence[Record], presence: Mapping[str, frozenset[int]]) -> _Case:
    labelled = _sorted(record.id for record in records if record.id in presence)
    stated = sorted({record.split for record in records if record.split is not None})
    if len(stated) > 1:
        raise UserError(
            f"The case {name} has images in {' and '.join(stated)}: a case (patient or volume) must lie in one part. "
            "Correct the split that the data set states, or the case names."
        )
    return _Case(
        name=name,
        labelled=labelled,
        unlabelled=_sorted(record.id for record in records if record.id not in presence),
        strata=frozenset().union(*(presence[id_] or {_EMPTY} for id_ in labelled)),
        official=stated[0] if stated else None,
    )


def _choose_test(cases: Sequence[_Case], share: float, seed: int) -> list[_Case]:
    labelled = [case for case in cases if case.labelled]
    official = [case for case in labelled if case.official == "test"]
    eligible = (None,) if official else (None, "train")
    pool = [case for case in labelled if case.official in eligible]
    count = max(round(share * len(pool)), 0 if official else 1)
    return official + _stratified_order(pool, seed, "test")[:count]


def _stratified_order(cases: Sequence[_Case], seed: int, purpose: str) -> list[_Case]:
    """Return a random order in which every prefix has nearly the class frequencies of the whole.

    Greedy: the next case is the one that brings the prefix nearest to them (chi-squared distance of counts, so that a
    rare class weighs as much as a common one). Presence, not area, is counted, else typical cases would come first.
    """
    generator = numpy_generator(seed, "split", purpose)
    alike: dict[frozenset[int], deque[tuple[int, _Case]]] = defaultdict(deque)
    for place, index in enumerate(generator.permutation(len(cases))):
        alike[cases[index].strata].append((place, cases[index]))
    kinds = sorted(alike, key=sorted)
    strata = sorted(frozenset().union(*kinds))
    present = np.array([[stratum in kind for stratum in strata] for kind in kinds], dtype=float)
    frequency = np.array([sum(stratum in case.strata for case in cases) for stratum in strata]) / max(len(cases), 1)
    order: list[_Case] = []
    total = np.zeros(len(strata))
    while len(order) < len(cases):
        distance = ((total + present - (len(order) + 1) * frequency) ** 2 / frequency).sum(axis=1).round(9)
        queues = [(distance[row], alike[kind][0][0], row) for row, kind in enumerate(kinds) if alike[kind]]
        _, _, best = min(queues)  # of equally near cases the first of the shuffle; rounding keeps ties ties
        total += present[best]
        order.append(alike[kinds[best]].popleft()[1])
    return order


def _budget_order(cases: Sequence[_Case], val_share: float, seed: int) -> list[_Budgeted]:
    """Return the training side's labelled cases, each with its side, in the order in which budgets take them."""
    eligible = [case for case in cases if case.official != "test"]
    official_val = [case for case in eligible if case.official == "val"]
    training = [case for case in eligible if case.official != "val"]
    if not official_val or not val_share:
        order = _stratified_order(training, seed, "labels")
        return [_Budgeted(case, _turn(place, val_share)) for place, case in enumerate(order)]
    queues = {
        "train": _stratified_order(training, seed, "labels"),
        "val": _stratified_order(official_val, seed, "official val"),
    }
    return [_take(queues, _turn(place, val_share)) for place in range(len(eligible))]


def _turn(place: int, val_share: float) -> Literal["train", "val"]:
    """Return the side of the case at this place: the second validates, then as many as the share asks for."""
    return "val" if _val_quota(place + 1, val_share) > _val_quota(place, val_share) else "train"


def _val_quota(count: int, val_share: float) -> int:
    return 0 if count < 2 or not val_share else min(max(round(count * val_share), 1), count - 1)


def _take(queues: Mapping[str, list[_Case]], side: Literal["train", "val"]) -> _Budgeted:
    if not queues[side]:
        side = "train" if side == "val" else "val"
    return _Budgeted(queues[side].pop(0), side)


def _choose_labelled(order: Sequence[_Budgeted], *, labels: int | None, label_cases: int | None) -> set[str]:
    """Return the ids whose label the budget shows: a prefix of one fixed order, which is what nests budgets."""
    if labels is not None and label_cases is not None:
        raise UserError(f"labels={labels} and label_cases={label_cases} are both given: state one of them.")
    if label_cases is not None:
        _require_budget("label_cases", label_cases, len(order))
        return {id_ for item in order[:label_cases] for id_ in item.case.labelled}
    ids = _image_order(order)
    if labels is not None:
        _require_budget("labels", labels, len(ids))
    return set(ids[:labels])


def _image_order(order: Sequence[_Budgeted]) -> list[str]:
    """Return labelled ids case by case; the first train and the first val case take turns.

    Otherwise a budget below the size of the first case (a volume) would leave nothing to validate on.
    """
    firsts = [item for side in ("train", "val") if (item := next((one for one in order if one.side == side), None))]
    turns = zip_longest(*(item.case.labelled for item in firsts))
    rest = (item.case.labelled for item in order if not any(item is first for first in firsts))
    return [id_ for id_ in chain(chain.from_iterable(turns), chain.from_iterable(rest)) if id_ is not None]


def _require_shares(val_share: float, test_share: float) -> None:
    if not 0 <= val_share < 1:
        raise UserError(f"val_share={val_share} is not a share: 0 or a number below 1 is needed, for example 0.2.")
    if not 0 < test_share < 1:
        raise UserError(f"test_share={test_share} is not a share: a number between 0 and 1 is needed, for example 0.2.")


def _require_cases(order: Sequence[_Budgeted], test: Sequence[_Case], wanted: set[str]) -> None:
    if wanted <= {item.side for item in order} and test:
        return
    if not order and not test:
        raise UserError(
            "No image has a mask. Label some, or put their masks where the layout has them, named as it says."
        )
    raise UserError(
        f"Too few labelled cases: {sum(item.side == 'train' for item in order)} are left to train, "
        f"{sum(item.side == 'val' for item in order)} to validate and {len(test)} to test, and each needs at least one "
        "(a case is a patient or a volume). Label images of more cases, or correct the split that the data set states."
    )


def _require_budget(name: str, asked: int, available: int) -> None:
    if 2 <= asked <= available:
        return
    unit = "images" if name == "labels" else "cases"
    raise UserError(
        f"data.{name}={asked} is out of range: the training side has {available} labelled {unit} (validation included, "
        f"test not). State 2 to {available}, or leave data.{name} out to use all."
    )
