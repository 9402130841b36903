"""Tested: the data set whose test images are scored, the recipe's own or another that nothing was learned from."""

from __future__ import annotations

from tskd.artifacts import Artifact, Builder
from tskd.data.prepared import Prepared
from tskd.recipe.schema import DataConfig, SourceConfig
from tskd.stages import leaks, prepare
from tskd.stages.readings import Readings


def build(
    store: Builder,
    data: DataConfig,
    other: SourceConfig | None,
    trained_on: Artifact,
    readings: Readings | None = None,
) -> Artifact:
    """Return the prepared data set of ``other``, or (None) the one that is trained on.

    Raises UserError where its classes are not those of the training data, or training has seen one of its test images.
    """
    if other is None:
        return trained_on
    artifact = prepare.build(store, prepare.tested_data(data, other), readings)
    prepared, tested = Prepared(trained_on.path), Prepared(artifact.path)
    leaks.refuse_other_classes(prepared, tested)
    if prepare.same_images(data, other):
        seen = prepared.cases("train", "val", "unlabelled")
        remedy = leaks.OF_A_SPLIT.format(key="evaluate.data.where")
        leaks.refuse_seen_cases(seen, tested, what="training", remedy=remedy)
    if not data.allow_duplicates:
        leaks.refuse_seen_images(prepared, tested, trained="data.root", testing="evaluate.data")
    return artifact
