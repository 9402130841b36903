"""A run without labels: the student that learns from some teacher on the images that all sites share."""

from __future__ import annotations

from tskd.artifacts import Artifact
from tskd.experiment.run import Run
from tskd.stages import public, teacher_images


class PublicRun(Run):
    """A recipe's run whose data are the shared images; nothing of it needs a label."""

    @property
    def prepared_artifact(self) -> Artifact:
        return self.once("prepared", lambda: public.build(self.bench.store, self.recipe.transfer_data))

    def shown(self, size: int) -> Artifact:
        """Return the shared images as a teacher of that size sees them."""
        return teacher_images.build(self.bench, self.recipe.transfer_data, self.prepared_artifact, size)

    def finetuned(self, start: Artifact | None, *, within: int | None = None) -> Artifact:
        """Return the initialisation as it is: where no label lies, what distillation has taught is the student."""
        assert start is not None, "methods that need labels are refused by federated/opening.py"
        return start
