"""Every method, run on tiny phantoms: one architecture, one budget, a teacher only where the method says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.made_up import SMALL_VIT
from tskd.data.prepared import Prepared
from tskd.engine import open_runtime
from tskd.errors import UserError
from tskd.experiment.budget import adaptation_flops
from tskd.experiment.methods import METHODS
from tskd.experiment.pipeline import exported, run_stage
from tskd.experiment.preflight import check_networks
from tskd.experiment.run import Run
from tskd.models.flops import inference_flops
from tskd.models.registry import build_model, load_model
from tskd.recipe.schema import build_recipe
from tskd.seeding import derive
from tskd.stages.compute import compute_of
from tskd.stages.label_training import labels_without
from tskd.stages.unets import describe_unet, describe_unet_imagenet

SIZE = 32
SETTINGS: dict[str, Any] = {
    "data": {"image_size": SIZE, "labels": 8, "phantom": {"family": "dermoscopy", "train": 16, "test": 4, "size": 48}},
    "teacher": {"name": "timm/resnet10t", "steps": 4, "batch_size": 4},
    "distill": {"steps": 16, "batch_size": 8, "views": 2},
    "mae": {"batch_size": 2},
    "moco_v3": {"batch_size": 2, "hidden": 32, "width": 16},
    "finetune": {"steps": 8, "batch_size": 4},
    "self_training": {"batch_size": 4},
    "control": {"channels": [8, 16, 32], "batch_size": 8},
    "unet": {"channels": [8, 16, 16, 16], "batch_size": 4, "steps": 3},
    "unet_imagenet": {"backbone": "resnet10t", "batch_size": 4, "steps": 3},
    "engine": {"accelerator": "cpu"},
}
CONVERGED = ["unet", "unet_imagenet"]
"""Methods with a length of their own."""
STUDENTS = sorted(METHODS.keys() - {"teacher", "control", "control_pseudo", *CONVERGED})
TOLERANCE = 0.03
"""Of the budget: up to a step less, and the projection that distillation trains beside so small a student (2.6 %)."""
SELF_TAUGHT = {"agnostic_kd", "moco_v3", "consistency", "copy_paste"}
"""Methods with targets that are not an adapted teacher's, and are told apart all the same."""

