"""Settings that are chosen: by what is in the images and on the machine, with a reason, and the same after a pause."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from PIL import Image
from safetensors.torch import save_file

from tskd.errors import UserError
from tskd.experiment import configure, pace, rules
from tskd.experiment.facts import Facts, look
from tskd.experiment.pace import Pace
from tskd.experiment.rules import of_the_data, of_the_networks, of_the_time
from tskd.models.description import NetworkDescription
from tskd.models.weights import efficientnet_lite0_path
from tskd.recipe.files import Change, set_key
from tskd.recipe.schema import DataConfig, EngineConfig, Recipe, build_recipe
from tskd.stages.source_data import open_data

FACTS = Facts(
    labelled=40, cases=40, validated=0, tested=40, shown=0, side=512, thickness=0.07, pixels=36.0, thinnest="",
    gpu=False, bf16=False, sam=None, offline=True,
)  # fmt: skip


def facts(**changes: Any) -> Facts:
    """Of images of one size, unless ``pixels`` is among the changes."""
    found = replace(FACTS, **changes)
    return found if "pixels" in changes else replace(found, pixels=found.thickness and found.thickness * found.side)


def chosen(facts: Facts, *changes: Change) -> dict[str, Any]:
    """What is chosen beside the changes, one after the other, as `choose` does."""
    values: dict[str, Any] = {}
    for change in changes:
        set_key(values, *change)
    found = {}
    for choices in (of_the_data(facts, values), of_the_networks(facts, values)):
        for key, value, _ in configure.left_to_choose(choices, changes):
            set_key(values, key, value)
            found[key] = value
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images of 64 x 48 px whose masks are bars 6 px thick; the ninth has no mask."""
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(9):
        Image.fromarray(rng.integers(0, 256, (48, 64), np.uint8)).save(tmp_path / f"data/images/{number}.png")
        mask = np.zeros((48, 64), np.uint8)
        mask[10 + number : 16 + number, 5:60] = 255
        if number < 8:
            Image.fromarray(mask).save(tmp_path / f"data/masks/{number}.png")
    return tmp_path / "data"


