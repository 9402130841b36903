"""Settings as people, programs and vandals write them: read in bounded time, or refused in one short message."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tskd.data.layouts.dataset_yaml import read_dataset_yaml
from tskd.errors import UserError
from tskd.recipe.files import Change, parse_yaml, read_yaml
from tskd.recipe.schema import load_recipe

LAUGHS = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
"""9^12 values in 700 bytes, each of them an alias of the line before."""


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "more than 100000 values"),
        (LAUGHS.replace("a11", "name"), "more than 100000 values"),
        ("name: &loop [*loop]", "nested too deeply"),
        ("name: " + "[" * 5000, "nested too deeply"),
        ("seed: " + "9" * 6000, "looks like one"),
        ("seed: 0x" + "f" * 6000, "seed: a whole number is larger"),
        ("data: {labels: 18446744073709551616}", r"data\.labels: a whole number is larger"),
        ("day: 2001-99-99", "looks like one"),
        ("name: !!python/object/apply:os.system [ls]", "is not valid YAML"),
    ],
    ids=["laughs", "laughs as a name", "loop", "deep", "long", "long hexadecimal", "65 bits", "date", "code"],
)
def test_what_would_hang_or_break_is_one_short_message(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text(text)
    for read in (load_recipe, lambda path: read_dataset_yaml(path.parent)):
        with pytest.raises(UserError, match=said) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_aliases_are_not_forbidden() -> None:
    assert parse_yaml("one: &sizes [1, 2]\ntwo: *sizes", "text") == {"one": [1, 2], "two": [1, 2]}


def test_a_long_value_is_not_repeated_whole(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"seed: {'x' * 50_000}\nbaselines: {{{', '.join(f'k{n}: 1' for n in range(9999))}}}")
    with pytest.raises(UserError, match="seed: ") as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "dataset.yaml")
    for read in (read_yaml, load_recipe, lambda path: read_dataset_yaml(path.parent)):
        with pytest.raises(UserError, match=r"pipe|no such recipe"):
            read(tmp_path / "dataset.yaml")


def test_a_huge_file_is_no_recipe(tmp_path: Path) -> None:
    with (tmp_path / "recipe.yaml").open("wb") as file:
        file.truncate(2**33)  # sparse: nothing of it is on the disk
    with pytest.raises(UserError, match="more than 4 MB"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "name", ["Ärzte 😀", 'a "quoted" \\name', "line\nbreak", "tab\t", "\udce4 latin-1", "null", "1e3"]
)
def test_any_name_of_a_folder_reaches_the_recipe_as_it_is(name: str) -> None:
    assert load_recipe(None, [Change("data.root", name)]).data.root == name


@pytest.mark.parametrize(
    "change",
    ["control.channels=[]", "control.channels=[8, 16]", "control.channels=[8, 16, 99999]",
     "finetune.batch_size=1000000000", "data.phantom.size=1000000", "data.phantom.train=1000000000000"],
)  # fmt: skip
def test_sizes_that_no_machine_holds_are_refused_before_any_work(change: str) -> None:
    with pytest.raises(UserError, match=change.partition("=")[0].replace(".", r"\.")):
        load_recipe(None, [change])
