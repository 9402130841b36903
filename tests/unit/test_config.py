from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tskd.errors import UserError
from tskd.recipe.files import parse_yaml
from tskd.recipe.schema import (
    NAMING,
    AppearanceConfig,
    AugmentConfig,
    FinetuneConfig,
    Recipe,
    build_recipe,
    load_recipe,
)


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(path, overrides)
    return str(error.value)


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


def test_an_unknown_key_in_a_list_of_teachers_is_named_with_its_place() -> None:
    with pytest.raises(UserError, match=r"teacher.beside.1.rnk: unknown key. Did you mean teacher.beside.1.rank\?"):
        build_recipe({"teacher": {"beside": [{"name": "offline"}, {"rnk": 2}]}}, "test")


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


def test_a_mistake_in_a_change_is_not_laid_upon_the_file(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "teacher: {rank: 4}\n")
    with pytest.raises(UserError, match=r"recipe\.yaml with teacher\.stpes cannot be used:\n  teacher\.stpes: unknown"):
        load_recipe(path, ["teacher.stpes=5"])


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


OLD_NAMES = "rivals: [scratch]\nstudent: {start: weights, patch: 8}\n"


def test_a_recipe_of_version_0_1_is_read_with_a_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(recipe_file(tmp_path, OLD_NAMES))
    assert (recipe.baselines, recipe.student.initialisation, recipe.student.patch) == (("scratch",), "weights", 8)
    said = capsys.readouterr().err
    assert "rivals is called baselines now" in said
    assert "student.start is called student.initialisation now" in said


def test_old_and_new_names_change_one_setting(tmp_path: Path) -> None:
    """A command of a shell script must not be overruled by the file because it has the old name, nor the new one."""
    for written, changed in (("rivals", "baselines"), ("baselines", "rivals")):
        path = recipe_file(tmp_path, f"{written}: [scratch]\n")
        assert load_recipe(path, [f"{changed}=[mae]"]).baselines == ("mae",)
    assert Recipe(rivals=("scratch",)).baselines == ("scratch",)  # type: ignore[call-arg]


def test_augmentation_by_name_is_written_out_in_the_recipe(tmp_path: Path) -> None:
    """What is made of the recipe states every value, so it means the same when the preset changes."""
    recipe = load_recipe(None, ["finetune.augment=nnunet", "control.augment=light"])
    strong = recipe.finetune.augment
    assert (strong.rotate, strong.p_rotate, strong.scale, strong.p_scale, strong.photometric) == (180, 0.2, 0.4, 0.2, 0)
    assert strong.appearance == AppearanceConfig()
    assert recipe.control.augment == AugmentConfig()
    written = recipe_file(tmp_path, yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(written, []) == recipe
    changed = load_recipe(written, ["finetune.augment.flip=both", "finetune.augment.appearance.p_blur=0"])
    assert changed.finetune.augment == strong.model_copy(
        update={"flip": "both", "appearance": AppearanceConfig(p_blur=0)}
    )


def test_nnunets_changes_of_grey_values_can_be_switched_on_alone() -> None:
    recipe = load_recipe(None, ["teacher.augment.appearance={}", "distill.augment.appearance.p_noise=0.5"])
    assert recipe.teacher.augment == AugmentConfig(appearance=AppearanceConfig())
    assert recipe.distill.augment.appearance == AppearanceConfig(p_noise=0.5)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("finetune.augment=strong", "choose one of light, nnunet"),
        ("finetune.augment.elastic=0.07", "0.06"),
        ("finetune.augment.p_rotate=1.5", "1"),
        ("finetune.augment.appearance.blur=[1, 0.5]", "smaller value first"),
        ("finetune.augment.appearance.blur=[1, 9]", "at most 4"),
        ("finetune.augment.appearance.gamma=[1.2, 1.5]", "1, which changes nothing"),
        ("finetune.augment.appearance.low_resolution=[0.01, 1]", "between 0.1 and 1"),
        ("finetune.augment.appearance.low_resolution=[0.5, 2]", "between 0.1 and 1"),
        ("finetune.augment.appearance.p_blurr=1", "p_blur"),
        ("distill.augment.foreground=0.33", "transfer images have no labels"),
    ],
)
def test_augmentation_that_cannot_be_is_refused(override: str, said: str) -> None:
    message = refusal(override)
    assert override.partition(".augment")[0] in message
    assert said in message


def test_keys_that_came_later_are_in_no_name_at_their_default() -> None:
    """Artifacts of before are found again; a key that is used is in the name, its default value or not."""
    before = {"flip": "auto", "rotate": 15.0, "scale": 0.15, "shift": 0.08, "crop": 0.0, "photometric": 1.0}
    assert AugmentConfig().model_dump(context=NAMING) == before
    assert FinetuneConfig().model_dump(context=NAMING)["augment"] == before
    assert Recipe().model_dump(mode="json", context=NAMING)["distill"]["augment"] == before
    used = AugmentConfig(foreground=0.33, appearance=AppearanceConfig()).model_dump(context=NAMING)
    assert used == {**before, "foreground": 0.33, "appearance": AppearanceConfig().model_dump()}
    assert AugmentConfig().model_dump().keys() == AugmentConfig.model_fields.keys(), "a recipe states all of them"


def test_tiles_are_not_scored_by_the_statistics_of_whole_images() -> None:
    with pytest.raises(UserError, match=r"norm_statistics=test looks at whole images"):
        load_recipe(None, ["data.tile=64", "evaluate.norm_statistics=test"])
