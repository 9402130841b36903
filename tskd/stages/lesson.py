"""A lesson: which student learns which teacher's answers on which images; distillation and its cache share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from tskd.artifacts import Artifact
from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet
from tskd.models.description import NetworkDescription
from tskd.models.registry import description_digest
from tskd.stages.shown import as_input


@dataclass(frozen=True)
class Teacher:
    """Whose answers a student learns: the adapted teacher's or, for the task-agnostic arm, the bare one's."""

    digest: str
    """Of all that its answers depend on."""
    load: Callable[[], nn.Module]


@dataclass(frozen=True)
class Lesson:
    """One student, one teacher, one transfer set."""

    student: NetworkDescription
    teacher: Teacher
    transfer: Artifact
    data: Artifact
    """The prepared data that the transfer set's real images lie in."""
    shown: Artifact
    """The same images at the teacher's own size."""

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of all of them."""
        return {
            **pretraining_inputs(self.student, self.transfer, self.data),
            "teacher": self.teacher.digest,
            **as_input(self.shown, self.data),
        }

    @cached_property
    def seen(self) -> TransferSet:
        """The transfer set as the student sees it."""
        return TransferSet(self.transfer.path, Prepared(self.data.path))

    @cached_property
    def seen_by_teacher(self) -> TransferSet:
        """The same images as the teacher sees them."""
        return TransferSet(self.transfer.path, Prepared(self.shown.path))


def pretraining_inputs(student: NetworkDescription, transfer: Artifact, data: Artifact) -> dict[str, str]:
    """Return what every pre-training on a transfer set depends on."""
    return {"data": data.digest, "transfer": transfer.digest, "student": description_digest(student)}
