"""What is to be made is told without making it: names, sharing, what is there, what cannot be done at all."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from tests import published
from tests.made_up import SMALL_VIT
from tskd.comparison.estimate import Estimator
from tskd.comparison.grid import Grid, GridRun, load_grid
from tskd.comparison.job import build_job, execute, write_outcome
from tskd.comparison.plan import PlanStore, all_missing, plan_runs
from tskd.comparison.workflow import images_of, plan_comparison
from tskd.data.phantoms import write_phantoms
from tskd.data.prepared import digest_of_test
from tskd.engine import open_runtime
from tskd.errors import UserError
from tskd.experiment.pipeline import run_stage
from tskd.experiment.run import Run
from tskd.recipe.schema import Recipe, build_recipe
from tskd.stages.prepare import same_images

PHANTOM = {"family": "dermoscopy", "train": 16, "test": 6, "size": 32}
TINY: dict[str, Any] = {
    "data": {"image_size": 32, "labels": 8, "phantom": PHANTOM},
    "teacher": {"name": "timm/resnet10t", "weights": "random", "adaptation": "full"},
    "control": {"channels": [8, 16, 32]},
    "engine": {"accelerator": "cpu"},
}


def recipe(**changes: Any) -> Recipe:
    return build_recipe({**TINY, **changes}, "test")


def runs(*recipes: Recipe) -> list[GridRun]:
    return [GridRun(f"run{number}", {"method": one.method}, one) for number, one in enumerate(recipes)]


def test_shared_parts_are_planned_once_and_nothing_is_made_but_the_data(tmp_path: Path) -> None:
    methods = ("teacher", "task_kd", "scratch", "control")
    plans = plan_runs(runs(*(recipe(method=method) for method in methods)), tmp_path)
    stages = Counter(part.stage for part in all_missing(plans).values())
    assert stages == {"teacher": 1, "transfer": 1, "distill": 1, "finetune": 2, "control": 1, "evaluate": 4,
                      "ablation": 4}  # fmt: skip
    assert [part.stage for part in plans[2].missing] == ["finetune", "evaluate", "ablation"]
    made = {path.parent.name.rpartition("-")[0] for path in (tmp_path / "artifacts").glob("*/manifest.json")}
    assert made == {"phantoms", "prepare"}
    other_seed = plan_runs(runs(recipe(method="task_kd"), recipe(method="task_kd", seed=1)), tmp_path)
    assert {part.name for part in other_seed[0].missing}.isdisjoint(part.name for part in other_seed[1].missing)


def test_a_teacher_is_planned_at_its_own_size(tmp_path: Path) -> None:
    """SAM's default is 512 px: at the student's 32 a guess of its time is 256 times too short."""
    file = tmp_path / "sam.pth"
    torch.save(published.fill(published.meta_sam(**published.SMALL_SAM)), file)  # type: ignore[arg-type]
    teacher = {"weights": str(file), "name": "sam", "pixels": "imagenet", "adaptation": "lora"}
    (plan,) = plan_runs(runs(recipe(method="pseudo_label", teacher=teacher)), tmp_path)
    sizes = {part.stage: part.image_size for part in plan.missing}
    assert {stage for stage, size in sizes.items() if size == 512} == {"teacher", "teacher_images", "pseudo_masks"}
    assert {size for size in sizes.values() if size != 512} == {32}
    short = {**teacher, "image_size": 64}
    (small,) = plan_runs(runs(recipe(method="pseudo_label", teacher=short)), tmp_path)
    guess = Estimator(tmp_path / "artifacts")
    large, less = (next(part for part in one.missing if part.stage == "teacher") for one in (plan, small))
    assert guess.seconds(large)[0] == pytest.approx(64 * guess.seconds(less)[0])


def test_what_is_there_is_found_under_the_name_it_was_planned(tmp_path: Path) -> None:
    before = plan_runs(runs(recipe()), tmp_path)[0]
    run = Run(recipe(), tmp_path, open_runtime(recipe().engine))
    name = run.transfer.path.name
    after = plan_runs(runs(recipe()), tmp_path)[0]
    assert name in {part.name for part in before.missing}
    assert name in after.found
    assert {part.stage for part in after.missing} == {part.stage for part in before.missing} - {"transfer"}


def test_settings_that_read_other_images_are_told_apart() -> None:
    """Runs of a grid over windows or annotators learn from different images, though nothing has changed."""
    plain, windowed, fewer = runs(recipe(), recipe(data={**TINY["data"], "window": [0, 100]}), recipe(seed=1))
    assert images_of(plain) != images_of(windowed)
    assert images_of(plain) == images_of(fewer)


def write_weights(file: Path, seed: int) -> None:
    torch.manual_seed(seed)
    save_file(timm.create_model(SMALL_VIT).state_dict(), file)


def write_target(root: Path, seed: int) -> None:
    write_phantoms("dermoscopy", root, count=12, size=32, seed=seed, test=2)


def write_growing(folder: Path, seeds: int, method: str) -> Grid:
    """Return a grid of so many seeds whose runs read a target's images and a file of weights."""
    root, weights = str(folder / "target"), str(folder / "weights.safetensors")
    of_method = {"method": method, "student": {"backbone": SMALL_VIT, "patch": 8, "weights": weights}}
    steps = {"steps": 1, "batch_size": 2}
    settings = {**TINY, **of_method, "transfer": {"target": {"root": root}}, "finetune": steps, "distill": steps}
    if method == "task_kd":
        settings["student"] = {"backbone": SMALL_VIT, "patch": 8}
        settings["teacher"] = {"name": f"timm/{SMALL_VIT}", "weights": weights, "pixels": "imagenet", **steps}
    text = yaml.safe_dump({"name": "growing", "recipe": settings, "axes": {"seed": list(range(seeds))}})
    (folder / "grid.yaml").write_text(text)
    return load_grid(folder / "grid.yaml")