@pytest.fixture
def quick_steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a step is said to take; a test may change them."""
    seconds = [0.6]
    monkeypatch.setattr(pace, "step_seconds", lambda *_: seconds[0])
    return seconds


def settled(changes: list[Change], out: Path, minutes: float | None = None) -> Recipe:
    """The settings of a run that begins."""
    recipe, keep = configure.configure(changes, out, minutes=minutes)
    keep()
    return recipe


@pytest.mark.parametrize(("thickness", "gpu", "side"), [
    (0.07, False, 128), (0.02, False, 160), (0.001, False, 192), (None, False, 128),
    (0.07, True, 256), (0.008, True, 384),
])  # fmt: skip
def test_images_are_as_large_as_their_structures_and_the_machine_ask_for(
    thickness: float | None, gpu: bool, side: int
) -> None:
    """Of images that are hardly larger than what the networks see: there is nothing to cut."""
    found = chosen(facts(thickness=thickness, gpu=gpu, side=300 if gpu else 150))
    assert found["data.image_size"] == side
    assert "data.tile" not in found


@pytest.mark.parametrize(("thickness", "side", "gpu", "stated", "tile"), [
    (0.0156, 512, False, None, 128),  # vessels of 8 px: tiles at the image's own sharpness
    (0.0156, 2048, False, None, 496),  # of 32 px: tiles of 4 times what the networks see
    (0.001, 512, False, None, 128),  # thinner than a pixel: no tile is enlarged
    (0.0156, 150, False, None, None), (0.07, 2048, False, None, None), (None, 512, False, None, None),
    (0.0156, 512, False, 64, 64), (0.0156, 512, False, 256, None),
    (0.008, 512, True, None, 256), (0.0156, 512, True, None, None),
])  # fmt: skip
def test_thin_structures_of_large_images_are_seen_in_tiles(
    thickness: float | None, side: int, gpu: bool, stated: int | None, tile: int | None
) -> None:
    """8 px thick where the networks see them, or as thick as they are."""
    changes = [] if stated is None else [Change("data.image_size", stated)]
    found = chosen(facts(thickness=thickness, side=side, gpu=gpu), *changes)
    assert found.get("data.tile") == tile
    if tile is not None:
        assert found.get("data.image_size", stated) == stated or found["data.image_size"] == (256 if gpu else 128)


@pytest.mark.parametrize(("thickness", "side", "tile"), [(0.02, 160, None), (0.016, 192, None), (0.01, 128, 128)])
def test_several_classes_are_seen_whole_where_a_larger_image_shows_them(
    thickness: float, side: int, tile: int | None
) -> None:
    """Chambers of a heart lie left and right of each other, which a tile hides."""
    found = chosen(facts(thickness=thickness, thinnest="myocardium", side=256))
    assert (found["data.image_size"], found.get("data.tile")) == (side, tile)


def test_decoders_go_by_what_tiles_show() -> None:
    """Vessels of 2 px squeezed whole are 8 px thick in tiles, and need no skip at full size."""
    assert chosen(facts(thickness=0.0156))["student.decoder"] == "unet"
    assert chosen(facts(thickness=0.002))["student.decoder"] == "unet_fine"


@pytest.mark.parametrize(("thickness", "side", "decoder"), [
    (0.07, None, "unet"), (0.0156, None, "unet_fine"), (None, None, "unet"), (0.0156, 512, "unet"),
    (0.03, 64, "unet_fine"), (3.4 / 256, 256, "unet_fine"), (3.6 / 256, 256, "unet"),
])  # fmt: skip
def test_thin_structures_get_a_decoder_that_sees_them(thickness: float | None, side: int | None, decoder: str) -> None:
    """As thick as they are where the networks see them, whoever chose that size."""
    stated = [Change("data.tile", None), *([] if side is None else [Change("data.image_size", side)])]
    found = chosen(facts(thickness=thickness), *stated)
    assert {found[f"{part}.decoder"] for part in ("teacher", "student", "unet_imagenet")} == {decoder}


@pytest.mark.parametrize(("own", "decoder"), [
    (Change("student.decoder", "unet"), "unet"), (Change("baselines", ["unet_imagenet"]), "unet_fine"),
    (Change("control.enabled", True), "unet_fine"), (Change("student.backbone", "resnet18"), "unet_fine"),
], ids=str)  # fmt: skip
def test_the_baseline_has_the_students_decoder(own: Change, decoder: str) -> None:
    """Held against another, the student would win or lose by that; one that is no U-Net's cannot be the baseline's."""
    found = chosen(facts(thickness=0.01, side=150), own)
    assert found["unet_imagenet.decoder"] == decoder
    if own.key != "student.backbone":
        assert found.get("student.decoder", own.value) == decoder


def test_few_labels_all_train_and_many_choose_weights() -> None:
    assert chosen(FACTS)["data.val_share"] == 0
    assert "data.val_share" not in chosen(facts(labelled=400, cases=400))
    assert chosen(facts(labelled=400, cases=7))["data.val_share"] == 0, "slices of seven patients are seven patients"


def test_a_validation_part_of_the_data_set_is_not_thrown_away(folder: Path) -> None:
    """``val_share=0`` would drop it: neither trained on nor chosen by."""
    assert "data.val_share" not in chosen(facts(validated=20))
    (folder / "split.csv").write_text("id,split\n0,train\n1,train\n2,val\n3,val\n4,val\n5,test\n6,test\n7,test\n")
    data = DataConfig(root=str(folder))
    found = look(open_data(data, folder), data, EngineConfig(accelerator="cpu"))
    assert (found.labelled, found.validated, found.tested) == (2, 3, 3)


def test_what_is_not_there_is_not_chosen(tmp_path: Path) -> None:
    """SAM without a GPU, or weights that are not installed, would end the run."""
    bare = chosen(facts(offline=False, sam=tmp_path / "sam.pth"))
    assert {key.partition(".")[0] for key in bare} == {"data"}
    assert chosen(facts(gpu=True, sam=tmp_path / "sam.pth"))["teacher.name"] == "sam"
    assert "teacher.members" not in chosen(FACTS)


def test_steps_fit_the_time_and_members_share_it(quick_steps: list[float]) -> None:
    values = {"teacher": {"members": 2}}
    steps = {one.key: one.value for one in of_the_time(Pace(0.6, 0.0, teacher=2.0), values, minutes=40)}
    assert steps == {"teacher.steps": 700, "distill.steps": 1000, "finetune.steps": 240}
    assert [one.value for one in of_the_time(Pace(60.0, 0.0), {}, minutes=40)] == [100, 150, 50]


def test_a_teacher_that_costs_more_than_the_student_gets_fewer_steps(tmp_path: Path, quick_steps: list[float]) -> None:
    """By operations: a day of SAM was called half an hour, since its steps were timed as the student's."""

    def relative(**teacher: object) -> float:
        values = {
            "data": {"image_size": 64},
            "student": {"backbone": "resnet10t", "decoder": "unet"},
            "teacher": teacher,
        }
        return Pace.of(FACTS, build_recipe(values, "test")).teacher

    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "a.safetensors")
    small = {
        "name": "timm/resnet10t",
        "weights": str(tmp_path / "a.safetensors"),
        "adaptation": "full",
        "decoder": "unet",
    }
    one = relative(**small)
    assert one == pytest.approx(1, abs=0.1)
    assert relative(**small, image_size=128) == pytest.approx(4 * one, rel=0.1)
    assert relative(**small, members=2, folds=False) == pytest.approx(2 * one)
    assert relative(name="sam", weights="not there") == 1
    alone = build_recipe({"teacher": small, "distill": {"views": 4}}, "test")
    assert Pace.of(facts(shown=600), alone).answers == pytest.approx(
        Pace.of(facts(), alone).teacher * 2400 * 0.6 / 16 / 3 / 60
    )
    dear = {one.key: one.value for one in of_the_time(Pace(0.6, 0.0, teacher=10.0), {}, minutes=40)}
    assert dear == {"teacher.steps": 140, "distill.steps": 1000, "finetune.steps": 240}
    recipe = build_recipe({key.partition(".")[0]: {"steps": value} for key, value in dear.items()}, "test")
    assert 30 < Pace(0.6, 0.0, teacher=10.0).minutes(recipe) < 40
    cut = build_recipe({"teacher": small, "distill": {"views": 4}, "data": {"tile": 128, "image_size": 128}}, "test")
    none = Pace.of(facts(tested=0), cut)
    assert Pace.of(facts(tested=0, shown=6), cut).answers == pytest.approx(
        none.teacher * 6 * 16 * 4 * 0.6 / 16 / 3 / 60
    ), "16 tiles of each image"
    rounds = {one.key: one.value for one in of_the_time(Pace(0.6, 0.0), {"distill": {"rounds": 3}}, minutes=40)}
    assert rounds == {"teacher.steps": 1400, "distill.steps": 500, "finetune.steps": 120}


