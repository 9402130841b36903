"""How test images are scored, whatever answers them: each by itself, and stacked where they make volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np

from tskd.data.prepared import Part, PreparedRecord
from tskd.data.volumes import Stack, find_stacks
from tskd.metrics.segmentation import Level, ScoreRow, Spacing, Unit, headline, score_case, shared_unit, summarise
from tskd.types import UNLABELLED


class Scorable(Protocol):
    """What scoring takes of a data set: a prepared one, or labelled images that a shipped model has answered."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the foreground classes."""
        ...

    @property
    def records(self) -> tuple[PreparedRecord, ...]:
        """What is known of each row."""
        ...

    def rows(self, *parts: Part) -> np.ndarray:
        """Return the rows of the parts."""
        ...

    def native_image(self, row: int) -> np.ndarray:
        """Return a test image at its own size, (H, W, 3) uint8."""
        ...

    def native_mask(self, row: int) -> np.ndarray:
        """Return a test mask at its own size, (H, W) uint8 class index."""
        ...


@dataclass(frozen=True)
class Scoring:
    """How the test images of a data set are scored: which of them make a volume, and in which unit."""

    prepared: Scorable
    stacks: tuple[Stack, ...]
    """Empty: every image is scored by itself alone."""
    units: Mapping[Level, Unit]
    remarks: tuple[str, ...]
    """What a reader of the scores should know."""
    distances: bool = True
    """False: overlaps alone, where nobody reads HD95 and ASSD."""

    @classmethod
    def of(cls, prepared: Scorable, *, distances: bool = True) -> Self:
        """Look at the test part of a data set."""
        rows = prepared.rows("test")
        stacks, remarks = find_stacks(prepared.records, rows)
        spacings = [prepared.records[row].spacing for row in rows]
        image, of_images = shared_unit([spacing and spacing[:2] for spacing in spacings])
        volume, of_volumes = shared_unit([stack.spacing for stack in stacks], "volume")
        said = (*remarks, *(one for one in (of_images, of_volumes) if one is not None))
        return cls(prepared, stacks, {"image": image, "volume": volume}, said, distances)

    def groups(self) -> list[tuple[int, ...]]:
        """Return the rows that are scored together: those of each volume, or single ones."""
        return [stack.rows for stack in self.stacks] or [(int(row),) for row in self.prepared.rows("test")]

    @cached_property
    def stack_of(self) -> Mapping[int, Stack]:
        """The volume of each row that is in one."""
        return {row: stack for stack in self.stacks for row in stack.rows}

    def score_image(self, row: int, prediction: np.ndarray) -> list[ScoreRow]:
        """Score one test image, (H, W) class indices, a row a class."""
        record = self.prepared.records[row]
        spacing = record.spacing[:2] if record.spacing and self.units["image"] == "mm" else None
        return self._scores("image", record.case, record.id, prediction, self.prepared.native_mask(row), spacing)

    def score_stack(self, stack: Stack, predictions: Sequence[np.ndarray]) -> list[ScoreRow]:
        """Score one volume by the predictions of its slices, a row a class; slices without a mask are left out."""
        spacing = stack.spacing if self.units["volume"] == "mm" else None
        mask = stack.assemble(map(self.prepared.native_mask, stack.rows), missing=UNLABELLED)
        return self._scores("volume", stack.case, stack.name, stack.assemble(predictions, missing=0), mask, spacing)

    def _scores(
        self, level: Level, case: str, name: str, prediction: np.ndarray, mask: np.ndarray, spacing: Spacing | None
    ) -> list[ScoreRow]:
        classes = len(self.prepared.classes)
        scores = score_case(prediction, mask, classes=classes, spacing=spacing, distances=self.distances)
        return [ScoreRow(case, name, label, self.units[level], one, level) for label, one in enumerate(scores, start=1)]


class Tally:
    """The scores of one model on a test set, collected image by image in any order."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring
        self.scores: list[ScoreRow] = []
        """Of every image so far, and of every volume whose slices have all come."""
        self._waiting: dict[int, np.ndarray] = {}

    def add(self, row: int, prediction: np.ndarray) -> None:
        """Score the prediction of a row, (H, W) uint8 class indices, and its volume where this is the last slice."""
        self.scores += self.scoring.score_image(row, prediction)
        stack = self.scoring.stack_of.get(row)
        if stack is None:
            return
        self._waiting[row] = prediction
        if all(one in self._waiting for one in stack.rows):
            self.scores += self.scoring.score_stack(stack, [self._waiting.pop(one) for one in stack.rows])

    @property
    def headline(self) -> list[ScoreRow]:
        """The rows that ``summarise`` makes a model's figures from: volumes where the set has some, else images."""
        return headline(self.scores)


def summarise_levels(scores: Sequence[ScoreRow]) -> dict[str, Any]:
    """Return the summary of volumes with that of their slices in ``slices``, or that of single images."""
    summary = summarise(headline(scores), seed=0).as_dict()
    if summary["level"] == "image":
        return summary
    slices = summarise([score for score in scores if score.level == "image"], seed=0).as_dict()
    return {**summary, "n_images": slices["n_images"], "slices": slices}