@pytest.mark.parametrize("method", ["imagenet", "task_kd"])
def test_a_grid_does_not_grow_over_a_target_or_weights_that_changed(method: str, tmp_path: Path) -> None:
    """Only ``data`` was watched: the new seed would have learned from other images, or begun elsewhere."""
    write_weights(tmp_path / "weights.safetensors", 0)
    write_target(tmp_path / "target", 5)
    out = tmp_path / "out"
    (first,) = write_growing(tmp_path, 1, method).runs
    write_outcome(out, execute(build_job(first, out, threads=1, download=False)))
    grown = write_growing(tmp_path, 2, method)

    def waiting(*, recheck: bool = False) -> int:
        return len(plan_comparison(grown, out, download=False, recheck=recheck)[0])

    assert waiting() == 1
    write_weights(tmp_path / "weights.safetensors", 1)
    with pytest.raises(UserError, match=r"1 of the finished runs learned from other images, masks or weights"):
        waiting()
    assert waiting(recheck=True) == 2
    write_weights(tmp_path / "weights.safetensors", 0)
    assert waiting() == 1
    shutil.rmtree(tmp_path / "target")
    write_target(tmp_path / "target", 6)
    with pytest.raises(UserError, match=r"1 of the finished runs learned from other images, masks or weights"):
        waiting()
    assert waiting(recheck=True) == 2


TEACHERLESS = ["mae", "moco_v3", "agnostic_kd", "scratch"]


def synthetic(method: str, folder: Path, **teacher: Any) -> Recipe:
    """Return a recipe with synthetic images in its transfer set and a teacher that may be taken as it is."""
    weights = folder / "teacher.safetensors"
    if not weights.exists():
        save_file(timm.create_model("resnet10t").state_dict(), weights)
    return recipe(
        method=method,
        transfer={"synthetic": 8},
        distill={"cache": "off"},
        teacher={"name": "timm/resnet10t", "weights": str(weights), **teacher},
    )


