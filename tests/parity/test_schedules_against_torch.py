"""Our schedule against torch's own, composed of its linear warm-up and its cosine."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from tskd.engine.schedules import learning_rate_factor


@pytest.mark.parametrize(("steps", "rise"), [(100, 10), (37, 5), (12, 2)])
def test_warmup_and_cosine_are_those_of_torch(steps: int, rise: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warm = LinearLR(optimizer, start_factor=1 / rise, total_iters=rise - 1)
    cosine = CosineAnnealingLR(optimizer, T_max=steps - rise)
    schedule = SequentialLR(optimizer, [warm, cosine], milestones=[rise])
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate_factor(step, steps, rise / steps) == pytest.approx(expected, abs=1e-6), step
        optimizer.step()
        schedule.step()
