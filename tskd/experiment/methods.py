"""The methods that are compared: each says, in artifacts of a run, how its final model comes about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tskd.errors import UserError, require_file
from tskd.losses.distance import DECODER_LOSSES, ENCODER_LOSSES
from tskd.models.backbones import NO_ENCODER
from tskd.models.decoders import DECODERS
from tskd.recipe.explanations import shown
from tskd.recipe.schema import OFFLINE, RANDOM

if TYPE_CHECKING:
    from tskd.artifacts import Artifact
    from tskd.experiment.run import Run
    from tskd.recipe.schema import Recipe


Make = Callable[["Run"], "Artifact"]
"""Asks a run for an artifact; asking computes what it needs."""


@dataclass(frozen=True)
class Method:
    """A way to a segmentation model."""

    title: str
    """As tables and reports call it."""
    model: Make
    """The trained model, ready to be scored."""
    initialisation: Make | None = None
    """The student before fine-tuning; None: there is none."""
    teacher: Make | None = None
    """The adapted teacher whose answers it learns; None: it never needs one."""
    ships: bool = True
    """Its model is small enough for a clinic's machine: ``tskd run`` ends with it in a bundle."""


def _pretrained(title: str, initialisation: Make, *, teacher: Make | None = None) -> Method:
    """Return the method that fine-tunes a pre-trained initialisation."""
    return Method(title, lambda run: run.finetuned(initialisation(run)), initialisation, teacher)


METHODS: dict[str, Method] = {
    "teacher": Method("teacher", lambda run: run.teachers.adapted, ships=False),
    "task_kd": _pretrained(
        "task-specific distillation",
        lambda run: run.initialisations.distilled,
        teacher=lambda run: run.teachers.adapted,
    ),
    "task_kd_probe": _pretrained(
        "task-specific distillation, probed teacher",
        lambda run: run.initialisations.distilled_by(run.teachers.probed),
        teacher=lambda run: run.teachers.probed,
    ),
    "agnostic_kd": _pretrained("task-agnostic distillation", lambda run: run.initialisations.distilled_agnostic),
    "mae": _pretrained("masked autoencoder", lambda run: run.initialisations.pretrained(run.recipe.mae)),
    "moco_v3": _pretrained("MoCo v3", lambda run: run.initialisations.pretrained(run.recipe.moco_v3)),
    "pseudo_label": _pretrained(
        "student on pseudo-labels",
        lambda run: run.initialisations.pseudo_labelled,
        teacher=lambda run: run.teachers.adapted,
    ),
    "consistency": Method("weak-to-strong consistency", lambda run: run.baselines.self_trained("cut_mix")),
    "copy_paste": Method("bidirectional copy-paste", lambda run: run.baselines.self_trained("copy_paste")),
    "imagenet": Method(
        "student from ImageNet",
        lambda run: run.finetuned(
            run.initialisations.imagenet, within=run.budget.total
        ),  # it starts from what cost this run nothing
        lambda run: run.initialisations.imagenet,
    ),
    "scratch": Method("student from scratch", lambda run: run.finetuned(None, within=run.budget.total)),
    "scratch_total": Method(
        "student from scratch with the teacher's compute too",
        lambda run: run.finetuned(None, within=run.total_compute),
    ),
    "control": Method("control (U-Net)", lambda run: run.baselines.control),
    "control_pseudo": Method(
        "control (U-Net) with pseudo-labels",
        lambda run: run.baselines.control_pseudo,
        teacher=lambda run: run.teachers.adapted,
    ),
    "unet": Method("U-Net of nnU-Net's size", lambda run: run.baselines.unet),
    "unet_imagenet": Method("U-Net from ImageNet", lambda run: run.baselines.unet_imagenet),
}
"""The names that ``method`` and ``baselines`` of a recipe may have."""


def baselines_of(recipe: Recipe) -> list[str]:
    """Return the methods that are trained beside the recipe's own."""
    controls = ("control",) if recipe.control.enabled else ()
    return [name for name in dict.fromkeys((*recipe.baselines, *controls)) if name != recipe.method]


def require_small(recipe: Recipe) -> None:
    """Raise UserError for a method whose model is too large to ship."""
    if not METHODS[recipe.method].ships:
        small = ", ".join(name for name, method in METHODS.items() if method.ships)
        raise UserError(
            f"method: {recipe.method!r} is what students learn from, and a run ends with a student or a U-Net to ship; "
            f"the teacher's scores are in every run. Choose one of: {small}"
        )


