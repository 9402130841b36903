"""Whether the networks that a recipe asks for can be built; it is tried before any work, since it takes no second."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from tskd.errors import UserError
from tskd.experiment.methods import asks_for_teacher, asks_for_weights
from tskd.models.description import AdaptationName, NetworkDescription
from tskd.models.lora import set_adaptation
from tskd.models.mae import require_transformer
from tskd.models.registry import build_model
from tskd.models.timm_segmenter import TimmSegmenter
from tskd.models.weight_files import explain_pixels, identify, require_pixels
from tskd.models.weights import find_sam, find_weights
from tskd.recipe.schema import OFFLINE, RANDOM, EngineConfig, Recipe, TeacherConfig, TrainConfig
from tskd.stages.diffusion import require_image_size
from tskd.stages.students import describe_student
from tskd.stages.teacher import adaptation_of, describe_teacher
from tskd.stages.unets import describe_unet_imagenet

UNVALIDATED = ("diffusion", "distill", "mae", "moco_v3")
"""Sections of trainings that learn without labels, and are not selected on any."""


def check_networks(recipe: Recipe) -> None:
    """Raise UserError where the student's network or its weight file does not fit, ``mae`` cannot train it, the
    teacher's weight file is not what the settings say, a timm teacher cannot take its image size or be adapted, a part
    of a batch has nothing to mix, patience has nothing to wait for, or the diffusion model that is asked for cannot
    draw images of its size."""
    student = recipe.student
    weights = student.weights if asks_for_weights(recipe) else None
    if weights is not None and weights != OFFLINE:
        require_pixels(identify(Path(weights), student.backbone), student.pixels, "student.pixels")
    description = describe_student(student, weights=weights, classes=["any"], image_size=recipe.data.image_size)
    _try_to_build(description, masked="mae" in (recipe.method, *recipe.baselines))
    for teacher in recipe.teacher.kinds:
        _check_teacher(teacher, recipe.data.image_size)
    _check_unets(recipe)
    _check_halves(recipe)
    _check_mix(recipe)
    _check_patience(recipe)
    if recipe.transfer.synthetic:
        require_image_size(recipe.diffusion, recipe.data.image_size)


def _check_halves(recipe: Recipe) -> None:
    """Raise UserError where a part of a batch, half of which has no labels, would have nothing to mix."""
    taught: list[tuple[str, TrainConfig]] = [("teacher", kind) for kind in recipe.teacher.kinds if kind.unlabelled]
    if {"consistency", "copy_paste"}.intersection((recipe.method, *recipe.baselines)):
        taught.append(("self_training", recipe.self_training))
    for section, config in taught:
        parts = _parts(config, recipe.engine)
        if config.batch_size % (2 * parts) or config.batch_size < 4 * parts:
            raise UserError(
                f"{section}.batch_size={config.batch_size}: half of each batch has no labels, and each of its parts "
                f"({parts}, accumulate times processes) mixes two images of either kind at least. Choose a multiple of "
                f"{2 * parts} from {4 * parts} on."
            )


def _check_mix(recipe: Recipe) -> None:
    """Raise UserError where distillation would mix an image with itself, the next one of its part of the batch."""
    lessons, parts = recipe.distill, _parts(recipe.distill, recipe.engine)
    if lessons.mix > 0 and lessons.batch_size < 2 * parts:
        raise UserError(
            f"distill.batch_size={lessons.batch_size}: distill.mix={lessons.mix:g} mixes the images of each part of a "
            f"batch ({parts}, accumulate times processes), and one image alone has none to mix with. Choose "
            f"{2 * parts} or more, fewer parts, or distill.mix=0."
        )


def _check_patience(recipe: Recipe) -> None:
    """Raise UserError where a training is told to stop early that has no validation to tell when.

    Here, not where a recipe is read: those of finished runs are read as well, and it did no harm there.
    """
    given = [name for name in UNVALIDATED if getattr(recipe, name).patience is not None]
    if given:
        raise UserError(
            f"{', '.join(f'{name}.patience' for name in given)}: nothing is validated in this training, so it would "
            "never stop early. Leave patience out (null), and give fewer steps if it takes too long."
        )


def _parts(config: TrainConfig, engine: EngineConfig) -> int:
    """Return how many parts a batch is cut into, over all processes; what mixes images sees one of them at a time."""
    return (config.accumulate or 1) * engine.devices * engine.num_nodes


def _check_teacher(teacher: TeacherConfig, image_size: int) -> None:
    backbone = teacher.name.partition("/")[2]
    there = teacher.weights is not None and (teacher.weights == RANDOM or find_weights(teacher.weights))
    if there and not backbone:
        backbone = describe_teacher(teacher, download=False).arguments.get("backbone", "")
    if backbone:
        size = teacher.image_size or image_size
        adaptation, checkpointing = adaptation_of(teacher, backbone), teacher.gradient_checkpointing
        _try_to_adapt(backbone, size, adaptation, teacher.rank, checkpointing=checkpointing)
    if there or teacher.name.startswith("timm/"):  # its size comes first: it is told without the file
        describe_teacher(teacher, download=False)


def remarks_on_weights(recipe: Recipe) -> tuple[str, ...]:
    """Return what a person should know of how the recipe's weight files on this machine were understood."""
    student = recipe.student
    said = []
    for teacher in recipe.teacher.kinds if asks_for_teacher(recipe) else ():
        there = find_sam(None) if teacher.weights is None else find_weights(teacher.weights)
        if there is not None and teacher.name != OFFLINE:
            said.append(describe_teacher(teacher, download=False).remark)
    if asks_for_weights(recipe) and student.weights not in (None, OFFLINE):
        known = identify(Path(student.weights), student.backbone)
        said.append(explain_pixels(known, student.pixels, "student.pixels"))
    return tuple(filter(None, said))


