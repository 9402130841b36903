"""Splits: cases stay whole, budgets are exact and nested, the data set's own split holds."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tskd.data.splits import Split, make_split, save_split
from tskd.errors import UserError
from tskd.types import Record

Presence = dict[str, frozenset[int]]


def build_records(cases: dict[str, list[frozenset[int] | None]], official: dict[str, str] | None = None):
    """One record a list entry; None is an image without label."""
    records, presence = [], {}
    for case, masks in cases.items():
        for index, classes in enumerate(masks):
            id_ = f"{case}/{index}"
            records.append(Record(id_, case, Path(id_), split=(official or {}).get(case)))
            if classes is not None:
                presence[id_] = classes
    return records, presence


def single_images(count: int, classes: frozenset[int] = frozenset({1})):
    return build_records({f"c{index:03d}": [classes] for index in range(count)})


masks = st.one_of(st.none(), st.frozensets(st.integers(1, 3), max_size=3))


@st.composite
def data_sets(draw):
    """Between five and twelve cases of one to five images, five cases at least with a label."""
    bodies = draw(st.lists(st.lists(masks, min_size=1, max_size=5), min_size=5, max_size=12))
    for body in bodies[:5]:
        body[0] = body[0] if body[0] is not None else frozenset({1})
    stated = draw(st.lists(st.sampled_from([None, None, "train", "val", "test"]), min_size=12, max_size=12))
    stated[0] = stated[1] = stated[2] = draw(st.sampled_from([None, "train"]))
    names = [f"case{index}" for index in range(len(bodies))]
    official = {name: side for name, side in zip(names, stated) if side}
    return build_records(dict(zip(names, bodies)), official)


def case_of(id_: str) -> str:
    return id_.split("/")[0]


@settings(max_examples=60, deadline=None)
@given(data_sets(), st.integers(0, 5), st.data())
def test_properties_of_every_split(data_set, seed: int, data):
    records, presence = data_set
    everything = make_split(records, presence=presence, seed=seed)
    available = len(everything.train) + len(everything.val)
    budgets = sorted(data.draw(st.lists(st.integers(2, available), min_size=2, max_size=3)))
    splits = [make_split(records, presence=presence, seed=seed, labels=labels) for labels in budgets]
    for split, labels in zip(splits, budgets):
        parts = [set(split.train), set(split.val), set(split.unlabelled), set(split.test)]
        assert len(set.union(*parts)) == sum(map(len, parts)), "a record is in two parts"
        assert len(split.train) + len(split.val) == labels
        assert all((split.train, split.val, split.test))
        assert {*split.train, *split.val, *split.test} <= presence.keys()
        sides = split.sides()
        for case in {record.case for record in records}:
            assert len({side for id_, side in sides.items() if case_of(id_) == case}) <= 1, "a case is cut"
        assert split.test == everything.test
    for small, large in pairwise([*splits, everything]):
        assert set(small.train) <= set(large.train)
        assert set(small.val) <= set(large.val)


@settings(max_examples=40, deadline=None)
@given(data_sets(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_records_and_a_second_call_change_nothing(data_set, seed: int, random):
    records, presence = data_set
    first = make_split(records, presence=presence, seed=seed, labels=2)
    random.shuffle(records)
    assert make_split(records, presence=presence, seed=seed, labels=2) == first


@settings(max_examples=40, deadline=None)
@given(data_sets(), st.integers(0, 5))
def test_the_stated_split_holds(data_set, seed: int):
    records, presence = data_set
    split = make_split(records, presence=presence, seed=seed)
    sides = split.sides()
    stated = {record.id: record.split for record in records if record.split}
    for id_, official in stated.items():
        if official == "val":
            assert sides.get(id_, "val") == "val"
        if official == "test":
            assert sides.get(id_, "test") == "test"
    labelled_val = {id_ for id_, official in stated.items() if official == "val" and id_ in presence}
    if labelled_val:
        assert set(split.val) == labelled_val
    if any(official == "test" and id_ in presence for id_, official in stated.items()):
        assert not [id_ for id_ in split.test if stated.get(id_) == "train"]


@settings(max_examples=40, deadline=None)
@given(data_sets(), st.integers(0, 5), st.integers(0, 5))
def test_another_draw_of_labels_leaves_the_test_alone(data_set, seed: int, draw: int):
    records, presence = data_set
    plain = make_split(records, presence=presence, seed=seed, labels=2)
    assert make_split(records, presence=presence, seed=seed, budget_seed=seed, labels=2) == plain
    drawn = [make_split(records, presence=presence, seed=seed, budget_seed=draw, labels=labels) for labels in (2, 3)]
    assert {split.test for split in drawn} == {plain.test}
    assert set(drawn[0].train) <= set(drawn[1].train)
    assert set(drawn[0].val) <= set(drawn[1].val)


def test_draws_of_labels_differ():
    records, presence = single_images(100)
    draws = {make_split(records, presence=presence, labels=10, budget_seed=seed).train for seed in range(5)}
    assert len(draws) == 5


@pytest.mark.parametrize("cases", [2, 3, 7])
def test_case_budget_is_exact_and_nested(cases: int):
    records, presence = build_records({f"c{index}": [frozenset({1})] * (index % 3 + 1) for index in range(12)})
    split = make_split(records, presence=presence, label_cases=cases)
    larger = make_split(records, presence=presence, label_cases=cases + 1)
    shown = {*split.train, *split.val}
    assert len({case_of(id_) for id_ in shown}) == cases
    assert shown == {record.id for record in records if record.case in map(case_of, shown)}, "a case is shown in part"
    assert set(split.train) <= set(larger.train)
    assert set(split.val) <= set(larger.val)


def test_a_budget_of_cases_takes_them_in_the_order_of_a_budget_of_images():
    records, presence = single_images(40)
    for count in (2, 7, 20):
        by_case, by_image = (
            make_split(records, presence=presence, **{key: count}) for key in ("label_cases", "labels")
        )
        assert by_case == by_image


def test_a_case_without_labels_is_learned_from():
    records, presence = build_records({**{f"c{n}": [frozenset({1})] for n in range(8)}, "unknown": [None, None]})
    assert {"unknown/0", "unknown/1"} <= set(make_split(records, presence=presence).unlabelled)


def test_surplus_of_a_training_case_stays_as_unlabelled_and_of_a_validating_case_is_left_out():
    records, presence = build_records({f"c{index}": [frozenset({1})] * 6 for index in range(4)})
    split = make_split(records, presence=presence, labels=4)
    assert len(split.train) == len(split.val) == 2, "the first two cases take turns"
    training, validating = case_of(split.train[0]), case_of(split.val[0])
    assert sum(case_of(id_) == training for id_ in split.unlabelled) == 4
    assert not [id_ for id_ in split.unlabelled if case_of(id_) == validating]


def test_strata_are_even_in_every_part():
    """A fifth of the masks is empty, a tenth holds the rare class: so it must be in test and in a small budget."""
    kinds = [frozenset(), frozenset(), *[frozenset({1})] * 7, frozenset({1, 2})]
    records, presence = build_records({f"c{index:03d}": [kinds[index % 10]] for index in range(200)})
    split = make_split(records, presence=presence, labels=40, seed=3)
    for part in (split.test, split.train + split.val):
        assert abs(sum(not presence[id_] for id_ in part) - 0.2 * len(part)) <= 1
        assert abs(sum(2 in presence[id_] for id_ in part) - 0.1 * len(part)) <= 1


def test_cases_with_an_empty_image_are_shared_out_too():
    """Beside an image of class 1 an empty one is no other class: it has to count by itself."""
    kinds = [[frozenset({1}), frozenset()], *[[frozenset({1})]] * 4]
    records, presence = build_records({f"c{index:03d}": kinds[index % 5] for index in range(100)})
    with_empty = {case_of(id_) for id_, classes in presence.items() if not classes}
    for seed in range(5):
        tested = {case_of(id_) for id_ in make_split(records, presence=presence, seed=seed).test}
        assert (len(tested), len(tested & with_empty)) == (25, 5)


def test_shares_and_seeds():
    records, presence = single_images(100)
    split = make_split(records, presence=presence, labels=50)
    assert (len(split.train), len(split.val), len(split.unlabelled), len(split.test)) == (40, 10, 25, 25)
    assert make_split(records, presence=presence, labels=50, seed=1).test != split.test


def test_a_data_set_that_states_only_train_gets_a_test_set():
    records, presence = build_records(
        {f"c{n}": [frozenset({1})] for n in range(8)}, {f"c{n}": "train" for n in range(8)}
    )
    assert len(make_split(records, presence=presence).test) == 2


def test_official_test_without_labels_is_neither_scored_nor_trained_on():
    cases = {f"c{n}": [frozenset({1})] for n in range(8)} | {"hidden": [None]}
    records, presence = build_records(cases, {"hidden": "test"})
    split = make_split(records, presence=presence)
    assert len(split.test) == 2
    assert "hidden/0" not in split.sides()


def test_official_validation_cases_beyond_the_budget_do_not_train():
    cases = {f"c{n}": [frozenset({1})] for n in range(20)}
    records, presence = build_records(cases, {f"c{n}": "val" for n in range(10)})
    split = make_split(records, presence=presence, labels=5)
    assert len(split.val) == 1
    assert not {f"c{n}/0" for n in range(10)} & {*split.train, *split.unlabelled, *split.test}


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"labels": 76}, "labels=76 .* 75 labelled images"),
        ({"labels": 1}, "labels=1 is out of range"),
        ({"label_cases": 76}, "label_cases=76 .* 75 labelled cases"),
        ({"labels": 10, "label_cases": 10}, "both given"),
        ({"test_share": 1.5}, "test_share=1.5"),
        ({"val_share": 1.0}, "val_share=1.0"),
    ],
)
def test_a_wrong_budget_says_what_there_is(budget, message: str):
    records, presence = single_images(100)
    with pytest.raises(UserError, match=message):
        make_split(records, presence=presence, **budget)


def test_two_labelled_cases_are_too_few():
    records, presence = build_records({"a": [frozenset({1})] * 9, "b": [frozenset({1})] * 9, "c": [None] * 9})
    with pytest.raises(UserError, match="1 are left to train, 0 to validate and 1 to test"):
        make_split(records, presence=presence)


def test_no_labels_at_all():
    """It read as a split that is to be corrected: 0 to train, 0 to validate and 0 to test."""
    records, presence = build_records({"a": [None], "b": [None]})
    with pytest.raises(UserError, match=r"^No image has a mask"):
        make_split(records, presence=presence)


def test_a_case_in_two_stated_parts_is_named():
    records = [Record("p1/0", "p1", Path("0"), split="train"), Record("p1/1", "p1", Path("1"), split="test")]
    with pytest.raises(UserError, match="The case p1 has images in test and train"):
        make_split(records, presence={})


def test_a_split_is_written_whole(tmp_path: Path):
    split = Split(train=("ä/1",), val=("b",), unlabelled=(), test=("c", "d"))
    save_split(split, tmp_path / "split.json")
    written = json.loads((tmp_path / "split.json").read_text(encoding="utf-8"))
    assert written == {"train": ["ä/1"], "val": ["b"], "unlabelled": [], "test": ["c", "d"]}
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]


def test_without_a_validation_share_every_label_of_the_budget_trains():
    """A label kept back although none was to be, or another test set than the other rule's."""
    records, presence = single_images(100)
    all_train = make_split(records, presence=presence, labels=20, val_share=0)
    assert (len(all_train.train), all_train.val) == (20, ())
    selected = make_split(records, presence=presence, labels=20)
    assert set(all_train.train) == {*selected.train, *selected.val}
    assert all_train.test == selected.test


def test_cases_that_a_data_set_keeps_for_validation_never_train():
    records, presence = single_images(30)
    official = [replace(record, split="val" if place < 5 else None) for place, record in enumerate(records)]
    split = make_split(official, presence=presence, val_share=0)
    kept = {record.id for record in official[:5]}
    assert kept.isdisjoint({*split.train, *split.val, *split.unlabelled, *split.test})
