from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tskd.errors import UserError
from tskd.recipe.files import parse_yaml
from tskd.recipe.schema import Recipe, build_recipe, load_recipe


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(path, overrides)
    return str(error.value)


def test_without_a_file_the_defaults_hold() -> None:
    assert load_recipe() == Recipe()


def test_an_empty_file_holds_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(recipe_file(tmp_path, "# nothing yet\n")) == Recipe()


def test_a_file_changes_what_it_names_and_overrides_come_after(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "seed: 4\nteacher: {rank: 8, lr: 1e-4}\ndata: {classes: [left, right]}\n")
    recipe = load_recipe(path, ["teacher.rank=16", "teacher.rank=32", "distill.augment.flip=none"])
    assert (recipe.seed, recipe.teacher.rank, recipe.teacher.lr) == (4, 32, 1e-4)
    assert recipe.data.classes == ("left", "right")
    assert recipe.distill.augment.flip == "none"
    assert recipe.teacher.augment.flip == "auto"
    assert recipe.teacher.steps == Recipe().teacher.steps


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3", ".1e-2", "1_000e-6"])
def test_a_number_is_a_number_however_it_is_written(text: str) -> None:
    assert load_recipe(None, [f"teacher.lr={text}"]).teacher.lr == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "override",
    [
        "seed=true",
        "data.labels=yes",
        "teacher.lr=false",
        "data.window=[0,true]",
        "data.annotator=true",
        "data.axis=false",
    ],
)
def test_a_truth_value_is_no_number(override: str) -> None:
    assert "should be a number" in refusal(override)


def test_a_truth_value_stays_one_where_it_is_meant() -> None:
    recipe = load_recipe(None, ["export.int8=true", "distill.cache=on", "teacher.gradient_checkpointing=yes"])
    assert (recipe.export.int8, recipe.distill.cache, recipe.teacher.gradient_checkpointing) == (True, "on", True)


@pytest.mark.parametrize("text", ["1e", "e3", "1e-3x", "v1.2", "1.2.3", "t1"])
def test_text_stays_text(text: str) -> None:
    assert parse_yaml(text, "here") == text


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_python_writes_is_read_back(value: float) -> None:
    assert parse_yaml(repr(value), "here") == value


def test_an_unknown_key_is_named_with_those_allowed() -> None:
    message = refusal("teacher.rnk=4")
    assert "teacher.rnk: unknown key" in message
    assert "rank" in message
    assert "encoder_loss" not in message, "keys of other sections are no help"
    assert "photometric" in refusal("finetune.augment.colour=1")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("teacher.rnk", "teacher.rank"),
        ("techer", "teacher"),
        ("distill.augment.fip", "distill.augment.flip"),
        ("evaluate.data.phantom.famly", "evaluate.data.phantom.family"),
        ("image_size", "data.image_size or teacher.image_size or diffusion.image_size"),
        ("finetune.rank", "teacher.rank"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_one(key: str, meant: str) -> None:
    assert f"{key}: unknown key. Did you mean {meant}? Allowed here: " in refusal(f"{key}=1")


def test_an_unknown_key_like_no_other_suggests_nothing(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "data: {zzz: 1}\n")
    assert "data.zzz: unknown key. Allowed here: allow_duplicates, annotator" in refusal(path=path)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "teacher: {steps: -5, lr: fast}\ndata: {image_size: 100}\n")
    message = refusal(path=path)
    assert str(path) in message
    for key, given_value in (("teacher.steps", "-5"), ("teacher.lr", "'fast'"), ("data.image_size", "100")):
        line = next(line for line in message.splitlines() if key in line)
        assert given_value in line


@pytest.mark.parametrize(
    "override",
    [
        "teacher.steps=0",
        "teacher.rank=0",
        "teacher.lr=0",
        "teacher.lr=.inf",
        "teacher.ema=1",
        "teacher.warmup=1.5",
        "data.image_size=130",
        "data.image_size=0",
        "data.val_share=1",
        "data.val_share=-0.1",
        "data.labels=0",
        "transfer.synthetic=-1",
        "distill.temperature=0",
        "finetune.layer_decay=0",
        "engine.devices=0",
        "engine.precision=64",
        "data.window=[1]",
    ],
)
def test_values_out_of_range_are_refused(override: str) -> None:
    assert override.partition("=")[0] in refusal(override)


def test_distilling_nothing_is_refused() -> None:
    assert "nothing to distil" in refusal("distill.encoder_weight=0", "distill.decoder_weight=0")
    assert load_recipe(None, ["distill.encoder_weight=0"]).distill.decoder_weight > 0


@pytest.mark.parametrize("override", ["teacher.rank", "=4", "  =4"])
def test_an_override_that_is_none_says_how_to_write_one(override: str) -> None:
    assert "--set teacher.rank=16" in refusal(override)


def test_an_override_into_a_value_is_refused() -> None:
    assert "'seed' is a value, not a section" in refusal("seed=3", "seed.more=4")


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    assert "no such recipe" in refusal(path=tmp_path / "absent.yaml")
    assert "not valid YAML" in refusal(path=recipe_file(tmp_path, "a: [1, 2\nb: 3"))
    assert "line 2" in refusal(path=recipe_file(tmp_path, "seed: 1\nteacher: {rank: 4: 5}\n"))
    assert "a recipe is a mapping of sections" in refusal(path=recipe_file(tmp_path, "- 1\n"))
    binary = tmp_path / "image.png"
    binary.write_bytes(b"\x89PNG\xff\xfe")
    assert "not a text file" in refusal(path=binary)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, f"seed: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'ran'}]\n")
    assert "not valid YAML" in refusal(path=path)
    assert not (tmp_path / "ran").exists()


def test_a_recipe_is_frozen_and_survives_json() -> None:
    recipe = load_recipe(None, ["data.window=[-100, 250]", "data.classes=[liver]"])
    with pytest.raises(ValidationError):
        recipe.teacher.rank = 9  # type: ignore[misc]
    assert build_recipe(recipe.model_dump(mode="json"), "run.json") == recipe


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_the_cache_is_switched_as_the_messages_say(word: str, tmp_path: Path) -> None:
    """Bare words that YAML takes for truth values."""
    assert load_recipe(None, [f"distill.cache={word}"]).distill.cache == word
    assert load_recipe(recipe_file(tmp_path, f"distill: {{cache: {word}}}\n")).distill.cache == word


def test_a_batch_is_cut_into_equal_parts() -> None:
    assert "batch_size 16 cannot be cut into 3 equal parts" in refusal("teacher.accumulate=3")
    assert load_recipe(None, ["teacher.accumulate=4"]).teacher.accumulate == 4
