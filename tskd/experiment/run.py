"""A run's artifacts: what each is made from, and that asking for one computes what it needs first.

Here is what methods share: data, transfer set, the student's network, its fine-tuning and scores. Who teaches it is in
``teachers.py``, what it learns before the labels in ``initialisations.py``, and what it is held against in
``baselines.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tskd.artifacts import ARTIFACTS, Artifact, Builder, Costs, Processes, Store, canonical_json
from tskd.data.prepared import Prepared, digest_of_source
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime
from tskd.experiment.baselines import Baselines
from tskd.experiment.budget import (
    Budget,
    earlier_rounds_compute,
    lasting,
    network_flops,
    student_budget,
    teacher_compute,
)
from tskd.experiment.initialisations import Initialisations
from tskd.experiment.teachers import Teachers
from tskd.models.description import NetworkDescription
from tskd.models.registry import weights_digest
from tskd.recipe.schema import Recipe
from tskd.stages import (
    ablation,
    diffusion,
    evaluate,
    finetune,
    prepare,
    samples,
    target,
    teacher_images,
    tested,
    transfer,
)
from tskd.stages.readings import Readings
from tskd.stages.students import describe_student
from tskd.stages.teacher import TeacherSource
from tskd.stages.workbench import Workbench

Found = TypeVar("Found")


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
    lookups: dict[str, Any] = field(default_factory=dict)
    """What is costly to look up, by name, as far as it was asked for: data sets and the teacher's weights. Runs whose
    settings of these are alike may share it."""

    def __post_init__(self) -> None:
        fabric = self.runtime.fabric
        store = self.open_store(self.out / ARTIFACTS, Processes(fabric.global_rank, fabric.barrier))
        self.bench = Workbench(store, self.recipe.seed, self.runtime, self.recipe.engine.precision)
        self.teachers, self.initialisations, self.baselines = Teachers(self), Initialisations(self), Baselines(self)
        self.starts: set[str] = set()
        """Weight files that the student was described to start from."""

    def once(self, name: str, look_up: Callable[[], Found]) -> Found:
        """Return what is known under a name among ``lookups``, looked up now if it is not."""
        if name not in self.lookups:
            self.lookups[name] = look_up()
        found: Found = self.lookups[name]
        return found

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
    def read_beside(self) -> dict[str, str]:
        """What it was asked to read beside these so far, by the settings that say where it lies: digests of the images
        of a target, and of weight files."""
        recipe = self.recipe
        by_method = {"imagenet": recipe.student.weights, "unet_imagenet": recipe.unet_imagenet.weights}
        starts = {*self.starts, by_method.get(recipe.method)}
        found = {f"weights {weights}": weights_digest(weights) for weights in sorted(filter(None, starts))}
        sources: Sequence[TeacherSource] = self.lookups.get("sources", ())
        found |= {f"teacher {kind.name} {kind.weights}": one.digest for kind, one in zip(recipe.teacher.kinds, sources)}
        if (target := self.lookups.get("target")) is not None:
            assert recipe.transfer.target is not None
            where = canonical_json([recipe.transfer.target.model_dump(), recipe.data.split_seed])
            found[f"target {where}"] = digest_of_source(target)
        return found

    @property
    def data_name(self) -> str:
        """What the data that it trains on are called."""
        return str(self.prepared.dataset["name"])

    def figures(self, evaluation: Artifact) -> Mapping[str, str | float | None]:
        """Return what a comparison's table says of a model beside its scores, by column."""
        return {}

    # --- data ---

    @property
    def prepared_artifact(self) -> Artifact:
        return self.once("prepared", lambda: prepare.build(self.bench, self.recipe.data, self.readings))

    @cached_property
    def prepared(self) -> Prepared:
        return Prepared(self.prepared_artifact.path)

    @property
    def tested_artifact(self) -> Artifact:
        """The data whose test images are scored: the recipe's, or that of ``evaluate.data``."""
        data, other = self.recipe.data, self.recipe.evaluate.data
        return self.once("tested", lambda: tested.build(self.bench, data, other, self.prepared_artifact, self.readings))

    @property
    def tested(self) -> Prepared:
        return Prepared(self.tested_artifact.path)

    def shown(self, size: int) -> Artifact:
        """Return the images and masks as a teacher of that size sees them."""
        return teacher_images.build(self.bench, self.recipe.data, self.prepared_artifact, size)

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
        # before images are sampled: a plan refuses more than there are too
        transfer.count_wanted(config, self.prepared, self.target_set)
        sampled = self.samples if config.synthetic else ()
        return transfer.build(self.bench, config, self.prepared_artifact, sampled, self.target)

    @property
    def target(self) -> Artifact | None:
        """The prepared data of the site where the student will work, whose images it learns from without labels.

        As large as whoever looks at them needs them. Raises UserError where a test image is among them.
        """
        recipe = self.recipe
        if recipe.transfer.target is None or recipe.transfer.from_target == 0:
            return None
        return self.once("target", lambda: target.build(self.bench, recipe, self.tested_artifact, self.readings))

    @property
    def target_set(self) -> Prepared | None:
        return None if self.target is None else Prepared(self.target.path)

    @property
    def transfer_set(self) -> TransferSet:
        return TransferSet(self.transfer.path, self.prepared)

    # --- student ---

    @cached_property
    def student_description(self) -> NetworkDescription:
        """The network that every method but the controls ends with, and where its weights start."""
        student, prepared = self.recipe.student, self.prepared
        weights = student.weights if student.initialisation == "weights" else None
        if weights:
            self.starts.add(weights)
        return describe_student(student, weights=weights, classes=prepared.classes, image_size=prepared.image_size)

    @cached_property
    def budget(self) -> Budget:
        """The compute that the student gets, whatever the method."""
        flops = network_flops(self.student_description)
        return student_budget(self.recipe.distill, self.recipe.finetune, flops_per_image=flops)

    @cached_property
    def total_compute(self) -> int:
        """Operations of task-specific distillation with all that it takes: student's, teacher's, earlier rounds'."""
        images = transfer.count_wanted(self.recipe.transfer, self.prepared, self.target_set)
        described = [source.description for source in self.teachers.sources]
        before = earlier_rounds_compute(
            self.recipe, described, self.student_description, images=images, each=self.budget.total
        )
        return self.budget.total + before + teacher_compute(self.recipe, described, images=images)

    def finetuned(self, start: Artifact | None, *, within: int | None = None) -> Artifact:
        """Return the student fine-tuned from an initialisation, or (None) trained on the labels from random weights.

        ``within``: the operations it may take, where this run has no pre-training; None: as long as the recipe says.
        """
        config = self.recipe.finetune
        if within is not None:
            config = lasting(config, within, self.budget.flops_per_image)
        description = self.student_description.bare()  # the initialisation holds them all
        return finetune.build(self.bench, config, description, self.prepared_artifact, start, self.target)

    # --- scores ---

    def evaluation(self, model: Artifact, title: str) -> Artifact:
        """Return the scores of a trained model on the test images."""
        return evaluate.build(self.bench, self.recipe.evaluate, self.tested_artifact, model, title=title)

    def ablation(self, model: Artifact) -> Artifact | None:
        """Return what a trained model scores on the test images without its encoder's features or without its skip."""
        return ablation.build(self.bench, self.recipe.evaluate, self.tested_artifact, model)
