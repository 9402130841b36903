"""A run's artifacts: what each is made from, and that asking for one computes what it needs first.

Here is what methods share: data, teacher, transfer set, the student's network, its fine-tuning and scores. What a
student learns before the labels is in ``initialisations.py``, what it is held against in ``baselines.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tskd.artifacts import ARTIFACTS, Artifact, Builder, Costs, Processes, Store
from tskd.data.prepared import Prepared, digest_of_source
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime
from tskd.engine.batches import allowed_flips
from tskd.experiment.baselines import Baselines
from tskd.experiment.budget import Budget, lasting, network_flops, student_budget, teacher_compute
from tskd.experiment.initialisations import Initialisations
from tskd.models.description import NetworkDescription
from tskd.recipe.schema import Recipe, TeacherConfig
from tskd.stages import (
    ablation,
    diffusion,
    ensemble,
    evaluate,
    finetune,
    prepare,
    samples,
    teacher,
    teacher_images,
    tested,
    transfer,
)
from tskd.stages.readings import Readings
from tskd.stages.students import describe_student
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
    readings: Readings | None = None
    """Images that were read for other runs."""

    def __post_init__(self) -> None:
        fabric = self.runtime.fabric
        store = self.open_store(self.out / ARTIFACTS, Processes(fabric.global_rank, fabric.barrier))
        self.bench = Workbench(store, self.recipe.seed, self.runtime, self.recipe.engine.precision)
        self.initialisations, self.baselines = Initialisations(self), Baselines(self)

    @property
    def costs(self) -> Costs:
        """Seconds and peak memory of every artifact asked for so far, as measured when it was made."""
        return {name: cost for artifact in self.used for name, cost in artifact.costs.items()}

    @property
    def used(self) -> tuple[Artifact, ...]:
        """Every artifact that was asked for so far."""
        return tuple(self.bench.used.values())

    @property
    def source_digest(self) -> str:
        """Digest of the images and masks that it trains and tests on, as they lie in their folder."""
        return digest_of_source(self.prepared_artifact)

    @property
    def data_name(self) -> str:
        """What the data that it trains on are called."""
        return str(self.prepared.dataset["name"])

    def figures(self, evaluation: Artifact) -> Mapping[str, str | float | None]:
        """Return what a comparison's table says of a model beside its scores, by column."""
        return {}

    # --- data ---

    @cached_property
    def prepared_artifact(self) -> Artifact:
        return prepare.build(self.bench, self.recipe.data, self.readings)

    @cached_property
    def prepared(self) -> Prepared:
        return Prepared(self.prepared_artifact.path)

    @cached_property
    def tested_artifact(self) -> Artifact:
        """The data whose test images are scored: the recipe's, or that of ``evaluate.data``."""
        data, other = self.recipe.data, self.recipe.evaluate.data
        return tested.build(self.bench, data, other, self.prepared_artifact, self.readings)

    @property
    def tested(self) -> Prepared:
        return Prepared(self.tested_artifact.path)

    # --- teacher ---

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
        if members := self.teacher_members:
            return self.together(members, spent_on=members)
        return self._adapted(self.recipe.teacher, self.teacher_source)

    @cached_property
    def teacher_members(self) -> tuple[Artifact, ...]:
        """The teachers that answer together; none where one answers by itself, and not for mirrored images."""
        config, source = self.recipe.teacher, self.teacher_source
        if config.members == 1:
            return (self._adapted(config, source),) if config.mirror else ()
        return tuple(self._adapted(config, source, number) for number in range(config.members))

    @cached_property
    def probed_teacher(self) -> Artifact:
        """The teacher whose encoder stays as it was; only its decoder has learned from the labels."""
        config = self.recipe.teacher.model_copy(update={"adaptation": "probe"})
        return self._adapted(config, self._source(config))

    def together(self, members: Sequence[Artifact], *, spent_on: Sequence[Artifact]) -> Artifact:
        """Return networks as one; ``spent_on``: those whose trainings, with all that led to them, are all the cost."""
        flip = allowed_flips(self.recipe.teacher.augment.flip, self.prepared.classes)
        return ensemble.build(self.bench, members, flip=flip, spent_on=spent_on)

    def _source(self, config: TeacherConfig) -> TeacherSource:
        prepared = self.prepared
        return teacher.choose_teacher(config, prepared.classes, prepared.image_size, download=self.download)

    def _adapted(self, config: TeacherConfig, source: TeacherSource, member: int | None = None) -> Artifact:
        return teacher.build(self.bench, config, source, self.prepared_artifact, self.teacher_data, member=member)

    # --- transfer set ---

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
        student, prepared = self.recipe.student, self.prepared
        weights = student.weights if student.initialisation == "weights" else None
        return describe_student(student, weights=weights, classes=prepared.classes, image_size=prepared.image_size)

    @cached_property
    def budget(self) -> Budget:
        """The compute that the student gets, whatever the method."""
        flops = network_flops(self.student_description)
        return student_budget(self.recipe.distill, self.recipe.finetune, flops_per_image=flops)

    @cached_property
    def total_compute(self) -> int:
        """Operations of task-specific distillation with all that it takes: the student's, and the teacher's."""
        images = transfer.count_wanted(self.recipe.transfer, self.prepared)
        return self.budget.total + teacher_compute(self.recipe, self.teacher_source.description, images=images)

    def finetuned(self, start: Artifact | None, *, within: int | None = None) -> Artifact:
        """Return the student fine-tuned from an initialisation, or (None) trained on the labels from random weights.

        ``within``: the operations it may take, where this run has no pre-training; None: as long as the recipe says.
        """
        config = self.recipe.finetune
        if within is not None:
            config = lasting(config, within, self.budget.flops_per_image)
        description = self.student_description.bare()  # the initialisation holds them all
        return finetune.build(self.bench, config, description, self.prepared_artifact, start)

    # --- scores ---

    def evaluation(self, model: Artifact, title: str) -> Artifact:
        """Return the scores of a trained model on the test images."""
        return evaluate.build(self.bench, self.recipe.evaluate, self.tested_artifact, model, title=title)

    def ablation(self, model: Artifact) -> Artifact | None:
        """Return what a trained model scores on the test images without its encoder's features or without its skip."""
        return ablation.build(self.bench, self.tested_artifact, model)
