"""Distil any network into any other, with the losses, augmentation, engine and exact resume of `tskd run`."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from tskd.api.images import Material, Squares, gather, pixels_digest, several
from tskd.api.networks import AsSegmenter, Background
from tskd.artifacts import json_sha256, read_log
from tskd.engine import ImageBatches, Runtime, Training, fit, open_runtime
from tskd.engine.batches import allowed_flips, to_images
from tskd.engine.schedules import parameter_groups
from tskd.errors import UserError
from tskd.losses.classes import hard_prediction
from tskd.machine.disk import read_object, write_json
from tskd.models.registry import load_model
from tskd.recipe.schema import NAMING, DistillConfig, EngineConfig, FinetuneConfig, build_section
from tskd.seeding import derive
from tskd.stages import distill as stage
from tskd.stages.label_training import label_step, labelled_batches, validation
from tskd.types import SegmentationOutput

if TYPE_CHECKING:
    import pandas

IDENTITY, WEIGHTS = "distillation.json", "student.safetensors"
_BATCH = 16
_IDLE = {"cache", "views", "rounds"}
"""Settings of ``distill`` for runs alone."""


@dataclass(frozen=True)
class Distilled:
    """What :func:`distill` answers: the student as it is now, and how it got there."""

    student: nn.Module
    """The network that was given, trained, in evaluation mode."""
    classes: tuple[str, ...]
    """Names of the foreground classes."""
    image_size: int
    features: bool
    """Whether features were distilled beside the logits: where both networks offer some."""
    log: tuple[Mapping[str, Any], ...] = field(repr=False)
    segmenter: AsSegmenter = field(repr=False)

    @property
    def history(self) -> pandas.DataFrame:
        """The training log: ``stage``, ``step`` and the mean losses since the line before."""
        import pandas

        return pandas.DataFrame(list(self.log))

    def predict(self, images: Any) -> np.ndarray:
        """Return class indices (N, S, S) uint8, 0 the background, of an array, a list or a torch Dataset of images as
        :func:`distill` takes them."""
        squares = Squares(several(images), self.image_size)
        device = next(self.student.parameters()).device
        answers = [np.empty((0, self.image_size, self.image_size), np.uint8)]  # of no images too
        for start in range(0, len(squares), _BATCH):
            with torch.inference_mode():
                logits = self.segmenter(to_images(squares[start : start + _BATCH]).to(device)).logits
            answers.append(hard_prediction(logits).cpu().numpy())
        return np.concatenate(answers)


def distill(
    teacher: nn.Module | str | Path,
    student: nn.Module,
    images: Any,
    *,
    labels: Any = None,
    classes: Iterable[str] | str | int | None = None,
    image_size: int | None = None,
    steps: int = 1200,
    finetune: Mapping[str, Any] | None = None,
    teacher_background: Background = "auto",
    student_background: Background = "auto",
    teacher_features: str | None = "auto",
    student_features: str | None = "auto",
    data: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    minutes: float | None = None,
    **settings: Any,
) -> Distilled:
    """Train a student in place on a teacher's answers for images, then on labels where there are some.

    ``teacher`` and ``student`` are modules that take (B, 3, H, W) in [0, 1] (or one channel) and answer logits
    (B, C, H, W), a :class:`tskd.types.SegmentationOutput`, or something with ``logits``: networks of smp, MONAI, timm
    and, in a module of two lines, of Hugging Face. ``teacher`` may also be the folder of a teacher that a run trained.
    With a channel for the background it is the first one; ``*_background`` says so where C leaves it open. Features are
    matched where both offer some (``*_features`` names the part that gives them); else logits alone.

    ``images`` is an array (N, H, W[, C]), a list of images, a torch Dataset or a data folder; ``labels`` a pair
    (images, masks), or True for those of the folder, whose validation part then chooses the weights. ``settings`` are
    those of the recipe's section ``distill`` (``batch_size``, ``lr``, ``encoder_weight``, ``augment``, ...), without
    ``cache``, ``views`` and ``rounds``; ``finetune``, ``data`` and ``engine`` are mappings of the sections of these
    names. ``finetune.layer_decay`` is 1 where it is not given.

    With ``out`` the state is kept there: a stopped call goes on where it was when it is made again, and ends with the
    same weights. A call with other images, labels, settings or another teacher is refused there; the student's start is
    not compared, as a stopped call leaves the student half trained. Raises UserError for settings, images or networks
    that do not fit, Paused after ``minutes``.
    """
    config = build_section(DistillConfig, {"steps": steps, **settings}, "distill")
    # a decay that suits transformers is no default for any network
    then = build_section(FinetuneConfig, {"layer_decay": 1.0, **(finetune or {})}, "finetune")
    _refuse_idle(settings, finetune or {})
    runtime = open_runtime(build_section(EngineConfig, dict(engine or {}), "engine"), minutes=minutes)
    classes = [classes] if isinstance(classes, str) else classes
    names = tuple(classes) if not isinstance(classes, int | None) else None
    count = classes if isinstance(classes, int | None) else len(names or ())
    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        material = gather(images, labels, image_size=image_size, out=folder, data=dict(data or {}))
        if material.classes is not None and count is None:
            names, count = material.classes, len(material.classes)
        size = material.image_size
        network = _loaded(teacher)
        stack.enter_context(_left_as_it_was(network))
        answering = _heard(
            stack, network, image_size=size, classes=count, background=teacher_background,
            features=teacher_features, name="teacher",
        )  # fmt: skip
        learner = _heard(
            stack, student, image_size=size, classes=count or answering.classes, background=student_background,
            features=student_features, name="student",
        )  # fmt: skip
        _require_fit(answering, learner, material)
        _require_validation(then, material)
        _require_blocks(then, learner)
        names = names or tuple(f"class{index}" for index in range(1, answering.classes + 1))
        work = _Work(config, then, answering, learner, material, names, seed, runtime, folder)
        if out is not None:
            work.claim()
        log = work.done()
    return Distilled(student.eval(), names, size, work.with_features, tuple(log), learner)


@dataclass(frozen=True)
class _Work:
    """One call of :func:`distill`."""

    config: DistillConfig
    then: FinetuneConfig
    teacher: AsSegmenter
    student: AsSegmenter
    material: Material
    classes: tuple[str, ...]
    seed: int
    runtime: Runtime
    folder: Path

    @property
    def with_features(self) -> bool:
        offered = self.teacher.offers_features and self.student.offers_features
        return offered and self.config.encoder_weight > 0

    def done(self) -> list[dict[str, Any]]:
        """Train; return the log."""
        names = {"distill": self._distillation} | ({"finetune": self._finetuning} if self.material.labelled else {})
        log: list[dict[str, Any]] = []
        for name, training in names.items():
            place = self.folder / name
            place.mkdir(parents=True, exist_ok=True)
            fit(training(), place, self.runtime)
            log += [{"stage": name, **line} for line in read_log(place)]
        if not self.with_features:
            log = [{key: value for key, value in line.items() if key != "encoder_loss"} for line in log]
        save_file(_whole(self.student.network), self.folder / WEIGHTS)
        return log

    def _distillation(self) -> Training:
        config = self.config
        if not self.with_features:
            if config.decoder_weight == 0:
                raise UserError(
                    "decoder_weight is 0 and one of the two networks offers no features: nothing to distil."
                )
            config = config.model_copy(update={"encoder_weight": 0.0})
        ask = stage.online(self.teacher, self.runtime)
        batches = ImageBatches(
            self.material.images, None, self.material.names, config.batch_size, config.augment,
            derive(self.seed, "transfer batches"), allowed_flips(config.augment.flip, self.classes),
        )  # fmt: skip
        torch.manual_seed(derive(self.seed, "projection"))
        level, module = stage.attach_projection(self.student, _on_cpu(ask(batches(0, 0, config.accumulate))))
        return stage.distillation(config, module, level, batches, ask, seed=self.seed)

    def _finetuning(self) -> Training:
        assert self.material.labelled is not None
        config, prepared = self.then, self.material.prepared
        seed = derive(self.seed, "finetune", "batches")
        return Training(
            label="finetune",
            module=self.student,
            step=label_step,
            batches=labelled_batches(self.material.labelled, self.classes, config, seed),
            settings=config,
            seed=self.seed,
            validate=validation(prepared) if prepared is not None else None,
            validate_start=config.keep_start,
            layer_decay=config.layer_decay,
        )

    def claim(self) -> None:
        """Say in the folder what is trained there; UserError where it holds another training's state."""
        path = self.folder / IDENTITY
        identity = self._identity()
        if path.is_file():
            if (known := read_object(path)) is None:
                raise UserError(f"{path} is damaged, so nobody knows what was trained there. Remove {self.folder}.")
            if others := [name for name in identity if known.get(name) != identity[name]]:
                raise UserError(
                    f"{self.folder} holds another distillation ({IDENTITY} says other: {', '.join(others)}). "
                    "Choose another folder for out, or remove this one."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, identity)

    def _identity(self) -> dict[str, Any]:
        """Return what the trained weights depend on, but the student's start: a stopped call has changed that."""
        shapes = {name: list(one.shape) for name, one in self.student.network.state_dict().items()}
        labelled, prepared = self.material.labelled, self.material.prepared
        return {
            "distill": self.config.model_dump(mode="json", context=NAMING),
            "finetune": self.then.model_dump(mode="json", context=NAMING) if labelled else None,
            "seed": self.seed,
            "precision": self.runtime.precision,
            "data": prepared.folder.name if prepared else None,  # its name is a digest of settings and files
            "images": pixels_digest(self.material.images),
            "labels": [pixels_digest(labelled.images), pixels_digest(labelled.masks)] if labelled else None,
            "classes": list(self.classes),
            "student": json_sha256(shapes),
            "teacher": network_digest(self.teacher.network),
            "background": [self.teacher.subtract, self.student.subtract],
            "features": [self.teacher.part, self.student.part],
        }


