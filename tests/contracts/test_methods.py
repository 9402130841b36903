"""Every method of the recipe: it is accepted by name, says what it needs, and ends with a model of its own."""

from __future__ import annotations

import pytest

from tskd.config import Recipe, load_recipe
from tskd.errors import UserError
from tskd.methods import METHODS, check_names


class Name(str):
    """Stands for an artifact, or for the method of a run that answers with one."""

    def __call__(self, *inputs: object, **settings: object) -> Name:
        return Name(f"{self}{inputs}{settings or ''}")


class Recorder:
    """A run whose artifacts are their own names; it notes which were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Name:
        self.asked.append(name)
        return Name(name)


def model_of(method: str) -> str:
    return str(METHODS[method].model(Recorder()))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_accepted_by_name(method: str) -> None:
    check_names(load_recipe(None, [f"method={method}", f"rivals=[{method}]"]))


def test_no_two_methods_end_with_the_same_model_or_title() -> None:
    assert len({model_of(method) for method in METHODS}) == len(METHODS)
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_task_kd_fine_tunes_what_was_distilled_and_scratch_starts_from_nothing() -> None:
    assert model_of("task_kd") == "finetuned('distilled',)"
    assert model_of("scratch") == "finetuned(None,)"


@pytest.mark.parametrize("method", ["scratch", "control"])
def test_a_rival_without_distillation_never_asks_for_the_teacher(method: str) -> None:
    run = Recorder()
    METHODS[method].model(run)  # type: ignore[arg-type]
    assert set(run.asked) <= {"finetuned", "control"}


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("method=taskkd", "method"),
        ("rivals=[scratch, taskkd]", "rivals"),
        ("student.decoder=unet", "student.decoder"),
        ("distill.encoder_loss=l2", "distill.encoder_loss"),
        ("distill.decoder_loss=l2", "distill.decoder_loss"),
    ],
)
def test_a_name_that_nothing_answers_to_is_refused_before_any_work(override: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}: '\w+' is not known. Choose one of: \w+"):
        check_names(load_recipe(None, [override]))


def test_the_default_recipe_names_things_that_exist() -> None:
    check_names(Recipe())
