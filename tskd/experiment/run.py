"""A run's artifacts: what each is made from, and that asking for one computes what it needs first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tskd.artifacts import ARTIFACTS, Artifact, Builder, Costs, Processes, Store
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime
from tskd.engine.batches import allowed_flips
from tskd.errors import UserError
from tskd.experiment.budget import (
    Budget,
    adaptation_flops,
    answering_flops,
    compute_of,
    network_flops,
    steps_within,
    student_budget,
)
from tskd.models.backbones import patch_for
from tskd.models.description import NetworkDescription
from tskd.models.ensemble import mirrors
from tskd.models.registry import load_model
from tskd.models.weight_files import identify
from tskd.recipe.schema import (
    OFFLINE,
    ControlConfig,
    DistillConfig,
    PretrainConfig,
    Recipe,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
    UnetImagenetConfig,
)
from tskd.stages import (
    ablation,
    cache,
    control,
    diffusion,
    distill,
    ensemble,
    evaluate,
    finetune,
    imagenet,
    leaks,
    prepare,
    pretrain,
    pseudo_label,
    pseudo_masks,
    samples,
    self_training,
    teacher,
    teacher_images,
    transfer,
    transfer_masks,
    unets,
)
from tskd.stages.lesson import Lesson, Teacher
from tskd.stages.teacher import TeacherSource
from tskd.stages.workbench import Workbench


@dataclass
class Run:
    """One recipe in one output folder. Each property is an artifact; asking for it computes what it needs first."""

    recipe: Recipe
    out: Path
    runtime: Runtime
    download: bool = False
    """Allow fetching SAM's weights."""
    open_store: Callable[[Path, Processes], Builder] = Store
    """What answers requests for artifacts: the store that makes them, or one that only plans."""

    def __post_init__(self) -> None:
        fabric = self.runtime.fabric
        store = self.open_store(self.out / ARTIFACTS, Processes(fabric.global_rank, fabric.barrier))
        self.bench = Workbench(store, self.recipe.seed, self.runtime, self.recipe.engine.precision)

    @property
    def costs(self) -> Costs:
        """Seconds and peak memory of every artifact asked for so far, as measured when it was made."""
        return {name: cost for artifact in self.bench.used.values() for name, cost in artifact.costs.items()}

    # --- data ---

    @cached_property
    def prepared_artifact(self) -> Artifact:
        return prepare.build(self.bench, self.recipe.data)

    @cached_property
    def prepared(self) -> Prepared:
        return Prepared(self.prepared_artifact.path)

    @cached_property
    def tested_artifact(self) -> Artifact:
        """The data whose test images are scored: the recipe's, or that of ``evaluate.data``."""
        data, other = self.recipe.data, self.recipe.evaluate.data
        if other is None:
            return self.prepared_artifact
        artifact = prepare.build(self.bench, prepare.tested_data(data, other))
        tested = Prepared(artifact.path)
        leaks.refuse_other_classes(self.prepared, tested)
        if prepare.same_images(data, other):
            seen = self.prepared.cases("train", "val", "unlabelled")
            leaks.refuse_seen_cases(seen, tested, what="training")
        if not data.allow_duplicates:
            leaks.refuse_seen_images(self.prepared, tested)
        return artifact

    @property
    def tested(self) -> Prepared:
        return Prepared(self.tested_artifact.path)

    # --- teacher and transfer set ---

    @cached_property
    def teacher_source(self) -> TeacherSource:
        return self._source(self.recipe.teacher)

    @cached_property
    def teacher_data(self) -> Artifact:
        """The images and masks as the teacher sees them: the prepared data, or the same rows at its own size."""
        size = self.teacher_source.description.image_size
        return teacher_images.build(self.bench, self.recipe.data, self.prepared_artifact, size)

    @cached_property
    def teacher(self) -> Artifact:
        """The adapted teacher, or several as one."""
        config, members = self.recipe.teacher, self.teacher_members
        if not members:
            return self._adapted(config, self.teacher_source)
        return self._together(members, spent_on=members)

    @cached_property
    def teacher_members(self) -> tuple[Artifact, ...]:
        """The teachers that answer together; none where one answers by itself, and not for mirrored images."""
        config = self.recipe.teacher
        if config.members == 1:
            return (self._adapted(config, self.teacher_source),) if config.mirror else ()
        return tuple(self._adapted(config, self.teacher_source, number) for number in range(config.members))

    @cached_property
    def probed_teacher(self) -> Artifact:
        """The teacher whose encoder stays as it was; only its decoder has learned from the labels."""
        config = self.recipe.teacher.model_copy(update={"adaptation": "probe"})
        return self._adapted(config, self._source(config))

    def _together(self, members: Sequence[Artifact], *, spent_on: Sequence[Artifact]) -> Artifact:
        """Return networks as one; ``spent_on``: those whose trainings, with all that led to them, are all the cost."""

        def spent() -> float:
            return sum(sum(compute_of(one, self.bench.used.values())) for one in spent_on)

        return ensemble.build(self.bench, members, flip=self._teacher_flip, spent=spent)

    def _source(self, config: TeacherConfig) -> TeacherSource:
        prepared = self.prepared
        return teacher.choose_teacher(config, prepared.classes, prepared.image_size, download=self.download)

    def _adapted(self, config: TeacherConfig, source: TeacherSource, member: int | None = None) -> Artifact:
        return teacher.build(self.bench, config, source, self.prepared_artifact, self.teacher_data, member=member)

    @cached_property
    def diffusion(self) -> Artifact:
        return diffusion.build(self.bench, self.recipe.diffusion, self.prepared_artifact)

    @cached_property
    def samples(self) -> tuple[Artifact, ...]:
        """The images sampled from the diffusion model, before the gate: in blocks, which larger sets share."""
        return tuple(
            samples.build(self.bench, self.recipe.diffusion, self.diffusion, self.prepared, numbers)
            for numbers in samples.blocks(self.recipe.transfer.synthetic)
        )

    @cached_property
    def transfer(self) -> Artifact:
        config = self.recipe.transfer
        transfer.count_real(config, self.prepared)  # before images are sampled: a plan refuses more than there are too
        sampled = self.samples if config.synthetic else ()
        return transfer.build(self.bench, config, self.prepared_artifact, sampled)

    @property
    def transfer_set(self) -> TransferSet:
        return TransferSet(self.transfer.path, self.prepared)

    # --- student ---

    @cached_property
    def student_description(self) -> NetworkDescription:
        """The network that every method but the controls ends with, and where its weights start."""
        student = self.recipe.student
        return describe_student(
            student, weights=student.weights if student.initialisation == "weights" else None, **self._sizes
        )

    @property
    def _sizes(self) -> dict[str, Any]:
        return {"classes": self.prepared.classes, "image_size": self.prepared.image_size}

    @cached_property
    def budget(self) -> Budget:
        """The compute that the student gets, whatever the method."""
        flops = network_flops(self.student_description)
        return student_budget(self.recipe.distill, self.recipe.finetune, flops_per_image=flops)

    @cached_property
    def total_compute(self) -> int:
        """Operations of task-specific distillation with all that it takes: the student's, and the teacher's.

        The teacher's are those of its adaptation, every step that the recipe allows, and of its answers.
        """
        teacher_config, config = self.recipe.teacher, self.recipe.distill
        description = self.teacher_source.description
        members, looks = teacher_config.members, self._looks
        adaptation = members * teacher_config.steps * teacher_config.batch_size * adaptation_flops(description)
        wanted = self.recipe.transfer  # counted by the settings: a diffusion model is not trained for it
        images = transfer.count_real(wanted, self.prepared) + wanted.synthetic + wanted.augmented
        seen = images * config.views if cache.cache_pays(config, images) else config.steps * config.batch_size
        return self.budget.total + adaptation + seen * looks * answering_flops(description)

    @property
    def _looks(self) -> int:
        """How often a network answers for one answer of the teacher: each member, for each mirrored image."""
        config = self.recipe.teacher
        together = config.members > 1 or config.mirror
        return config.members * (1 + len(mirrors(self._teacher_flip))) if together else 1

    @property
    def _teacher_flip(self) -> tuple[bool, bool]:
        return allowed_flips(self.recipe.teacher.augment.flip, self.prepared.classes)

    def finetuned(self, start: Artifact | None, *, within: int | None = None) -> Artifact:
        """Return the student fine-tuned from an initialisation, or (None) trained on the labels from random weights.

        ``within``: the operations it may take, where this run has no pre-training; None: as long as the recipe says.
        """
        config = self.recipe.finetune
        if within is not None:
            steps = steps_within(within, config.batch_size * self.budget.flops_per_image)
            config = config.model_copy(update={"steps": steps})
        description = self.student_description.bare()  # the initialisation holds them all
        return finetune.build(self.bench, config, description, self.prepared_artifact, start)

    # --- initialisations: what a student learns before the labels ---

    @cached_property
    def distilled(self) -> Artifact:
        """The student that has learned from the teacher; after the first round from the student before it as well."""
        start = self.distilled_by(self.teacher)
        teachers = self.teacher_members or (self.teacher,)
        for _ in range(1, self.recipe.distill.rounds):
            student = self.finetuned(start)
            start = self.distilled_by(self._together((*teachers, student), spent_on=(student,)))
        return start

    def distilled_by(self, adapted: Artifact) -> Artifact:
        """Return the student that has learned an adapted teacher's features and logits on the transfer set."""
        return self._distilled(self.recipe.distill, _answers_of(adapted))

    @cached_property
    def distilled_agnostic(self) -> Artifact:
        """The student whose encoder has learned the features that the teacher has before its adaptation."""
        source = self.teacher_source
        config = self.recipe.distill.model_copy(update={"encoder_weight": 1.0, "decoder_weight": 0.0})
        return self._distilled(config, Teacher(teacher.bare_digest(source), lambda: teacher.load_bare(source)))

    @property
    def cache(self) -> Artifact | None:
        """The adapted teacher's stored answers; None where computing them online is cheaper."""
        return cache.build(self.bench, self._affordable(self.recipe.distill), self._lesson(_answers_of(self.teacher)))

    def _lesson(self, answering: Teacher) -> Lesson:
        return Lesson(self.student_description, answering, self.transfer, self.prepared_artifact, self.teacher_data)

    def _distilled(self, config: DistillConfig, answering: Teacher) -> Artifact:
        config, lesson = self._affordable(config), self._lesson(answering)
        return distill.build(self.bench, config, lesson, lambda: cache.build(self.bench, config, lesson))

    def _affordable(self, config: DistillConfig) -> DistillConfig:
        """Return the settings with as many more steps as the same compute allows where the decoder is not run."""
        if config.decoder_weight > 0:
            return config
        flops = network_flops(self.student_description, distill.encoder_flops)
        steps = steps_within(self.budget.pretraining, config.batch_size * flops)
        return config.model_copy(update={"steps": steps})

    @cached_property
    def pseudo_masks(self) -> Artifact:
        """The adapted teacher's hard masks on the transfer set."""
        return pseudo_masks.build(self.bench, self.teacher, self.transfer, self.prepared_artifact, self.teacher_data)

    @cached_property
    def pseudo_labelled(self) -> Artifact:
        """The student that has learned the teacher's hard masks on the transfer set."""
        return pseudo_label.build(
            self.bench, self.recipe.distill, self.student_description, self.pseudo_masks, self.transfer,
            self.prepared_artifact,
        )  # fmt: skip

    def pretrained(self, config: PretrainConfig) -> Artifact:
        """Return the student whose encoder has learned from the transfer images alone, MAE or MoCo v3 by ``config``."""
        description = self.student_description
        cost = pretrain.step_cost(config, description)
        allowed = steps_within(self.budget.pretraining, config.batch_size * cost.student)
        config = config.model_copy(update={"steps": min(config.steps, allowed)})
        return pretrain.build(self.bench, config, description, self.transfer, self.prepared_artifact)

    def self_trained(self, mix: self_training.Mix) -> Artifact:
        """The student that has learned from the labels and from its own average on the transfer set."""
        config = self.recipe.self_training
        allowed = steps_within(self.budget.total, config.batch_size * self.budget.flops_per_image)
        config = config.model_copy(update={"steps": min(config.steps, allowed)})
        return self_training.build(
            self.bench, config, mix, self.student_description, self.transfer, self.prepared_artifact
        )

    @cached_property
    def imagenet(self) -> Artifact:
        """The student whose backbone comes from the weight file of the recipe."""
        return imagenet.build(self.bench, replace(self.student_description, weights=self.recipe.student.weights))

    # --- controls ---

    @cached_property
    def control(self) -> Artifact:
        """The U-Net that sees the labels alone."""
        return control.build(self.bench, *self._control)

    @cached_property
    def control_pseudo(self) -> Artifact:
        """The U-Net that sees the labels and the teacher's hard masks on the transfer set."""
        masks = self.pseudo_masks
        return control.build(
            self.bench, *self._control,
            lambda: transfer_masks.labels_and_pseudo_labels(self.prepared, self.transfer_set, masks.path),
            inputs={"masks": masks.digest, "transfer": self.transfer.digest},
        )  # fmt: skip

    @property
    def _control(self) -> tuple[ControlConfig, NetworkDescription, Artifact]:
        """The U-Net's settings, as long as the student's compute allows, its description, and the data."""
        config = self.recipe.control
        description = control.describe(config, **self._sizes)
        config = config.model_copy(update={"steps": min(config.steps, self._allowed_steps(config, description))})
        return config, description, self.prepared_artifact

    def _allowed_steps(self, config: TrainConfig, description: NetworkDescription) -> int:
        """Return how many steps of a network on the labels alone take the student's compute."""
        return steps_within(self.budget.total, config.batch_size * network_flops(description))

    @cached_property
    def unet(self) -> Artifact:
        """The U-Net of nnU-Net's size that sees the labels alone."""
        config = self.recipe.unet
        description = unets.describe_unet(config, **self._sizes)
        if config.compute == "equal":
            config = config.model_copy(update={"steps": self._allowed_steps(config, description)})
        return unets.build(self.bench, "unet", config, description, self.prepared_artifact)

    @cached_property
    def unet_imagenet(self) -> Artifact:
        """The U-Net over an encoder with ImageNet weights that sees the labels alone."""
        config = self.recipe.unet_imagenet
        description = describe_unet_imagenet(config, **self._sizes)
        if config.compute == "equal":
            config = config.model_copy(update={"steps": self._allowed_steps(config, description)})
        return unets.build(self.bench, "unet_imagenet", config, description, self.prepared_artifact)

    # --- scores ---

    def evaluation(self, model: Artifact, title: str) -> Artifact:
        """Return the scores of a trained model on the test images."""
        return evaluate.build(self.bench, self.recipe.evaluate, self.tested_artifact, model, title=title)

    def ablation(self, model: Artifact) -> Artifact:
        """Return what a trained model scores on the test images without its encoder's features or without its skip."""
        return ablation.build(self.bench, self.tested_artifact, model)