_ENCODERS_ALONE = ("agnostic_kd", "mae", "moco_v3", "imagenet")
"""Methods that start from an encoder, the decoder being random."""
_FROM_THE_UNADAPTED = ("agnostic_kd", "task_kd_probe")
"""Methods whose teacher's encoder is as it was before the labels."""


def check_names(recipe: Recipe) -> None:
    """Raise UserError for a name that nothing answers to or weights that are not there, before any work."""
    choices: tuple[tuple[str, str, Mapping[str, object]], ...] = (
        ("method", recipe.method, METHODS),
        *(("baselines", baseline, METHODS) for baseline in recipe.baselines),
        ("student.decoder", recipe.student.decoder, DECODERS),
        ("distill.encoder_loss", recipe.distill.encoder_loss, ENCODER_LOSSES),
        ("distill.decoder_loss", recipe.distill.decoder_loss, DECODER_LOSSES),
    )
    for key, name, known in choices:
        if name not in known:
            raise UserError(f"{key}: {shown(name)} is not known. Choose one of: {', '.join(sorted(known))}")
    _check_teacher_weights(recipe)
    _check_student_weights(recipe)
    if "unet_imagenet" in (recipe.method, *recipe.baselines):
        _require_file(recipe.unet_imagenet.weights, "unet_imagenet.weights")


def asks_for_weights(recipe: Recipe) -> str | None:
    """Return what of a recipe starts from ``student.weights``, in its words; None: nothing does."""
    if "imagenet" in (recipe.method, *recipe.baselines):
        return "imagenet"
    return "student.initialisation=weights" if recipe.student.initialisation == "weights" else None


def asks_for_teacher(recipe: Recipe) -> bool:
    """Tell whether a method of a recipe looks at images through the teacher."""
    names = (recipe.method, *recipe.baselines)
    return any(METHODS[name].teacher or name in ("teacher", *_FROM_THE_UNADAPTED) for name in names)


def _check_teacher_weights(recipe: Recipe) -> None:
    if any(kind.name == OFFLINE and kind.weights is not None for kind in recipe.teacher.kinds):
        raise UserError(
            "teacher.weights: the offline teacher has weights of its own, and these would not be used. Say whose they "
            "are: teacher.name=sam or teacher.name=timm/<backbone>; or leave teacher.weights out."
        )
    untaught = [name for name in (recipe.method, *recipe.baselines) if name in _FROM_THE_UNADAPTED]
    if recipe.teacher.weights == RANDOM and untaught:
        raise UserError(
            f"{untaught[0]}: the teacher's encoder teaches what it knows before it has seen a label, and with "
            "teacher.weights=random that is nothing. Give the weights of a pretrained teacher, or leave "
            f"{untaught[0]} out."
        )


def _check_student_weights(recipe: Recipe) -> None:
    student, wanted = recipe.student, asks_for_weights(recipe)
    pretrained = [name for name in (recipe.method, *recipe.baselines) if name in _ENCODERS_ALONE]
    if student.backbone == NO_ENCODER and (pretrained or wanted):
        raise UserError(
            f"{pretrained[0] if pretrained else wanted} starts from a trained encoder, and with "
            f"student.backbone={NO_ENCODER} there is none. Name a backbone, or choose another method."
        )
    if student.weights is None and wanted:
        raise UserError(
            f"{wanted} needs student.weights: the path of a weight file of {student.backbone} with timm's names "
            "(.safetensors, or .pth with tensors only). Nothing is downloaded: where there is network, get it from the "
            f"page of timm/{student.backbone} on the Hugging Face hub and copy model.safetensors to this machine. "
            f"Without network: student.weights={OFFLINE}, student.backbone=tf_efficientnet_lite0 and "
            "student.decoder=pyramid."
        )
    if student.weights is not None:
        _require_file(student.weights, "student.weights")


def _require_file(weights: str, key: str) -> None:
    if weights != OFFLINE and not Path(weights).expanduser().is_file():
        require_file(Path(weights).expanduser(), "a weight file")
        raise UserError(f"{key}: there is no file {weights}. Give the path of a weight file.")
