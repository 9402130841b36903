"""What only distillation needs: from student features to the teacher's. Trained and saved apart from the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tskd.types import SegmentationOutput


class DistillationOutput(NamedTuple):
    """The student's answer and its features as the teacher would have them."""

    projected: Tensor
    """(B, C_teacher, h, w) on the student's grid."""
    segmentation: SegmentationOutput


class Distilled(nn.Module):
    """A student and the projection of its embedding to the width of the teacher's.

    Without ``decode`` the student's decoder is neither run nor trained, and the answer has no logits.
    """

    def __init__(self, student: Any, *, student_dim: int, teacher_dim: int, decode: bool = True) -> None:
        super().__init__()
        self.student = student if decode else EncoderOnly(student)
        self.projection = nn.Conv2d(student_dim, teacher_dim, 1)

    def forward(self, images: Tensor) -> DistillationOutput:
        segmentation = self.student(images)
        return DistillationOutput(self.projection(segmentation.features[-1]), segmentation)


class EncoderOnly(nn.Module):
    """A segmenter that answers features and no logits, (B, 0, H, W); its decoder is frozen.

    It is the teacher of task-agnostic distillation, whose decoder knows nothing of the task, and the student there.
    """

    def __init__(self, segmenter: Any) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.segmenter.decoder.requires_grad_(False)
        self.feature_dims: tuple[int, ...] = self.segmenter.feature_dims

    def forward(self, images: Tensor) -> SegmentationOutput:
        height, width = images.shape[-2:]
        return SegmentationOutput(self.segmenter.encode(images), images.new_empty(len(images), 0, height, width))


def matching_level(teacher: Sequence[Tensor], student_side: int) -> int:
    """Return which of the teacher's features the student's embedding is matched with.

    The deepest that is at least as fine as the student's grid: a coarser one says less about each position. Where all
    are coarser, the deepest.
    """
    fine = [level for level, features in enumerate(teacher) if features.shape[-1] >= student_side]
    return fine[-1] if fine else len(teacher) - 1