def test_a_step_of_twice_the_images_takes_twice_the_time() -> None:
    values = {"distill": {"batch_size": 32}, "finetune": {"batch_size": 8}}
    steps = {one.key: one.value for one in of_the_time(Pace(0.6, 0.0), values, minutes=40)}
    assert steps == {"teacher.steps": 1400, "distill.steps": 500, "finetune.steps": 480}


def test_tiles_of_the_test_take_their_part_of_the_time(quick_steps: list[float]) -> None:
    """40 images of 2048 px in tiles of 128 px: 31 x 31 looks each, of an eighth of a minute's fortieth."""
    cut, whole = (build_recipe({"data": {"tile": tile}}, "test") for tile in (128, None))
    assert Pace.of(facts(side=2048), whole).answers == 0
    answers = Pace.of(facts(side=2048), cut).answers
    assert answers == pytest.approx(40 * 31 * 31 * pace.LOOKS * 0.6 / 16 / 3 / 60)
    *_, finetune = of_the_time(Pace(0.6, 10.0), {}, minutes=40)
    assert finetune.value == 180
    assert "30 min (40 less 10 for answers)" in finetune.reason
    *_, finetune = of_the_time(Pace(0.6, answers), {}, minutes=40)
    assert finetune.value == 120, "half of the time is left to training"