def test_no_arm_waits_for_a_teacher_that_it_does_not_learn_from(tmp_path: Path) -> None:
    """Synthetic images are judged by the teacher's features, but not for the arms of a comparison."""
    plans = plan_runs(runs(*(synthetic(method, tmp_path) for method in TEACHERLESS)), tmp_path)
    for plan in plans:
        assert plan.complete
        assert not {part.stage for part in plan.missing} & {"teacher", "quality"}
    assert {"diffusion", "samples", "transfer", "pretrain"} <= {part.stage for part in plans[0].missing}


def test_the_transfer_set_does_not_change_with_the_teacher(tmp_path: Path) -> None:
    plans = plan_runs(runs(*(synthetic("task_kd", tmp_path, rank=rank) for rank in (2, 4))), tmp_path)
    names = [{part.stage: part.name for part in plan.missing} for plan in plans]
    assert names[0]["teacher"] != names[1]["teacher"]
    assert names[0]["transfer"] == names[1]["transfer"]


@pytest.mark.parametrize(("method", "taught"), [("task_kd", True), ("mae", False)])
@pytest.mark.parametrize("stage", ["transfer", "quality"])
def test_a_stage_judges_synthetic_images_by_the_teacher_its_method_needs(
    stage: str, method: str, taught: bool, tmp_path: Path
) -> None:
    store = PlanStore(tmp_path / "artifacts")
    chosen = synthetic(method, tmp_path)
    run = Run(chosen, tmp_path, open_runtime(chosen.engine), open_store=lambda *_: store)
    artifact = run_stage(run, stage)
    assert artifact is not None
    assert artifact.path.name.startswith(f"{stage}-")
    wanted = {"diffusion", "samples", "transfer", "quality", *(["teacher"] if taught else [])}
    assert {made for made, *_ in store.missing.values()} == wanted


def test_what_the_data_does_not_allow_is_refused_before_any_training(tmp_path: Path) -> None:
    weights = tmp_path / "other.safetensors"
    save_file({"head": torch.zeros(1)}, weights)
    wanted = [
        recipe(),
        recipe(data={**TINY["data"], "labels": 900}),
        recipe(data={"root": str(tmp_path / "none")}),
        recipe(method="scratch", student={"backbone": "vit_tinny"}),
        recipe(method="mae", student={"backbone": "resnet10t"}),
        recipe(method="imagenet", student={"weights": str(weights)}),
    ]
    with pytest.raises(UserError) as error:
        plan_runs(runs(*wanted), tmp_path)
    assert not list((tmp_path / "artifacts").glob("teacher-*"))
    message = str(error.value)
    assert "labels=900 is out of range" in message
    assert "(1 of 6 runs)" in message
    assert "mae hides patches from a plain vision transformer" in message
    assert f"{weights} does not fit vit_tiny_patch16_224" in message
    assert "timm has no backbone 'vit_tinny'" in message
    assert str(tmp_path / "none") in message


def test_another_data_set_is_tested_on_and_the_own_one_has_the_same_test_under_any_budget(tmp_path: Path) -> None:
    runtime = open_runtime(recipe().engine)
    lesion = {**TINY["data"], "classes": ["lesion"], "budget_seed": 3}
    own = Run(recipe(data=lesion, evaluate={"data": {"phantom": PHANTOM}}), tmp_path, runtime)
    assert own.tested.cases("test") == own.prepared.cases("test")
    assert len(own.tested.rows("train")) > len(own.prepared.rows("train"))
    assert own.tested_artifact.path != own.prepared_artifact.path
    mouth = {"classes": ["lesion"], "phantom": {**PHANTOM, "family": "oral_ulcer"}}
    other = Run(recipe(data=lesion, evaluate={"data": mouth}), tmp_path, runtime)
    assert other.tested.dataset["name"] == "phantoms/oral_ulcer"
    assert other.prepared.dataset["name"] == "phantoms/dermoscopy"
    plain = Run(recipe(), tmp_path, runtime)
    assert plain.tested_artifact is plain.prepared_artifact


