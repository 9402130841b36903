from __future__ import annotations

import time

import pytest
import torch

from tskd.config import EngineConfig
from tskd.engine import open_runtime
from tskd.errors import UserError

CPU = {"accelerator": "cpu"}


def test_minutes_become_a_deadline() -> None:
    assert not open_runtime(EngineConfig(**CPU)).out_of_time
    assert not open_runtime(EngineConfig(**CPU), minutes=1).out_of_time
    assert open_runtime(EngineConfig(**CPU), minutes=0).out_of_time
    runtime = open_runtime(EngineConfig(**CPU), minutes=2)
    assert runtime.deadline is not None
    assert runtime.deadline - time.monotonic() == pytest.approx(120, abs=20)


def test_the_recipe_decides_threads_precision_and_saving() -> None:
    before = torch.get_num_threads()
    try:
        runtime = open_runtime(EngineConfig(**CPU, threads=1, precision="bf16-mixed", checkpoint_seconds=5))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert runtime.checkpoint_seconds == 5
    assert runtime.fabric.device.type == "cpu"
    module = runtime.fabric.setup(torch.nn.Linear(2, 2))
    with runtime.fabric.autocast():
        inside = torch.nn.functional.linear(torch.ones(1, 2), module.weight)
    assert inside.dtype == torch.bfloat16
    assert module(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has what is asked for"
)
def test_a_device_that_is_not_there_is_said_before_any_work() -> None:
    with pytest.raises(UserError, match=r"accelerator gpu, 1 device\(s\).* cannot be had on this machine"):
        open_runtime(EngineConfig(accelerator="gpu"))