def test_a_folder_is_looked_at_and_what_is_set_is_not_chosen(
    folder: Path, tmp_path: Path, quick_steps: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [Change("data.root", str(folder)), Change("distill.steps", 7), Change("teacher.members", 1)]
    recipe = settled(changes, tmp_path / "out", 30)
    said = capsys.readouterr().err
    assert "the thinner structures are 9.4% of a side, 12.0 px then" in said
    assert "6 labels are too few" in said, "a quarter of the eight is for the test"
    assert (recipe.distill.steps, recipe.teacher.members, recipe.data.val_share) == (7, 1, 0)
    assert "distill.steps" not in said
    if efficientnet_lite0_path() is not None:
        assert "baselines=[unet_imagenet]: " in said
        assert "control.enabled=false: " in said


@pytest.mark.parametrize(("own", "kept", "gone"), [
    (Change("teacher.weights", "my_sam.pth"), "student.backbone", "teacher"),
    (Change("student.backbone", "vit_tiny_patch16_224"), "teacher.decoder", "student"),
])  # fmt: skip
def test_whoever_names_a_network_chooses_all_of_it(own: Change, kept: str, gone: str) -> None:
    """A SAM of the user's got the decoder and the rates of our CNN."""
    chosen_for = {choice.key for choice in configure.left_to_choose(of_the_networks(FACTS, {}), [own])}
    assert kept in chosen_for
    assert chosen_for.isdisjoint({f"{gone}.{name}" for name in ("name", "backbone", "decoder", "lr", "initialisation")})


@pytest.mark.parametrize("own", [Change("method", "unet_imagenet"), Change("baselines", ["scratch"])], ids=str)
def test_whoever_says_what_is_compared_chooses_all_of_it(own: Change) -> None:
    """Without a baseline of its own the student is held against a U-Net from ImageNet, and never against nothing."""
    assert chosen(FACTS)["baselines"] == ["unet_imagenet"]
    left = {choice.key for choice in configure.left_to_choose(of_the_networks(FACTS, {}), [own])}
    assert left.isdisjoint({"baselines", "control.enabled", "unet_imagenet.compute"})


def test_a_mask_that_cannot_be_read_is_left_to_the_run(folder: Path, tmp_path: Path, quick_steps: list[float]) -> None:
    """The run names every damaged file at once; choosing stopped at the first."""
    (folder / "masks/0.png").write_bytes(b"")
    assert settled([Change("data.root", str(folder))], tmp_path / "out", 30).data.image_size == 128


def test_the_same_command_goes_on_with_the_choices_of_before(
    folder: Path, tmp_path: Path, quick_steps: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps measured anew would be others, and the run would begin again."""
    changes = [Change("data.root", str(folder))]
    first = settled(changes, tmp_path / "out", 30)
    quick_steps[0] = 0.1
    for minutes in (30, None):
        assert settled(changes, tmp_path / "out", minutes) == first
        assert "the choices of before hold" in capsys.readouterr().err
    kept = json.loads((tmp_path / "out/choices.json").read_text(encoding="utf-8"))
    assert kept["minutes"] == 30
    assert all(choice["reason"] for choice in kept["chosen"])
    written = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text(encoding="utf-8"))
    assert written["distill"]["steps"] == first.distill.steps


def test_choices_for_something_else_do_not_hold(folder: Path, tmp_path: Path, quick_steps: list[float]) -> None:
    """Another time was ignored; other data got settings of the first; a setting that was taken back stayed."""
    out = tmp_path / "out"
    changes = [Change("data.root", str(folder)), Change("data.labels", 3)]
    settled(changes, out, 30)
    shutil.copytree(folder, tmp_path / "other")
    for asked, minutes, said in [
        (changes, 60, "chosen for 30 min, not 60"),
        ([Change("data.root", str(tmp_path / "other")), changes[1]], None, "for the data in .*, not in .*other"),
        (changes[:1], None, "with data.labels=3, which is not given now"),
        ([changes[0], Change("data.labels", 400)], None, "with data.labels=3, not 400"),
        ([*changes, Change("data.tile", 64)], None, "without data.tile=64"),
        ([*changes, Change("teacher.name", "timm/vit_tiny_patch16_224")], None, "without teacher.name=timm/vit"),
        ([*changes, Change("baselines", ["unet"])], None, r"without baselines=\[unet\]"),
    ]:
        with pytest.raises(UserError, match=said):
            settled(asked, out, minutes)
    more = [Change("data.root", str(folder) + "/"), changes[1], Change("seed", 7)]
    assert settled(more, out).seed == 7
    (out / "recipe.yaml").unlink()
    assert settled(changes[:1], out, 60).data.labels is None


def test_data_are_the_same_by_where_they_lie(
    folder: Path, tmp_path: Path, quick_steps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is other data elsewhere, and the absolute one of the same folder is not."""
    monkeypatch.chdir(folder.parent)
    settled([Change("data.root", folder.name)], tmp_path / "out")
    assert settled([Change("data.root", str(folder))], tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"for the data in .*, not in .*elsewhere"):
        settled([Change("data.root", folder.name)], tmp_path / "out")


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"minutes": 30, "given": []}', "\x00", '{"minutes": "x"}'])
def test_damaged_choices_are_named(damaged: str, folder: Path, tmp_path: Path, quick_steps: list[float]) -> None:
    changes = [Change("data.root", str(folder))]
    settled(changes, tmp_path / "out")
    (tmp_path / "out/choices.json").write_text(damaged)
    with pytest.raises(UserError, match=r"choices\.json is damaged"):
        settled(changes, tmp_path / "out")


def test_what_is_refused_leaves_no_choices(folder: Path, tmp_path: Path, quick_steps: list[float]) -> None:
    """The corrected command was refused for a setting of the refused one."""
    changes = [Change("data.root", str(folder))]
    with pytest.raises(UserError, match="method: 'nope' is not known"):
        settled([*changes, Change("method", "nope")], tmp_path / "out")
    configure.configure([*changes, Change("data.labels", 3)], tmp_path / "out")  # a run that does not begin
    assert not (tmp_path / "out").exists()
    assert settled(changes, tmp_path / "out").data.labels is None


def test_several_processes_read_what_the_first_has_chosen(
    folder: Path, tmp_path: Path, quick_steps: list[float]
) -> None:
    """They are started before the run begins, and would each time a step."""
    changes = [Change("data.root", str(folder)), Change("engine.devices", 2)]
    first, _ = configure.configure(changes, tmp_path / "out")
    quick_steps[0] = 0.1
    assert configure.configure(changes, tmp_path / "out").recipe == first


@pytest.mark.parametrize("launcher", ["RANK", "SLURM_PROCID"])
def test_processes_that_a_launcher_starts_do_not_choose_each_for_itself(
    launcher: str, folder: Path, tmp_path: Path, quick_steps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, several = Change("data.root", str(folder)), Change("engine.devices", 2)
    monkeypatch.setenv(launcher, "1")
    with pytest.raises(UserError, match="Choose them first in one process"):
        configure.configure([one, several], tmp_path / "out")
    first = settled([one, Change("engine.devices", 1)], tmp_path / "out")  # under Slurm a single process has a rank too
    assert configure.configure([one, several], tmp_path / "out").recipe.teacher == first.teacher


def test_numbers_of_numpy_are_settings(folder: Path, tmp_path: Path, quick_steps: list[float]) -> None:
    changes = [Change("data.root", str(folder)), Change("data.labels", np.int64(3))]
    assert settled(changes, tmp_path / "out") == settled(changes, tmp_path / "out")
    assert yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["data"]["labels"] == 3


def test_an_augmentation_by_name_is_stated_whole() -> None:
    """The share of tiles with a structure was set in what is a name, and the run could not start."""
    found = chosen(facts(thickness=0.0156), Change("teacher.augment", "nnunet"))
    assert "teacher.augment.foreground" not in found
    assert found["finetune.augment.foreground"] == 0.33


def test_tiles_that_do_not_exist_are_not_drawn_for_structures() -> None:
    assert not [key for key in chosen(facts(side=60), Change("data.tile", 64)) if key.endswith("foreground")]


def test_more_rivals_share_the_time_of_the_student() -> None:
    def steps(**values: object) -> list[int]:
        return [one.value for one in of_the_time(Pace(0.6, 0.0), values, minutes=40)]

    assert steps(baselines=["unet_imagenet"], control={"enabled": False}) == [1400, 1000, 240]
    assert steps(baselines=["unet_imagenet", "scratch", "mae"], control={"enabled": False}) == [1400, 500, 120]


@pytest.mark.parametrize("minutes", [math.nan, math.inf, 0, -1])
def test_a_time_that_is_none_is_refused(minutes: float, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no time to choose settings for"):
        settled([Change("data.root", str(folder))], tmp_path / "out", minutes)


def test_more_time_than_was_asked_for_is_told(
    folder: Path, tmp_path: Path, quick_steps: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    quick_steps[0] = 6.0
    recipe = settled([Change("data.root", str(folder))], tmp_path / "out", 5)
    assert (recipe.teacher.steps, recipe.distill.steps, recipe.finetune.steps) == (100, 150, 50)
    assert "about 50 min in all, more than 5: fewer steps are not worth it" in capsys.readouterr().err
    settled([Change("data.root", str(folder)), Change("distill.steps", 900)], tmp_path / "more", 300)
    assert "more than 300: by the settings that were given" not in capsys.readouterr().err
    settled([Change("data.root", str(folder)), Change("distill.steps", 9000)], tmp_path / "most", 300)
    assert "more than 300: by the settings that were given" in capsys.readouterr().err


def test_a_folder_without_masks_is_refused(folder: Path, tmp_path: Path, quick_steps: list[float]) -> None:
    for mask in (folder / "masks").iterdir():
        mask.unlink()
    with pytest.raises(UserError, match=r"no image has a mask"):
        settled([Change("data.root", str(folder))], tmp_path / "out", 30)
    assert not (tmp_path / "out").exists()


def test_empty_masks_are_refused_and_no_choice_stays(folder: Path, tmp_path: Path, quick_steps: list[float]) -> None:
    """Choices made while nothing was to be seen held when the masks were mended."""
    for mask in (folder / "masks").iterdir():
        Image.new("L", (64, 48)).save(mask)
    with pytest.raises(UserError, match=r"no mask of 8 holds any foreground"):
        settled([Change("data.root", str(folder))], tmp_path / "out", 30)
    assert not (tmp_path / "out").exists()


def test_chosen_and_timed_on_the_device_that_will_train(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with a GPU that is told to use its processor."""
    timed: list[EngineConfig] = []
    monkeypatch.setattr(pace, "step_seconds", lambda *settings: timed.append(settings[-1]) or 0.6)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    changes = [Change("data.root", str(folder)), Change("engine.accelerator", "cpu"), Change("engine.threads", 1)]
    recipe = settled(changes, tmp_path / "out", 30)
    assert recipe.data.image_size in rules.SIZES_ON_CPU
    assert [(engine.accelerator, engine.threads) for engine in timed] == [("cpu", 1)]


def test_a_step_is_timed() -> None:
    network = NetworkDescription("dynunet", {"channels": [8, 16, 32]}, ("any",), 32)
    assert 0 < pace.step_seconds(network, 2, EngineConfig(accelerator="cpu")) < 60


def test_tiles_go_by_pixels_where_sizes_vary() -> None:
    """Structures of 30 px in images of 300 and of 1600 px: a tenth of the small ones, and no tenth of the median."""
    found = chosen(facts(thickness=0.019, pixels=30.0, side=950))
    assert found["data.tile"] == 480


@pytest.mark.parametrize(("offline", "baseline"), [(True, "unet_imagenet"), (False, "control")])
def test_of_tiles_a_third_is_drawn_for_a_structure_in_every_arm(offline: bool, baseline: str) -> None:
    """Held against another draw, the student would win by that."""
    parts = ("teacher", "finetune", "unet_imagenet", "control")
    found = chosen(facts(thickness=0.0156, offline=offline))
    assert found["data.tile"] == 128
    assert {part for part in parts if found.get(f"{part}.augment.foreground") == 0.33} == {
        "teacher",
        "finetune",
        baseline,
    }
    whole = chosen(facts(thickness=0.07, offline=offline))
    assert not [key for key in whole if key.endswith("foreground")]


@pytest.mark.parametrize(("tile", "side"), [(None, 192), (512, 192), (64, 128)])
def test_a_stated_tile_is_what_the_size_of_images_goes_by(tile: int | None, side: int) -> None:
    """No other is going to mend what the smallest size would lose."""
    found = chosen(facts(thickness=8 / 2048, side=2048), Change("data.tile", tile))
    assert found["data.image_size"] == side
    assert "data.tile" not in found


def test_what_is_said_of_stated_tiles_is_true_of_them() -> None:
    values = {"data": {"tile": 64}}
    *_, why = next(of_the_data(facts(thickness=300 / 2048, side=2048), values))
    assert "100.0% of a side" in why
    assert "images have 2048, tiles 64" in why
