"""A network beside its own running average, which teaches it (Tarvainen and Valpola 2017, arXiv 1703.01780)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tskd.models.moco import momentum_copy


class MeanTeacher(nn.Module):
    """Answers as its student; ``teacher`` is the student's moving average, norms' statistics included.

    The average is held in buffers: a checkpoint holds it, the optimiser does not know it.
    """

    updates: Tensor

    def __init__(self, student: Any, *, decay: float, parts: int = 1) -> None:
        """``parts``: of which a batch is cut into, so many passes make one step."""
        super().__init__()
        self.student, self.decay, self.parts = student, decay, parts
        self._passes = 0
        self.teacher = momentum_copy(student)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Any:
        """(B, 3, H, W) in [0, 1] to the student's answer; in training the average first follows the last step."""
        if self.training:
            if self._passes % self.parts == 0:
                self._follow()
            self._passes += 1
        return self.student(images)

    def train(self, mode: bool = True) -> MeanTeacher:
        """The average always answers as at work: nothing is dropped, and norms use their statistics."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.decay, (1 + int(self.updates)) / (10 + int(self.updates)))
        held = dict(self.teacher.named_buffers())
        for name, value in (*self.student.named_parameters(), *self.student.named_buffers()):
            if value.dtype.is_floating_point:
                held[name].lerp_(value.detach(), 1 - decay)
        self.updates += 1