def describe_student(
    student: StudentConfig, *, weights: str | None, classes: Sequence[str], image_size: int
) -> NetworkDescription:
    """Return what the registry builds a recipe's student from.

    A weight file that is named says what pixels every student of the recipe sees, so that all start alike.
    """
    arguments: dict[str, Any] = {"backbone": student.backbone, "decoder": student.decoder, **_expected_by(student)}
    patch = student.patch or patch_for(student.backbone, image_size)
    arguments |= {} if patch is None else {"patch": patch}
    return NetworkDescription("timm", arguments, tuple(classes), image_size, weights)


def describe_unet_imagenet(
    config: UnetImagenetConfig, *, classes: Sequence[str], image_size: int
) -> NetworkDescription:
    """Return what the registry builds the U-Net over ImageNet weights from."""
    network = StudentConfig(backbone=config.backbone, decoder="unet", weights=config.weights, pixels=config.pixels)
    return describe_student(network, weights=config.weights, classes=classes, image_size=image_size)


def _expected_by(student: StudentConfig) -> dict[str, Any]:
    stated = {} if student.pixels == "auto" else {"pixels": student.pixels}
    if student.weights in (None, OFFLINE):
        return stated
    try:
        return {**identify(Path(student.weights), student.backbone).arguments, **stated}
    except UserError:  # nothing that starts from the file gets this far: preflight.check_networks
        return stated


def _answers_of(teacher: Artifact) -> Teacher:
    return Teacher(teacher.digest, lambda: load_model(teacher.path))
