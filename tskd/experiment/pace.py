"""How long a run takes on this machine: by a training step that is timed here, and by the operations of the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from tskd.console import counted
from tskd.data.tiles import count_looks
from tskd.engine import open_runtime
from tskd.engine.bf16 import slow_operators_avoided
from tskd.errors import UserError
from tskd.experiment.budget import adaptation_step, looks_at, network_flops, views_answered
from tskd.experiment.facts import Facts
from tskd.experiment.methods import METHODS, asks_for_teacher, baselines_of
from tskd.losses.segmentation import label_loss
from tskd.models.description import NetworkDescription
from tskd.models.registry import build_model
from tskd.recipe.schema import EngineConfig, Recipe, TrainConfig
from tskd.stages.prepare import MOST_TILES
from tskd.stages.students import describe_student
from tskd.stages.teacher import choose_teacher
from tskd.stages.unets import describe_unet, describe_unet_imagenet

BATCH = 16
TIMED = 3
"""Steps whose median counts, after a first one."""
LOOKS = 8
"""How often a test image, or each tile of it, is looked at in a run: by the teacher mirrored three ways too, by student
and U-Net, and by the student without its features and with another image's."""
PASS = 1 / 3
"""What a look takes, as a share of a training step of one image: there is no backward pass."""


class Part(NamedTuple):
    """Something of a run that takes time."""

    name: str
    what: str
    minutes: float


class Pace(NamedTuple):
    """How fast this machine works on networks and data that were chosen."""

    step: float
    """Seconds of a training step of ``BATCH`` images."""
    answers: float
    """Minutes for the teacher's answers on all images, and for the looks at the tiles of the test's; of whole images
    those are no time."""
    teacher: float = 1.0
    """What a step of all networks of the teacher takes, by their operations, where one of the student takes 1."""

    @classmethod
    def of(cls, facts: Facts, recipe: Recipe) -> Pace:
        """Measure it on this machine."""
        side, tile = recipe.data.image_size, recipe.data.tile
        described = describe_student(recipe.student, weights=None, classes=["any"], image_size=side)
        step = step_seconds(described, BATCH, _alone(recipe.engine))
        looks = 0.0 if tile is None else facts.tested * LOOKS * count_looks((facts.side, facts.side), tile)
        teacher = _teacher_by_student(recipe, described)
        if asks_for_teacher(recipe):
            rows = 1 if tile is None else min(count_looks((facts.side, facts.side), tile), MOST_TILES)
            views = views_answered(recipe.distill, facts.shown * rows) * recipe.distill.rounds
            looks += teacher * views * looks_at(recipe.teacher, described.classes)
        return cls(step, looks * step / BATCH * PASS / 60, teacher)

    def seconds(self, config: TrainConfig) -> float:
        """Return what a step of a training takes."""
        return self.step * config.batch_size / BATCH

    def minutes(self, recipe: Recipe) -> float:
        """Return about how long a run's trainings and answers take."""
        return sum(part.minutes for part in self.parts(recipe))

    def parts(self, recipe: Recipe) -> Iterator[Part]:
        """Yield about how long each of a run's trainings, and its answers, take."""
        taught = 0.0
        if asks_for_teacher(recipe):
            config = recipe.teacher
            networks = sum(kind.members for kind in config.kinds)
            each = f", {networks} networks" if networks > 1 else ""
            taught = config.steps * self.seconds(config) * self.teacher / 60
            yield Part("teacher", f"{counted(config.steps, 'step')}{each}", taught)
        if self.answers:
            asked = ["of the teacher"] * asks_for_teacher(recipe) + ["on tiles of the test"] * bool(recipe.data.tile)
            yield Part("answers", ", ".join(asked), self.answers)
        student = sum(config.steps * self.seconds(config) for config in (recipe.distill, recipe.finetune)) / 60
        for name in trained(recipe):
            yield self._own(recipe, name) or _as_the_student(recipe, name, student, student + taught + self.answers)

    def _own(self, recipe: Recipe, name: str) -> Part | None:
        """Return a U-Net whose steps are its own, which are timed; None: it is trained as the student is."""
        sizes: dict[str, Any] = {"classes": ["any"], "image_size": recipe.data.image_size}
        if name == "unet" and recipe.unet.compute == "own":
            config: TrainConfig = recipe.unet
            described = describe_unet(recipe.unet, **sizes)
        elif name == "unet_imagenet" and recipe.unet_imagenet.compute == "own":
            config = recipe.unet_imagenet
            described = describe_unet_imagenet(recipe.unet_imagenet, **sizes)
        else:
            return None
        step = step_seconds(described, config.batch_size, _alone(recipe.engine))
        return Part(METHODS[name].title, counted(config.steps, "step"), config.steps * step / 60)


def trained(recipe: Recipe) -> list[str]:
    """Return the methods that a run trains, the teacher aside."""
    return [name for name in (recipe.method, *baselines_of(recipe)) if name != "teacher"]


def students(recipe: Recipe) -> int:
    """Return how many networks take the student's time: its baselines do, and every round has a student."""
    return sum(_rounds(recipe, name) for name in trained(recipe))


def _rounds(recipe: Recipe, name: str) -> int:
    return recipe.distill.rounds if name == "task_kd" else 1


def _as_the_student(recipe: Recipe, name: str, minutes: float, with_teacher: float) -> Part:
    """Return a method that is trained with the student's compute."""
    method, rounds = METHODS[name], _rounds(recipe, name)
    if name == "scratch_total":
        return Part(method.title, "the compute of student and teacher", with_teacher)
    if method.initialisation is None or not (method.teacher or name == "agnostic_kd"):
        return Part(method.title, "the student's compute", minutes)
    steps = f"{recipe.distill.steps} + {counted(recipe.finetune.steps, 'step')}"
    return Part(method.title, steps + (f", {rounds} rounds" if rounds > 1 else ""), rounds * minutes)


def step_seconds(description: NetworkDescription, batch: int, engine: EngineConfig) -> float:
    """Return the seconds of a training step of a described network on this machine: the median after a first one."""
    runtime = open_runtime(engine)
    device = runtime.fabric.device
    model = build_model(description.bare()).to(device).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, description.image_size, description.image_size, generator=generator).to(device)
    masks = (images[:, 0] > 0.5).long()
    taken = []
    with slow_operators_avoided(model, runtime):
        for _ in range(1 + TIMED):
            began = time.perf_counter()
            with runtime.fabric.autocast():
                loss = label_loss(model(images).logits, masks)["loss"]
            loss.backward()
            loss.item()  # waits for a GPU
            taken.append(time.perf_counter() - began)
    return float(np.median(taken[1:]))


def _alone(engine: EngineConfig) -> EngineConfig:
    return engine.model_copy(update={"devices": 1, "num_nodes": 1, "strategy": "auto", "compile": False})


def _teacher_by_student(recipe: Recipe, student: NetworkDescription) -> float:
    """Return the operations of an image in a step of all networks of the teacher, by those of the student.

    Of weights that are not there nothing is known; the run says so before it begins.
    """
    step = 0
    for kind in recipe.teacher.kinds:
        try:
            described = choose_teacher(kind, student.classes, student.image_size, download=False).description
        except UserError:
            return 1.0
        step += kind.members * adaptation_step(kind, described)
    return step / (network_flops(student) * recipe.teacher.batch_size)
