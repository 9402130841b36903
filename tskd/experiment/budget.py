"""Equal compute: what each method's student may spend, and how many steps that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from torch import nn

from tskd.engine.batches import allowed_flips
from tskd.models.description import NetworkDescription
from tskd.models.ensemble import mirrors
from tskd.models.flops import inference_flops, training_flops
from tskd.models.registry import adapt, build_model
from tskd.recipe.schema import DistillConfig, FinetuneConfig, Recipe, TeacherConfig, TrainConfig
from tskd.stages.cache import cache_pays

Config = TypeVar("Config", bound=TrainConfig)
BUDGET_RULE = (
    "In every arm the student has the same architecture and the same fine-tuning recipe (a pre-trained initialisation "
    "at a lower learning rate than random weights, lower still in early blocks), and the network that is trained gets "
    "the floating-point operations of the student's distillation and fine-tuning together, pre-training included, as "
    "counted by torch (2 a multiply-add; student_gflops), and scratch_total the teacher's as well; unet and "
    "unet_imagenet take steps of their own until they converge, unless their compute is equal; what only gives "
    "targets is told apart (teacher_gflops): a teacher's adaptation and answers, the momentum encoder of MoCo v3, and "
    "the student's moving average that consistency and copy_paste learn from. Making a transfer set, a diffusion "
    "model included, is data, not training: it is in no count of operations, and in the seconds of the arms that use "
    "it."
)


@dataclass(frozen=True)
class Budget:
    """Floating-point operations that training a student may take."""

    flops_per_image: int
    """One image forward and backward through the student."""
    pretraining: int
    """What distillation spends on the student, its projection left out."""
    total: int
    """With fine-tuning."""


def network_flops(description: NetworkDescription, count: Callable[[nn.Module, int], int] = training_flops) -> int:
    """Return what ``count`` says of a described network at its size, by default one image forward and backward.

    Each answer is kept for the life of the process: a plan of many runs asks for the same few networks.
    """
    return _counted(description.bare(), count)


@cache
def _counted(description: NetworkDescription, count: Callable[[nn.Module, int], int]) -> int:
    return count(build_model(description), description.image_size)


def adaptation_flops(description: NetworkDescription) -> int:
    """Return the operations of one image forward and backward through a teacher that is adapted as described."""
    return _counted_adapted(description.bare())


def _of_inference(model: nn.Module, image_size: int) -> int:
    return inference_flops(model.eval(), image_size)


@cache
def _counted_adapted(description: NetworkDescription) -> int:
    model = build_model(description)
    adapt(model, description)
    return training_flops(model, description.image_size)


def student_budget(distill: DistillConfig, finetune: FinetuneConfig, *, flops_per_image: int) -> Budget:
    """Return the budget that a recipe sets; ``flops_per_image``: the student's forward and backward pass."""
    before = distill.steps * distill.batch_size * flops_per_image
    return Budget(flops_per_image, before, before + finetune.steps * finetune.batch_size * flops_per_image)


def teacher_compute(recipe: Recipe, descriptions: Sequence[NetworkDescription], *, images: int) -> int:
    """Return the operations of the described kinds of teacher in task-specific distillation on so many transfer images.

    They are those of their adaptation, every step that the recipe allows, and of their answers.
    """
    kinds, lessons = recipe.teacher.kinds, recipe.distill
    adaptation = sum(
        kind.members * kind.steps * adaptation_step(kind, description)
        for kind, description in zip(kinds, descriptions, strict=True)
    )
    looks = looks_at(recipe.teacher, descriptions[0].classes)
    return adaptation + views_answered(lessons, images) * looks * _answer(recipe.teacher, descriptions)


def earlier_rounds_compute(
    recipe: Recipe, descriptions: Sequence[NetworkDescription], student: NetworkDescription, *, images: int, each: int
) -> int:
    """Return the operations of all rounds of distillation but one, of which ``each`` is what a round's student takes.

    Every round has a student, and beside the teachers the student before it answers: for mirrored images too.
    """
    looks = 1 + len(mirrors(allowed_flips(recipe.teacher.augment.flip, student.classes)))
    answer = _answer(recipe.teacher, descriptions) + network_flops(student, _of_inference)
    return (recipe.distill.rounds - 1) * (each + views_answered(recipe.distill, images) * looks * answer)


def views_answered(lessons: DistillConfig, images: int) -> int:
    """Return how many views of so many transfer images the teacher is asked about."""
    return images * lessons.views if cache_pays(lessons, images) else lessons.steps * lessons.batch_size


def _answer(config: TeacherConfig, descriptions: Sequence[NetworkDescription]) -> int:
    """Return the operations of one look of all networks of the described kinds of teacher."""
    return sum(
        kind.members * network_flops(description, _of_inference)
        for kind, description in zip(config.kinds, descriptions, strict=True)
    )


def adaptation_step(config: TeacherConfig, description: NetworkDescription) -> int:
    """Return the operations of a step of adaptation; for half of the images without labels a moving average answers."""
    answers = 0 if config.unlabelled is None else config.batch_size // 2 * network_flops(description, _of_inference)
    return config.batch_size * adaptation_flops(description) + answers


def looks_at(config: TeacherConfig, classes: Sequence[str]) -> int:
    """Return how often a network looks at an image for one answer of the teacher: at its mirrored images too."""
    together = sum(kind.members for kind in config.kinds) > 1 or config.mirror
    return 1 + len(mirrors(allowed_flips(config.augment.flip, classes))) if together else 1


def lasting(config: Config, operations: int, flops_per_image: int) -> Config:
    """Return the settings of a training with as many whole steps as the operations allow; at least 1."""
    steps = max(operations // (config.batch_size * flops_per_image), 1)
    return config.model_copy(update={"steps": steps})


def at_most(config: Config, operations: int, flops_per_image: int) -> Config:
    """Return the settings of a training with no more steps than the operations allow; at least 1."""
    allowed = lasting(config, operations, flops_per_image)
    return allowed if allowed.steps < config.steps else config
