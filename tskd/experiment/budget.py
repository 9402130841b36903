"""Equal compute: what each method's student may spend, how many steps that is, and what a trained model has cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import nn

from tskd.artifacts import MADE_FROM, Artifact
from tskd.models.description import NetworkDescription
from tskd.models.flops import inference_flops, training_flops
from tskd.models.registry import adapt, build_model
from tskd.recipe.schema import DistillConfig, FinetuneConfig

BUDGET_RULE = (
    "In every arm the student has the same architecture and the same fine-tuning recipe (a pre-trained initialisation "
    "at a lower learning rate than random weights, lower still in early blocks), and the network that is trained gets "
    "the floating-point operations of the student's distillation and fine-tuning together, pre-training included, as "
    "counted by torch (2 a multiply-add; student_gflops), and scratch_total the teacher's as well; unet and "
    "unet_imagenet take steps of their own until they converge, unless their compute is equal; what only gives "
    "targets is told apart (teacher_gflops): a teacher's adaptation and answers, and the momentum encoder of MoCo v3. "
    "Making a transfer set, a diffusion model included, is data, not training: it is in no count of operations, and "
    "in the seconds of the arms that use it."
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


class Compute(NamedTuple):
    """What a trained model has cost, in thousand millions of floating-point operations."""

    student_gflops: float
    """Forward and backward passes of the network itself and of what is trained with it."""
    teacher_gflops: float
    """What gives targets: the teacher's adaptation and answers, or a momentum encoder."""


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


def answering_flops(description: NetworkDescription) -> int:
    """Return the operations of one image forward through a described network at its size."""
    return network_flops(description, _of_inference)


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


def steps_within(operations: int, flops_per_step: int) -> int:
    """Return how many whole steps the operations allow; at least 1."""
    return max(operations // flops_per_step, 1)


def compute_of(model: Artifact, artifacts: Iterable[Artifact]) -> Compute:
    """Return what a model's training and the trainings before it have cost, as their manifests say.

    ``artifacts`` are those that may have led to it, e.g. all that a run used. Each counts once and in full, also where
    other methods share it: it is the cost of the method alone.
    """
    # a fine-tuning that kept its start has the start's digest: nothing is made from it
    sources = {artifact.digest: artifact for artifact in artifacts if artifact.manifest["stage"] != "finetune"}
    found: dict[Path, Artifact] = {}
    coming = [model]
    while coming:
        artifact = coming.pop()
        found[artifact.path] = artifact
        inputs = artifact.manifest["inputs"]
        before = [sources[inputs[name]] for name in MADE_FROM if inputs.get(name) in sources]
        coming += [source for source in before if source.path not in found]
    sums = (sum(artifact.metrics.get(name, 0.0) for artifact in found.values()) for name in Compute._fields)
    return Compute(*(round(value, 3) for value in sums))