def _check_unets(recipe: Recipe) -> None:
    names, size = (recipe.method, *recipe.baselines), recipe.data.image_size
    if any(name.startswith("control") for name in names) or recipe.control.enabled:
        _check_levels("control", recipe.control.channels, size)
    if "unet" in names and recipe.unet.channels is not None:
        _check_levels("unet", recipe.unet.channels, size)
    if "unet_imagenet" in names:
        config = recipe.unet_imagenet
        if config.weights != OFFLINE:
            require_pixels(identify(Path(config.weights), config.backbone), config.pixels, "unet_imagenet.pixels")
        description = describe_unet_imagenet(config, classes=["any"], image_size=size)
        _try_to_build(description, masked=False)


def _check_levels(section: str, channels: Sequence[int], image_size: int) -> None:
    """Raise UserError where a U-Net's lowest level would be smaller than 2 x 2 pixels, which no norm can work on."""
    step = 2 ** (len(channels) - 1)
    if image_size % step or image_size // step < 2:
        raise UserError(
            f"{section}.channels: {len(channels)} levels halve data.image_size {len(channels) - 1} times, and "
            f"{image_size} does not allow that with 2 pixels left. Give fewer channels or a larger image size."
        )


@cache
def _try_to_build(description: NetworkDescription, *, masked: bool) -> None:
    """Build and forget; a plan of many runs asks for the same few students."""
    student = build_model(description)
    if masked:
        require_transformer(student)


@cache
def _try_to_adapt(
    backbone: str, image_size: int, adaptation: AdaptationName, rank: int, *, checkpointing: bool
) -> None:
    """Build a teacher without numbers, whatever its size, and give it its adapters."""
    with torch.device("meta"):
        teacher = TimmSegmenter(backbone, "plain", classes=1, image_size=image_size)
        if checkpointing:
            teacher.checkpoint_gradients()
        set_adaptation(teacher, adaptation, rank=rank)