OpenRun = Callable[..., Run]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder for all methods, with weight files as a user brings them."""
    folder = tmp_path_factory.mktemp("methods")
    torch.manual_seed(0)
    for backbone in ("resnet10t", SMALL_VIT):
        save_file(timm.create_model(backbone).state_dict(), folder / f"{backbone}.safetensors")
    return folder


@pytest.fixture(scope="module")
def open_run(folder: Path) -> OpenRun:
    def open_run(method: str, distill: Mapping[str, Any] | None = None, compute: str = "own", **student: Any) -> Run:
        student |= {"backbone": SMALL_VIT, "patch": 8, "weights": str(folder / f"{SMALL_VIT}.safetensors")}
        weights = {"weights": str(folder / "resnet10t.safetensors")}
        changed = {
            "student": student,
            "teacher": {**SETTINGS["teacher"], **weights},
            "distill": {**SETTINGS["distill"], **(distill or {})},
            "unet": {**SETTINGS["unet"], "compute": compute},
            "unet_imagenet": {**SETTINGS["unet_imagenet"], **weights, "compute": compute},
        }
        recipe = build_recipe({**SETTINGS, "method": method, **changed}, "test")
        return Run(recipe, folder / "out", open_runtime(recipe.engine))

    return open_run


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_ends_with_a_segmenter_and_asks_for_a_teacher_only_if_it_says_so(
    method: str, open_run: OpenRun
) -> None:
    run = open_run(method)
    model = load_model(METHODS[method].model(run).path)
    with torch.inference_mode():
        logits = model(torch.rand(2, 3, 40, 56)).logits
    assert logits.shape == (2, 1, 40, 56)
    assert logits.isfinite().all()
    used = {name.partition("-")[0] for name in run.bench.used}
    assert ("teacher" in used) == (method == "teacher" or METHODS[method].teacher is not None)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"teacher"}))
def test_a_method_spends_the_budget_and_no_more(method: str, open_run: OpenRun) -> None:
    run = open_run(method, compute="equal")
    spent = compute_of(METHODS[method].model(run), run.bench.used.values())
    budget = run.total_compute if method == "scratch_total" else run.budget.total
    assert 1e9 * spent.student_gflops == pytest.approx(budget, rel=TOLERANCE)
    answers = METHODS[method].teacher is not None or method in SELF_TAUGHT
    assert (spent.teacher_gflops > 0) == answers


@pytest.mark.parametrize("method", CONVERGED)
def test_a_u_net_with_a_length_of_its_own_trains_for_it(method: str, open_run: OpenRun) -> None:
    own, equal = open_run(method), open_run(method, compute="equal")
    assert METHODS[method].model(own).metrics["steps"] == 3
    assert METHODS[method].model(equal).path != METHODS[method].model(own).path
    assert f"{method}-" in METHODS[method].model(own).path.name


def test_the_u_net_from_imagenet_starts_there_and_trains_all_layers(open_run: OpenRun, folder: Path) -> None:
    trained = load_file(open_run("unet_imagenet").baselines.unet_imagenet.path / "student.safetensors")
    given = load_file(folder / "resnet10t.safetensors")
    torch.manual_seed(1)
    other = timm.create_model("resnet10t").state_dict()
    moved = {name: (trained[f"encoder.{name}"] - given[name]).norm() for name in given if name.endswith("conv1.weight")}
    assert moved.keys() >= {"layer1.0.conv1.weight", "layer4.0.conv1.weight"}
    assert all(0 < distance < 0.1 * (other[name] - given[name]).norm() for name, distance in moved.items())


def test_the_encoders_rate_holds_for_the_encoder_of_the_u_net_alone(open_run: OpenRun) -> None:
    usual = open_run("unet_imagenet")
    still = usual.recipe.unet_imagenet.model_copy(update={"encoder_lr": 1e-6})
    changed = Run(usual.recipe.model_copy(update={"unet_imagenet": still}), usual.out, usual.runtime)
    given = load_file(Path(still.weights))["layer1.0.conv1.weight"]
    trained, slower = (load_file(run.baselines.unet_imagenet.path / "student.safetensors") for run in (usual, changed))
    name = "encoder.layer1.0.conv1.weight"
    assert (slower[name] - given).norm() < 1e-3 * (trained[name] - given).norm()
    assert not torch.equal(slower["decoder.head.weight"], build_u_net_from_imagenet(usual)["decoder.head.weight"])


def build_u_net_from_imagenet(run: Run) -> dict[str, torch.Tensor]:
    """Return the tensors that the training starts with."""
    description = describe_unet_imagenet(run.recipe.unet_imagenet, classes=["lesion"], image_size=SIZE)
    torch.manual_seed(derive(run.recipe.seed, "unet_imagenet"))
    return build_model(description).state_dict()


def test_the_large_u_net_learns_at_every_supervised_level(open_run: OpenRun) -> None:
    """A head without a gradient stays as it was drawn."""
    run = open_run("unet")
    torch.manual_seed(derive(run.recipe.seed, "unet"))
    start = build_model(describe_unet(run.recipe.unet, classes=["lesion"], image_size=SIZE)).state_dict()
    trained = load_model(run.baselines.unet.path).state_dict()
    heads = [name for name in start if "deep_supervision_heads" in name]
    assert heads
    assert not any(torch.equal(trained[name], start[name]) for name in heads)


@pytest.mark.parametrize("rounds", [1, 3])
def test_scratch_with_the_total_compute_has_what_distillation_has_spent_on_student_and_teacher(
    rounds: int, open_run: OpenRun
) -> None:
    run = open_run("task_kd", {"rounds": rounds})
    spent = compute_of(METHODS["task_kd"].model(run), run.bench.used.values())
    assert run.total_compute == pytest.approx(1e9 * (spent.student_gflops + spent.teacher_gflops), rel=TOLERANCE)
    assert spent.teacher_gflops > 0.1 * spent.student_gflops, "else the test shows nothing"


def test_distillation_without_the_decoder_takes_more_steps_for_the_same_compute(open_run: OpenRun) -> None:
    run = open_run("task_kd", distill={"decoder_weight": 0.0})
    spent = compute_of(METHODS["task_kd"].model(run), run.bench.used.values())
    assert 1e9 * spent.student_gflops == pytest.approx(run.budget.total, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["control", *CONVERGED])
def test_a_u_net_becomes_a_bundle_like_a_student(method: str, open_run: OpenRun) -> None:
    run = open_run(method)
    bundle = exported(run)
    assert bundle.metrics["parity"]["probability_difference_worst"] < 1e-3
    card = (bundle.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"A small segmentation network, trained by `tskd` (method `{method}`)." in card
    trained_in = METHODS[method].model(run).path
    rebuilt, trained = (load_model(folder).state_dict() for folder in (bundle.path, trained_in))
    assert all(torch.equal(rebuilt[name], trained[name]) for name in trained)


def shapes(file: Path) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in load_file(file).items()}


def test_all_students_are_the_same_network(open_run: OpenRun) -> None:
    files = {name: METHODS[name].model(open_run(name)).path / "student.safetensors" for name in STUDENTS}
    expected = shapes(files["scratch"])
    assert [name for name, file in files.items() if shapes(file) != expected] == []


@pytest.mark.parametrize("method", [name for name in STUDENTS if METHODS[name].initialisation])
def test_pretraining_changes_the_encoder_and_fine_tuning_starts_there(method: str, open_run: OpenRun) -> None:
    run, start = open_run(method), METHODS[method].initialisation
    assert start is not None
    began = load_file(start(run).path / "student.safetensors")
    final = load_file(METHODS[method].model(run).path / "student.safetensors")
    random = run.finetuned(None)  # the same seed: it began where every start began
    name = "encoder.model.blocks.0.attn.qkv.weight"
    distance = (began[name] - final[name]).norm()
    assert 0 < distance < (load_file(random.path / "student.safetensors")[name] - began[name]).norm()


def test_pretrain_is_the_start_of_the_recipes_method(open_run: OpenRun) -> None:
    run = open_run("agnostic_kd")
    assert run_stage(run, "pretrain") == run.initialisations.distilled_agnostic
    with pytest.raises(UserError, match=r"method 'scratch' has no pre-training. Set method to one of: task_kd,"):
        run_stage(open_run("scratch"), "pretrain")


def test_task_agnostic_distillation_leaves_the_decoder_random(open_run: OpenRun) -> None:
    run = open_run("agnostic_kd")
    torch.manual_seed(0)
    first = load_file(run.initialisations.distilled_agnostic.path / "student.safetensors")
    second = load_file(run.initialisations.imagenet.path / "student.safetensors")
    decoder = [name for name in first if name.startswith("decoder.")]
    assert decoder
    assert all(torch.equal(first[name], second[name]) for name in decoder)


def test_weights_can_be_the_start_of_all_but_scratch(open_run: OpenRun, folder: Path) -> None:
    usual, changed = open_run("task_kd"), open_run("task_kd", start="weights")
    name = "encoder.model.blocks.3.mlp.fc1.weight"
    given = load_file(folder / f"{SMALL_VIT}.safetensors")[name.removeprefix("encoder.model.")]
    starts = [run.initialisations.distilled_by(run.teachers.adapted) for run in (usual, changed)]
    distances = [(load_file(start.path / "student.safetensors")[name] - given).norm() for start in starts]
    assert distances[1] < 0.5 * distances[0]
    assert changed.finetuned(None).path == usual.finetuned(None).path
    assert (
        changed.finetuned(changed.initialisations.imagenet).path == usual.finetuned(usual.initialisations.imagenet).path
    ), "trained once"


def test_several_teachers_answer_as_one_and_waste_no_label(folder: Path, open_run: OpenRun) -> None:
    """A member that saw its own fold, members that are the same, or a student that learns from one of them alone."""
    run = open_run("task_kd")
    several = run.recipe.teacher.model_copy(update={"members": 2, "adaptation": "auto"})
    labels = run.recipe.data.model_copy(update={"val_share": 0.0})
    run = Run(run.recipe.model_copy(update={"teacher": several, "data": labels}), run.out, run.runtime)
    (first, second), adapted = run.teachers.members, run.teachers.adapted
    assert len(run.prepared.rows("train")) == SETTINGS["data"]["labels"]
    assert not len(run.prepared.rows("val"))
    assert first.digest != second.digest
    assert {*first.metrics} >= {"held_out_dice"}
    assert "val_dice" not in first.metrics
    assert load_model(first.path).encoder.conv1[0].weight.requires_grad, (
        "a convolutional teacher trains all its weights"
    )
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mean = (
            sum(
                load_model(one.path)(looked).logits.sigmoid().flip(axes)
                for one in (first, second)
                for looked, axes in ((images, ()), (images.flip(3), (3,)))
            )
            / 4
        )
        assert torch.allclose(load_model(adapted.path)(images).logits.sigmoid(), mean, atol=1e-5)
    assert run.initialisations.distilled_by(adapted).manifest["inputs"]["teacher"] == adapted.digest
    spent = compute_of(adapted, run.bench.used.values()).teacher_gflops
    assert spent == pytest.approx(sum(one.metrics["teacher_gflops"] for one in (first, second)))


def test_members_without_folds_learn_from_all_labels_and_are_shared(open_run: OpenRun, tmp_path: Path) -> None:
    """A fold that is left out all the same, members that are the same, or a larger ensemble that trains them anew."""
    run = open_run("task_kd")

    def with_members(count: int) -> Run:
        config = run.recipe.teacher.model_copy(update={"members": count, "folds": False})
        return Run(run.recipe.model_copy(update={"teacher": config}), run.out, run.runtime)

    first, second = with_members(2).teachers.members
    assert first.digest != second.digest
    assert "held_out_dice" not in first.metrics
    assert [one.path for one in with_members(3).teachers.members[:2]] == [first.path, second.path]
    assert first.manifest["inputs"]["member"] == "0"
    everything = labels_without(run.prepared, None)
    assert len(everything.images) == SETTINGS["data"]["labels"], "validation included"


def test_teachers_of_different_kinds_answer_together_each_at_its_own_size(folder: Path, open_run: OpenRun) -> None:
    """A transformer that is left out, adapted like the first, or trained and asked at the first one's size."""
    run = open_run("task_kd")
    other = {
        "name": f"timm/{SMALL_VIT}", "weights": str(folder / f"{SMALL_VIT}.safetensors"), "pixels": "imagenet",
        "image_size": 2 * SIZE, "adaptation": "lora", "steps": 3, "batch_size": 2,
    }  # fmt: skip
    both = {**run.recipe.teacher.model_dump(), "adaptation": "full", "beside": [other], "augment": {"flip": "none"}}
    run = Run(build_recipe({**run.recipe.model_dump(), "teacher": both}, "test"), run.out, run.runtime)
    first, second = run.teachers.members
    assert (first.metrics["steps"], second.metrics["steps"]) == (4, 3)
    assert second.metrics["trained_parameters"] < first.metrics["trained_parameters"] / 10, "adapters and a decoder"
    assert Prepared(run.teachers.data.path).image_size == 2 * SIZE
    members = [load_model(one.path) for one in (first, second)]
    assert [member.image_size for member in members] == [SIZE, 2 * SIZE]
    images = torch.rand(1, 3, 2 * SIZE, 2 * SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answer = load_model(run.teachers.adapted.path)(images)
        mean = sum(member(images).logits.sigmoid() for member in members) / 2
        torch.testing.assert_close(answer.logits.sigmoid(), mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(answer.features, members[0](images).features)
    assert run.teachers.adapted.metrics["teacher"].count("1 x ") == 2
    student = run.initialisations.distilled_by(run.teachers.adapted)
    assert student.manifest["inputs"]["teacher"] == run.teachers.adapted.digest
    costs = [adaptation_flops(source.description) for source in run.teachers.sources]
    answers = run.total_compute - run.budget.total - (4 * 4 * costs[0] + 3 * 2 * costs[1])
    described = [source.description.bare() for source in run.teachers.sources]
    each = sum(inference_flops(build_model(one).eval(), one.image_size) for one in described)
    assert answers == len(run.transfer_set.images) * 2 * each, "both look at each image in each of its two views"


def test_a_list_of_teachers_has_no_lists_inside() -> None:
    nested = {"name": "offline", "beside": [{"name": "offline"}]}
    with pytest.raises(UserError, match="write them one after another"):
        build_recipe({"teacher": {"beside": [nested]}}, "test")


def test_a_teacher_in_the_list_is_refused_before_any_work_like_the_first() -> None:
    recipe = build_recipe({"teacher": {"name": "offline", "beside": [{"name": "timm/resnet10t"}]}}, "test")
    with pytest.raises(UserError, match=r"teacher.name=timm/resnet10t needs teacher.weights"):
        check_networks(recipe)


def test_in_a_second_round_the_student_answers_beside_the_teacher(open_run: OpenRun) -> None:
    """A second round that asks the teacher alone, or whose student is the first one."""
    first, second = open_run("task_kd"), open_run("task_kd", {"rounds": 2})
    assert first.initialisations.distilled.digest != second.initialisations.distilled.digest
    teachers = {one.digest for one in second.bench.used.values() if one.manifest["stage"] == "ensemble"}
    assert second.initialisations.distilled.manifest["inputs"]["teacher"] in teachers
    (together,) = (one for one in second.bench.used.values() if one.manifest["stage"] == "ensemble")
    members = together.manifest["inputs"]
    assert members["member_0"] == first.teachers.adapted.digest
    assert members["member_1"] == first.finetuned(first.initialisations.distilled).digest
    before = compute_of(first.finetuned(first.initialisations.distilled), first.bench.used.values())
    assert together.metrics["teacher_gflops"] == pytest.approx(sum(before), rel=1e-5), "earlier rounds are no gift"