def _refuse_idle(settings: Mapping[str, Any], finetune: Mapping[str, Any]) -> None:
    """Raise UserError for settings of a run that change nothing here."""
    idle = [name for name in settings if name in _IDLE] + [
        f"finetune.{name}" for name in finetune if name == "scratch_lr"
    ]
    if idle:
        raise UserError(
            f"{', '.join(idle)}: for runs alone. Here the teacher is asked in every step, in one round, and the labels "
            "are learned by the student that it has taught. Leave them out."
        )


def _require_validation(finetune: FinetuneConfig, material: Material) -> None:
    if finetune.keep_start and (material.prepared is None or not len(material.prepared.rows("val"))):
        raise UserError(
            "finetune.keep_start: weights are chosen by the validation part of a data folder, and there is none. Leave "
            "it out, or give such a folder and labels=True."
        )


def _require_blocks(finetune: FinetuneConfig, student: AsSegmenter) -> None:
    groups = parameter_groups(student, lr=1.0, weight_decay=0.0, layer_decay=finetune.layer_decay)
    if finetune.layer_decay < 1 and len({group["lr"] for group in groups}) == 1:
        raise UserError(
            "finetune.layer_decay: the student has no part `encoder` with blocks or stages named as in timm, so that "
            "nothing would be slowed. Leave it out."
        )


