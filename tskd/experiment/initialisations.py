"""What a student learns before the labels: from a teacher, from images alone, or from a file of weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from tskd.artifacts import Artifact
from tskd.experiment.budget import at_most, lasting, network_flops
from tskd.models.registry import load_model
from tskd.recipe.schema import DistillConfig, PretrainConfig
from tskd.stages import cache, distill, imagenet, pretrain, pseudo_label, pseudo_masks, teacher
from tskd.stages.lesson import Lesson, Teacher

if TYPE_CHECKING:
    from tskd.experiment.run import Run


@dataclass
class Initialisations:
    """The student of a run before it is fine-tuned, each in another way. All spend what distillation spends on it."""

    run: Run

    @cached_property
    def distilled(self) -> Artifact:
        """The student that has learned from the teacher; after the first round from the student before it as well."""
        run = self.run
        start = self.distilled_by(run.teachers.adapted)
        teachers = run.teachers.members or (run.teachers.adapted,)
        for _ in range(1, run.recipe.distill.rounds):
            student = run.finetuned(start)
            start = self.distilled_by(run.teachers.together((*teachers, student), spent_on=(student,)))
        return start

    def distilled_by(self, adapted: Artifact) -> Artifact:
        """Return the student that has learned an adapted teacher's features and logits on the transfer set."""
        return self._distilled(self.run.recipe.distill, _answers_of(adapted))

    @cached_property
    def distilled_agnostic(self) -> Artifact:
        """The student whose encoder has learned the features that the teacher has before its adaptation."""
        source = self.run.teachers.source
        config = self.run.recipe.distill.model_copy(update={"encoder_weight": 1.0, "decoder_weight": 0.0})
        return self._distilled(config, Teacher(teacher.bare_digest(source), lambda: teacher.load_bare(source)))

    @property
    def cache(self) -> Artifact | None:
        """The adapted teacher's stored answers; None where computing them online is cheaper."""
        config = self._affordable(self.run.recipe.distill)
        return cache.build(self.run.bench, config, self._lesson(_answers_of(self.run.teachers.adapted)))

    @cached_property
    def pseudo_masks(self) -> Artifact:
        """The adapted teacher's hard masks on the transfer set."""
        run = self.run
        return pseudo_masks.build(
            run.bench, run.teachers.adapted, run.transfer, run.prepared_artifact, run.teachers.data
        )

    @cached_property
    def pseudo_labelled(self) -> Artifact:
        """The student that has learned the teacher's hard masks on the transfer set."""
        run, config = self.run, self.run.recipe.distill
        return pseudo_label.build(
            run.bench, config, run.student_description, self.pseudo_masks, run.transfer, run.prepared_artifact
        )

    def pretrained(self, config: PretrainConfig) -> Artifact:
        """Return the student whose encoder has learned from the transfer images alone, MAE or MoCo v3 by ``config``."""
        run, description = self.run, self.run.student_description
        cost = pretrain.step_cost(config, description)
        config = at_most(config, run.budget.pretraining, cost.student)
        return pretrain.build(run.bench, config, description, run.transfer, run.prepared_artifact)

    @cached_property
    def imagenet(self) -> Artifact:
        """The student whose backbone comes from the weight file of the recipe."""
        description = replace(self.run.student_description, weights=self.run.recipe.student.weights)
        return imagenet.build(self.run.bench, description)

    def _distilled(self, config: DistillConfig, answering: Teacher) -> Artifact:
        bench, config, lesson = self.run.bench, self._affordable(config), self._lesson(answering)
        return distill.build(bench, config, lesson, lambda: cache.build(bench, config, lesson))

    def _lesson(self, answering: Teacher) -> Lesson:
        run = self.run
        return Lesson(run.student_description, answering, run.transfer, run.prepared_artifact, run.teachers.data)

    def _affordable(self, config: DistillConfig) -> DistillConfig:
        """Return the settings with as many more steps as the same compute allows where the decoder is not run."""
        if config.decoder_weight > 0:
            return config
        flops = network_flops(self.run.student_description, distill.encoder_flops)
        return lasting(config, self.run.budget.pretraining, flops)


def _answers_of(teacher: Artifact) -> Teacher:
    return Teacher(teacher.digest, lambda: load_model(teacher.path))
