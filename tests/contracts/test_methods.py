"""Every method of the recipe: it is accepted by name, says what it needs, and ends with a model of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tskd.errors import UserError
from tskd.experiment.methods import METHODS, check_names
from tskd.recipe.schema import Recipe, load_recipe


class Name(str):
    """Stands for an artifact, or for the method of a run that answers with one."""

    def __call__(self, *inputs: object, **settings: object) -> Name:
        return Name(f"{self}{inputs}{settings or ''}")

    def __getattr__(self, name: str) -> Name:
        return Name(f"{self}.{name}")


class Recorder:
    """A run, or its teachers, whose artifacts are their own names; it notes which were asked for."""

    def __init__(self, owner: str = "", asked: list[str] | None = None) -> None:
        self.owner = owner
        self.asked: list[str] = [] if asked is None else asked

    @property
    def teachers(self) -> Recorder:
        return Recorder("teachers.", self.asked)

    def __getattr__(self, name: str) -> Name:
        self.asked.append(self.owner + name)
        return Name(self.owner + name)


def model_of(method: str) -> str:
    return str(METHODS[method].model(Recorder()))  # type: ignore[arg-type]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file where a recipe says that weights are; nothing reads it here."""
    path = tmp_path / "weights.safetensors"
    path.touch()
    return path


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_accepted_by_name(method: str, weights: Path) -> None:
    check_names(load_recipe(None, [f"method={method}", f"baselines=[{method}]", f"student.weights={weights}"]))


def test_no_two_methods_end_with_the_same_model_or_title() -> None:
    assert len({model_of(method) for method in METHODS}) == len(METHODS)
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_asks_for_an_adapted_teacher_only_if_it_says_so(method: str) -> None:
    run, says = Recorder(), METHODS[method].teacher
    METHODS[method].model(run)  # type: ignore[arg-type]
    named = set() if says is None else {str(says(Recorder()))}  # type: ignore[arg-type]
    its_own = {"teachers.adapted"} if method == "teacher" else set()
    assert {name for name in run.asked if name.startswith("teachers.")} <= named | its_own


@pytest.mark.parametrize("method", [name for name in sorted(METHODS) if METHODS[name].initialisation])
def test_a_start_is_what_is_fine_tuned(method: str) -> None:
    start = METHODS[method].initialisation
    assert start is not None
    assert model_of(method).startswith(f"finetuned({start(Recorder())!r},")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("method=taskkd", "method"),
        ("baselines=[scratch, taskkd]", "baselines"),
        ("student.decoder=unetpp", "student.decoder"),
        ("distill.encoder_loss=l2", "distill.encoder_loss"),
        ("distill.decoder_loss=l2", "distill.decoder_loss"),
    ],
)
def test_a_name_that_nothing_answers_to_is_refused_before_any_work(override: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}: '\w+' is not known. Choose one of: \w+"):
        check_names(load_recipe(None, [override]))


def test_the_default_recipe_names_things_that_exist() -> None:
    check_names(Recipe())


@pytest.mark.parametrize(
    "overrides", [["method=imagenet"], ["baselines=[scratch, imagenet]"], ["student.initialisation=weights"]]
)
def test_weights_that_are_needed_and_not_named_are_asked_for(overrides: list[str]) -> None:
    with pytest.raises(UserError, match=r"needs student.weights: the path of a weight file of vit_tiny_patch16_224"):
        check_names(load_recipe(None, overrides))


@pytest.mark.parametrize("who", ["method=unet_imagenet", "baselines=[unet_imagenet]"])
def test_weights_of_the_u_net_that_are_not_there_are_named(who: str, tmp_path: Path) -> None:
    absent = f"unet_imagenet.weights={tmp_path / 'absent.safetensors'}"
    check_names(load_recipe(None, [absent]))
    with pytest.raises(UserError, match=r"unet_imagenet.weights: there is no file .*absent.safetensors"):
        check_names(load_recipe(None, [who, absent]))


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"student.weights: there is no file .*absent.safetensors"):
        check_names(load_recipe(None, ["method=imagenet", f"student.weights={tmp_path / 'absent.safetensors'}"]))


def test_weights_that_would_not_be_used_are_refused() -> None:
    """Laptop.yaml names the offline teacher: SAM's folder alone would change nothing."""
    with pytest.raises(
        UserError, match=r"teacher.weights: the offline teacher has weights of its own.*teacher.name=sam"
    ):
        check_names(load_recipe(None, ["teacher.name=offline", "teacher.weights=sam-vit-base"]))


@pytest.mark.parametrize("name", ["agnostic_kd", "task_kd_probe"])
@pytest.mark.parametrize("key", ["method={}", "baselines=[scratch, {}]"])
def test_a_teacher_that_knows_nothing_teaches_nothing_before_it_is_adapted(name: str, key: str) -> None:
    teacher = ["teacher.name=timm/resnet10t", "teacher.adaptation=full", "teacher.weights=random"]
    with pytest.raises(UserError, match=rf"^{name}: .* Give the weights of a pretrained teacher, or leave {name} out"):
        check_names(load_recipe(None, [*teacher, key.format(name)]))
    check_names(load_recipe(None, [*teacher, "method=task_kd", "baselines=[scratch]"]))