def _heard(stack: ExitStack, network: nn.Module, **options: Any) -> AsSegmenter:
    """Return a network as a segmenter that tells its features until the end of ``stack``."""
    segmenter = AsSegmenter(network, **options)
    stack.callback(segmenter.stop_listening)
    return segmenter


def _loaded(teacher: nn.Module | str | Path) -> nn.Module:
    if isinstance(teacher, nn.Module):
        return teacher
    folder = Path(teacher)
    if not (folder / "model.json").is_file():
        raise UserError(
            f"{folder}: no trained teacher is there. Give a module, or a folder teacher-... of a run's artifacts."
        )
    return load_model(folder)


@contextmanager
def _left_as_it_was(network: nn.Module) -> Iterator[None]:
    """Put back which of a network's parts train: while it answers as a teacher, none does."""
    modes = {part: part.training for part in network.modules()}
    trained = {parameter: parameter.requires_grad for parameter in network.parameters()}
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for parameter, required in trained.items():
            parameter.requires_grad_(required)


def _require_fit(teacher: AsSegmenter, student: AsSegmenter, material: Material) -> None:
    if teacher.classes != student.classes:
        raise UserError(
            f"the teacher answers {teacher.classes} foreground class(es), the student {student.classes}. Give both the "
            "same; where a first channel is the background, say teacher_background='channel' or student_background."
        )
    if (
        material.labelled is not None
        and int(material.labelled.masks.max(where=material.labelled.masks != 255, initial=0)) > student.classes
    ):
        raise UserError(f"labels: the masks hold classes above {student.classes}, the number that the networks know.")


def _on_cpu(answer: SegmentationOutput) -> SegmentationOutput:
    return SegmentationOutput(tuple(one.cpu() for one in answer.features), answer.logits.cpu())


def _whole(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}


def network_digest(network: nn.Module) -> str:
    """Return the sha256 of a network's tensors, names included."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
