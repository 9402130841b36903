"""Every method of the recipe: it is accepted by name, says what it needs, and starts the student in its own way."""

from __future__ import annotations

import pytest

from tskd.config import Recipe, load_recipe
from tskd.errors import UserError
from tskd.pipeline import METHODS, check_names


class Name(str):
    """Stands for an artifact, or for the method of a run that answers with one."""

    def __call__(self, *choices: object) -> Name:
        return Name(f"{self}{choices}")


class Recorder:
    """A run whose artifacts are their own names; it notes which were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Name:
        self.asked.append(name)
        return Name(name)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_accepted_by_name(method: str) -> None:
    check_names(load_recipe(None, [f"method={method}", f"rivals=[{method}]"]))


def test_no_two_methods_start_the_student_alike() -> None:
    starts = {method: METHODS[method](Recorder()) for method in METHODS}  # type: ignore[arg-type]
    assert len(set(starts.values())) == len(METHODS)
    assert starts["scratch"] is None
    assert starts["task_kd"] == "distilled"


def test_a_rival_without_distillation_never_asks_for_the_teacher() -> None:
    run = Recorder()
    METHODS["scratch"](run)  # type: ignore[arg-type]
    assert run.asked == []


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
