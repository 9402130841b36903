"""A run's artifacts: what each is made from, and that asking for one computes what it needs first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tskd.artifacts import ARTIFACTS, Artifact, Builder, Costs, Processes, Store
from tskd.budget import Budget, adaptation_flops, answering_flops, network_flops, steps_within, student_budget
from tskd.config import OFFLINE, DistillConfig, PretrainConfig, Recipe, StudentConfig, TeacherConfig, TrainConfig
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime
from tskd.errors import UserError
from tskd.models.backbones import patch_for
from tskd.models.registry import description_digest, load_model
from tskd.models.weight_files import identify
from tskd.stages import (
    ablation,
    cache,
    diffusion,
    distill,
    evaluate,
    finetune,
    prepare,
    pretrain,
    pseudo,
    samples,
    teacher,
)
from tskd.stages.supervised import Labelled, training_labels
from tskd.stages.teacher import TeacherSource
from tskd.stages.teacher_images import build_teacher_images
from tskd.stages.transfer import build_transfer, count_real


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
        self.store = self.open_store(self.out / ARTIFACTS, Processes(fabric.global_rank, fabric.barrier))

    # --- data ---

    @cached_property
    def prepared_artifact(self) -> Artifact:
        return prepare.build_prepared(self.store, self.recipe.data)

    @cached_property
    def prepared(self) -> Prepared:
        return Prepared(self.prepared_artifact.path)

    @cached_property
    def tested_artifact(self) -> Artifact:
        """The data whose test images are scored: the recipe's, or that of ``evaluate.data``."""
        data, other = self.recipe.data, self.recipe.evaluate.data
        if other is None:
            return self.prepared_artifact
        artifact = prepare.build_prepared(self.store, prepare.tested_data(data, other))
        tested = Prepared(artifact.path)
        evaluate.refuse_other_classes(self.prepared, tested)
        if prepare.same_images(data, other):
            seen = self.prepared.cases("train", "val", "unlabelled")
            evaluate.refuse_seen_cases(seen, tested, what="training")
        if not data.allow_duplicates:
            evaluate.refuse_seen_images(self.prepared, tested)
        return artifact

    @property
    def tested(self) -> Prepared:
        return Prepared(self.tested_artifact.path)

    # --- teacher and transfer set ---

    @cached_property
    def teacher_data(self) -> Artifact:
        """The images and masks as the teacher sees them: the prepared data, or the same rows at its own size."""
        size = self.teacher_source.description["image_size"]
        return build_teacher_images(self.store, self.recipe.data, self.prepared_artifact, size)

    @property
    def _teacher_inputs(self) -> dict[str, str]:
        """What the teacher's answers are made from beside its weights and the prepared data: images of its own size."""
        if self.teacher_data is self.prepared_artifact:
            return {}
        return {"teacher_images": self.teacher_data.digest}

    @cached_property
    def teacher_source(self) -> TeacherSource:
        return self._teacher_source(self.recipe.teacher)

    @cached_property
    def teacher(self) -> Artifact:
        return self._adapted(self.recipe.teacher, self.teacher_source)

    @cached_property
    def probed_teacher(self) -> Artifact:
        """The teacher whose encoder stays as it was; only its decoder has learned from the labels."""
        config = self.recipe.teacher.model_copy(update={"adaptation": "probe"})
        return self._adapted(config, self._teacher_source(config))

    def _teacher_source(self, config: TeacherConfig) -> TeacherSource:
        prepared = self.prepared
        return teacher.choose_teacher(config, prepared.classes, prepared.image_size, download=self.download)

    def _adapted(self, config: TeacherConfig, source: TeacherSource) -> Artifact:
        return self._train(
            "teacher",
            lambda folder: teacher.train_teacher(
                config, source, Prepared(self.teacher_data.path), folder, seed=self.recipe.seed, runtime=self.runtime
            ),
            config=config.model_copy(update={"accumulate": config.accumulate or 1}),  # chosen parts change no result
            without=teacher.SAME_RESULT | teacher.RESOLVED,
            inputs={
                "data": self.prepared_artifact.digest,
                "weights": source.digest,
                "network": teacher.network(source),
                **self._teacher_inputs,
            },
            version=teacher.VERSION,
        )

    @cached_property
    def diffusion(self) -> Artifact:
        config = self.recipe.diffusion
        return self._train(
            "diffusion",
            lambda folder: diffusion.train_diffusion(
                config, self.prepared, folder, seed=self._diffusion_seed, runtime=self.runtime
            ),
            config=config,
            without=diffusion.OUTSIDE_CONFIG,
            seed=self._diffusion_seed,
            inputs={"data": self.prepared_artifact.digest},
            version=diffusion.VERSION,
        )

    @property
    def _diffusion_seed(self) -> int:
        seed = self.recipe.diffusion.seed
        return self.recipe.seed if seed is None else seed

    @cached_property
    def samples(self) -> tuple[Artifact, ...]:
        """The images sampled from the diffusion model, before the gate: in blocks, which larger sets share."""
        blocks = samples.blocks(self.recipe.transfer.synthetic)
        return tuple(
            samples.build_samples(
                self.store, self.recipe.diffusion, self.diffusion, self.prepared, numbers,
                seed=self._diffusion_seed, runtime=self.runtime,
            )
            for numbers in blocks
        )  # fmt: skip

    @cached_property
    def transfer(self) -> Artifact:
        config = self.recipe.transfer
        count_real(config, self.prepared)  # before images are sampled: a plan, too, refuses more than there are
        sampled = self.samples if config.synthetic else ()
        return build_transfer(self.store, config, self.prepared_artifact, sampled, seed=self.recipe.seed)

    @property
    def transfer_set(self) -> TransferSet:
        return TransferSet(self.transfer.path, self.prepared)

    @property
    def shown_transfer_set(self) -> TransferSet:
        """The transfer set as the teacher sees it."""
        return TransferSet(self.transfer.path, Prepared(self.teacher_data.path))

    # --- student ---

    @cached_property
    def student_description(self) -> dict[str, Any]:
        """The network that every method but the controls ends with, and where its weights start."""
        student = self.recipe.student
        return describe_student(student, weights=student.weights if student.start == "weights" else None, **self._sizes)

    @property
    def _sizes(self) -> dict[str, Any]:
        return {"classes": list(self.prepared.classes), "image_size": self.prepared.image_size}

    @cached_property
    def budget(self) -> Budget:
        """The compute that the student gets, whatever the method."""
        flops = network_flops(self.student_description)
        return student_budget(self.recipe.distill, self.recipe.finetune, flops_per_image=flops)

    def finetuned(self, start: Artifact | None, *, within: int | None = None) -> Artifact:
        """Return the student fine-tuned from a start, or (None) trained on the labels from random weights.

        ``within``: the operations it may take, where this run has no pre-training; None: as long as the recipe says.
        """
        config = self.recipe.finetune
        description = {**self.student_description, "weights": None}  # a start holds them all
        if within is not None:
            steps = steps_within(within, config.batch_size * self.budget.flops_per_image)
            config = config.model_copy(update={"steps": steps})
        started = {} if start is None else {"start": start.digest}
        return self._train(
            "finetune",
            lambda folder: finetune.finetune(
                config, description, start.path if start else None, self.prepared, folder,
                seed=self.recipe.seed, runtime=self.runtime,
            ),
            config=config,
            inputs={"data": self.prepared_artifact.digest, "student": description_digest(description), **started},
            version=finetune.VERSION,
        )  # fmt: skip

    @cached_property
    def total_compute(self) -> int:
        """Operations of task-specific distillation with all that it takes: the student's, and the teacher's.

        The teacher's are those of its adaptation, every step that the recipe allows, and of its answers.
        """
        teacher_config, config = self.recipe.teacher, self.recipe.distill
        description = self.teacher_source.description
        adaptation = teacher_config.steps * teacher_config.batch_size * adaptation_flops(description)
        transfer = self.recipe.transfer  # counted by the settings: a diffusion model is not trained for it
        images = count_real(transfer, self.prepared) + transfer.synthetic + transfer.augmented
        seen = images * config.views if cache.cache_pays(config, images) else config.steps * config.batch_size
        return self.budget.total + adaptation + seen * answering_flops(description)

    # --- starts: what a student learns before the labels ---

    def distilled_by(self, teacher: Artifact) -> Artifact:
        """Return the student that has learned an adapted teacher's features and logits on the transfer set."""
        return self._distilled(self._distillation(self.recipe.distill, _adapted_guide(teacher)))

    @cached_property
    def distilled_agnostic(self) -> Artifact:
        """The student whose encoder has learned the features that the teacher has before its adaptation."""
        source = self.teacher_source
        config = self.recipe.distill.model_copy(update={"encoder_weight": 1.0, "decoder_weight": 0.0})
        guide = distill.Guide(teacher.bare_digest(source), lambda: teacher.load_bare(source))
        return self._distilled(self._distillation(config, guide))

    @property
    def cache(self) -> Artifact | None:
        """The adapted teacher's stored answers; None where computing them online is cheaper."""
        return self._distillation(self.recipe.distill, _adapted_guide(self.teacher)).cache(self.store)

    def _distillation(self, config: DistillConfig, guide: distill.Guide) -> distill.Distillation:
        if config.decoder_weight == 0:  # the decoder is not run: more steps, for the same compute
            flops = network_flops(self.student_description, distill.encoder_flops)
            steps = steps_within(self.budget.pretraining, config.batch_size * flops)
            config = config.model_copy(update={"steps": steps})
        inputs = {**self._pretraining_inputs, "teacher": guide.digest, **self._teacher_inputs}
        return distill.Distillation(
            config, self.student_description, guide, self.transfer_set, self.shown_transfer_set, inputs,
            self.recipe.seed, self.runtime,
        )  # fmt: skip

    def _distilled(self, work: distill.Distillation) -> Artifact:
        return self._train(
            "distill",
            lambda folder: work.learn(work.cache(self.store), folder),
            config=work.config,
            inputs=work.inputs,
            version=distill.VERSION,
        )

    @property
    def _pretraining_inputs(self) -> dict[str, str]:
        return {
            "data": self.prepared_artifact.digest,
            "transfer": self.transfer.digest,
            "student": description_digest(self.student_description),
        }

    @cached_property
    def pseudo_masks(self) -> Artifact:
        """The adapted teacher's hard masks on the transfer set."""
        inputs = {"data": self.prepared_artifact.digest, "transfer": self.transfer.digest, **self._teacher_inputs}
        return pseudo.build_masks(
            self.store, self.teacher, self.shown_transfer_set, inputs,
            image_size=self.prepared.image_size, seed=self.recipe.seed, runtime=self.runtime,
        )  # fmt: skip

    @cached_property
    def pseudo_labelled(self) -> Artifact:
        """The student that has learned the teacher's hard masks on the transfer set."""
        config, masks = self.recipe.distill, self.pseudo_masks
        return self._train(
            "pseudo_label",
            lambda folder: pseudo.learn_pseudo_labels(
                config, self.student_description, pseudo.pseudo_labels(self.transfer_set, masks.path), folder,
                seed=self.recipe.seed, runtime=self.runtime,
            ),
            config=config,
            without=pseudo.UNUSED_SETTINGS,
            inputs=self._pretraining_inputs | {"masks": masks.digest},
            version=pseudo.VERSION,
        )  # fmt: skip

    def pretrained(self, config: PretrainConfig) -> Artifact:
        """Return the student whose encoder has learned from the transfer images alone, MAE or MoCo v3 by ``config``."""
        description = self.student_description
        cost = pretrain.step_cost(config, description)
        allowed = steps_within(self.budget.pretraining, config.batch_size * cost.student)
        config = config.model_copy(update={"steps": min(config.steps, allowed)})
        return self._train(
            "pretrain",
            lambda folder: pretrain.pretrain(
                config, description, self.transfer_set, folder, seed=self.recipe.seed, runtime=self.runtime
            ),
            config=config,
            inputs=self._pretraining_inputs,
            version=pretrain.VERSION,
        )

    @cached_property
    def imagenet(self) -> Artifact:
        """The student whose backbone comes from the weight file of the recipe."""
        description = {**self.student_description, "weights": self.recipe.student.weights}
        return pretrain.build_from_weights(self.store, description, seed=self.recipe.seed)

    # --- controls ---

    @cached_property
    def control(self) -> Artifact:
        """The U-Net that sees the labels alone."""
        return self._control({}, lambda: training_labels(self.prepared))

    @cached_property
    def control_pseudo(self) -> Artifact:
        """The U-Net that sees the labels and the teacher's hard masks on the transfer set."""
        masks = self.pseudo_masks
        inputs = {"masks": masks.digest, "transfer": self.transfer.digest}
        return self._control(
            inputs, lambda: pseudo.labels_and_pseudo_labels(self.prepared, self.transfer_set, masks.path)
        )

    def _control(self, inputs: Mapping[str, str], labelled: Callable[[], Labelled]) -> Artifact:
        control = self.recipe.control
        description = {"kind": "dynunet", "arguments": {"channels": list(control.channels)}, "weights": None}
        description |= self._sizes
        allowed = steps_within(self.budget.total, control.batch_size * network_flops(description))
        config = control.model_copy(update={"steps": min(control.steps, allowed)})
        return self._train(
            "control",
            lambda folder: finetune.train_control(
                config, description, labelled(), self.prepared, folder,
                seed=self.recipe.seed, runtime=self.runtime,
            ),
            config=config,
            inputs={"data": self.prepared_artifact.digest, **inputs},
            version=finetune.VERSION,
        )  # fmt: skip

    # --- scores ---

    def evaluation(self, model: Artifact, title: str) -> Artifact:
        """Return the scores of a trained model on the test images."""
        return evaluate.build_evaluation(
            self.store, self.recipe.evaluate, self.tested_artifact, model,
            title=title, seed=self.recipe.seed, runtime=self.runtime,
        )  # fmt: skip

    def ablation(self, model: Artifact) -> Artifact:
        """Return what a trained model scores on the test images without its encoder's features or without its skip."""
        return ablation.build_ablation(self.store, self.tested_artifact, model, runtime=self.runtime)

    # --- artifacts ---

    @property
    def costs(self) -> Costs:
        """Seconds and peak memory of every artifact asked for so far, as measured when it was made."""
        return {name: cost for artifact in self.store.used.values() for name, cost in artifact.costs.items()}

    def _train(
        self,
        stage: str,
        make: Callable[[Path], Mapping[str, Any]],
        *,
        config: TrainConfig,
        without: frozenset[str] = frozenset(),
        seed: int | None = None,
        **rest: Any,
    ) -> Artifact:
        settings = {**config.model_dump(exclude=set(without)), "precision": self.recipe.engine.precision}
        return self.store.build(
            stage, make, config=settings, seed=self.recipe.seed if seed is None else seed, together=True, **rest
        )


def describe_student(
    student: StudentConfig, *, weights: str | None, classes: Sequence[str], image_size: int
) -> dict[str, Any]:
    """Return what the registry builds a recipe's student from.

    A weight file that is named says what pixels every student of the recipe sees, so that all start alike.
    """
    arguments: dict[str, Any] = {"backbone": student.backbone, "decoder": student.decoder, **_expected_by(student)}
    patch = student.patch or patch_for(student.backbone, image_size)
    arguments |= {} if patch is None else {"patch": patch}
    return {
        "kind": "timm", "arguments": arguments, "weights": weights, "classes": list(classes), "image_size": image_size,
    }  # fmt: skip


def _expected_by(student: StudentConfig) -> dict[str, Any]:
    stated = {} if student.pixels == "auto" else {"pixels": student.pixels}
    if student.weights in (None, OFFLINE):
        return stated
    try:
        return {**identify(Path(student.weights), student.backbone).arguments, **stated}
    except UserError:  # nothing that starts from the file gets this far: buildable.check_networks
        return stated


def _adapted_guide(teacher: Artifact) -> distill.Guide:
    return distill.Guide(teacher.digest, lambda: load_model(teacher.path))