def test_a_data_set_of_other_classes_cannot_be_tested_on(tmp_path: Path) -> None:
    abdomen = {"phantom": {**PHANTOM, "family": "abdomen"}}
    with pytest.raises(
        UserError, match=r"evaluate\.data has the classes .*, training has lesion: they must be the same"
    ):
        _ = Run(recipe(evaluate={"data": abdomen}), tmp_path, open_runtime(recipe().engine)).tested_artifact


def test_training_images_are_never_tested_on_under_another_name(tmp_path: Path) -> None:
    """More phantoms of one family are the same ones and others; a copied folder has other names and the same pixels."""
    runtime = open_runtime(recipe().engine)
    more = {"phantom": {**PHANTOM, "test": 12}}
    with pytest.raises(UserError, match=r"training has seen \d+ test cases"):
        _ = Run(recipe(evaluate={"data": more}), tmp_path, runtime).tested_artifact
    drawn = Run(recipe(), tmp_path, runtime).prepared_artifact.path.parent.glob("phantoms-*/data")
    for image in sorted(next(drawn).glob("*/*.png")):
        for folder, name in (("mine", image.name), ("copy/deeper", f"{image.stem[::-1]}.png")):
            place = tmp_path / folder.partition("/")[0] / image.parent.name / folder.partition("/")[2] / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, place)
    data = {"root": str(tmp_path / "mine"), "image_size": 32, "labels": 8, "split_seed": 1}
    copied = {"root": str(tmp_path / "copy")}
    with pytest.raises(UserError, match=r"evaluate\.data: \d+ test images are training images of data\.root"):
        _ = Run(recipe(data=data, evaluate={"data": copied}), tmp_path, runtime).tested_artifact


def test_which_settings_read_the_same_images(tmp_path: Path) -> None:
    data = recipe().data
    assert same_images(data, data)
    assert same_images(data, recipe(data={"phantom": {**PHANTOM, "test": 12}}).data)
    assert not same_images(data, recipe(data={"phantom": {**PHANTOM, "family": "abdomen"}}).data)
    folder = recipe(data={"root": str(tmp_path)}).data
    assert same_images(folder, recipe(data={"root": f"{tmp_path}/x/.."}).data)
    assert not same_images(folder, data)


def test_a_label_draw_changes_the_labels_and_not_the_test(tmp_path: Path) -> None:
    runtime = open_runtime(recipe().engine)
    draws = [Run(recipe(data={**TINY["data"], "budget_seed": seed}), tmp_path, runtime).prepared for seed in (0, 1)]
    labelled, test = ([set(one.names(one.rows(*parts))) for one in draws] for parts in (("train", "val"), ("test",)))
    assert test[0] == test[1]
    assert labelled[0] != labelled[1]
    assert [len(one) for one in labelled] == [8, 8]


def test_a_damaged_part_is_planned_to_be_made_again(tmp_path: Path) -> None:
    transfer = Run(recipe(), tmp_path, open_runtime(recipe().engine)).transfer
    (transfer.path / "manifest.json").write_text("{")
    (plan,) = plan_runs(runs(recipe()), tmp_path)
    assert transfer.path.name in {part.name for part in plan.missing}


def test_more_real_images_than_there_are_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"transfer\.real: 99 images are asked for, the training data has"):
        plan_runs(runs(recipe(transfer={"real": 99})), tmp_path)


def test_the_digest_of_a_test_is_that_of_its_images_whatever_trains(tmp_path: Path) -> None:
    runtime = open_runtime(recipe().engine)
    budgets = [recipe(data={**TINY["data"], "labels": labels, "budget_seed": labels}) for labels in (6, 8)]
    few, many = (Run(one, tmp_path, runtime).prepared_artifact for one in budgets)
    assert few.digest != many.digest
    assert digest_of_test(few) == digest_of_test(many)
    other = recipe(data={**TINY["data"], "phantom": {**PHANTOM, "family": "oral_ulcer"}})
    assert digest_of_test(Run(other, tmp_path, runtime).prepared_artifact) != digest_of_test(few)
