"""Who teaches the student of a run: one network or several as one, adapted to the labels or left as they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tskd.artifacts import Artifact
from tskd.engine.batches import allowed_flips
from tskd.recipe.schema import TeacherConfig
from tskd.stages import ensemble, teacher
from tskd.stages.teacher import TeacherSource

if TYPE_CHECKING:
    from tskd.experiment.run import Run


@dataclass
class Teachers:
    """The teachers of a run, and the images as they see them."""

    run: Run

    @property
    def sources(self) -> tuple[TeacherSource, ...]:
        """The network of every kind of teacher that the recipe names, and where its weights lie."""
        return self.run.once("sources", lambda: tuple(map(self._source, self.run.recipe.teacher.kinds)))

    @property
    def source(self) -> TeacherSource:
        """The first of them."""
        return self.sources[0]

    @cached_property
    def data(self) -> Artifact:
        """The images and masks that the teacher is asked about: the prepared data, or the same rows at its own size.

        Where several kinds answer, that is the largest of their sizes, and each makes the images smaller for itself.
        """
        return self.run.shown(max(source.description.image_size for source in self.sources))

    @cached_property
    def adapted(self) -> Artifact:
        """The adapted teacher, or several as one."""
        if members := self.members:
            return self.together(members, spent_on=members)
        return self._adapted(self.run.recipe.teacher, self.source)

    @cached_property
    def members(self) -> tuple[Artifact, ...]:
        """The teachers that answer together; none where one answers by itself, and not for mirrored images."""
        kinds = self.run.recipe.teacher.kinds
        if sum(kind.members for kind in kinds) == 1 and not kinds[0].mirror:
            return ()
        return tuple(
            self._adapted(kind, source, number if kind.members > 1 else None)
            for kind, source in zip(kinds, self.sources)
            for number in range(kind.members)
        )

    @cached_property
    def probed(self) -> Artifact:
        """The teacher whose encoder stays as it was; only its decoder has learned from the labels."""
        config = self.run.recipe.teacher.model_copy(update={"adaptation": "probe"})
        return self._adapted(config, self._source(config))

    def together(self, members: Sequence[Artifact], *, spent_on: Sequence[Artifact]) -> Artifact:
        """Return networks as one; ``spent_on``: those whose trainings, with all that led to them, are all the cost."""
        flip = allowed_flips(self.run.recipe.teacher.augment.flip, self.run.prepared.classes)
        return ensemble.build(self.run.bench, members, flip=flip, spent_on=spent_on)

    def _source(self, config: TeacherConfig) -> TeacherSource:
        prepared = self.run.prepared
        return teacher.choose_teacher(config, prepared.classes, prepared.image_size, download=self.run.download)

    def _adapted(self, config: TeacherConfig, source: TeacherSource, member: int | None = None) -> Artifact:
        run, shown = self.run, self.run.shown(source.description.image_size)
        transfer = None if config.unlabelled is None else run.transfer
        return teacher.build(
            run.bench, config, source, run.prepared_artifact, shown, member=member, target=run.target, transfer=transfer
        )
