"""Target: the images of the site where a student will work, from which it learns without their labels."""

from __future__ import annotations

from tskd.artifacts import Artifact, Builder
from tskd.data.prepared import OF_TARGET, Prepared
from tskd.recipe.schema import Recipe
from tskd.stages import leaks, prepare
from tskd.stages.readings import Readings


def build(store: Builder, recipe: Recipe, tested: Artifact, readings: Readings | None = None) -> Artifact:
    """Return the prepared data of ``transfer.target``, at the larger of the student's and the stated teacher's size.

    Raises UserError where it holds, beside its own test part, an image that is ``tested``.
    """
    data, other = recipe.data, recipe.transfer.target
    assert other is not None
    artifact = prepare.build_target(store, data, other, readings)
    prepared, test = Prepared(artifact.path), Prepared(tested.path)
    if prepare.same_images(recipe.evaluate.data or data, other):
        remedy = leaks.OF_A_SPLIT.format(key="transfer.target.where")
        leaks.refuse_seen_cases(prepared.cases(*OF_TARGET), test, what="transfer.target", remedy=remedy)
    elif not data.allow_duplicates:
        testing = "data.root" if recipe.evaluate.data is None else "evaluate.data"
        leaks.refuse_seen_images(prepared, test, trained="transfer.target", testing=testing)
    if (side := recipe.teacher.image_size or 0) <= data.image_size:
        return artifact
    return prepare.build_target(store, data.model_copy(update={"image_size": side}), other, readings)
