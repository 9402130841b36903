from __future__ import annotations

import shutil
import time

import pytest
import torch

from tskd.engine import open_runtime
from tskd.engine.runtime import allow_tf32
from tskd.errors import UserError
from tskd.recipe.schema import EngineConfig

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


def test_float16_is_float16_on_a_cpu_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Fabric would silently take bf16 for it."""
    runtime = open_runtime(EngineConfig(**CPU, precision="16-mixed"))
    assert "ten times as long" in capsys.readouterr().err
    module = runtime.fabric.setup(torch.nn.Linear(2, 2))
    with runtime.fabric.autocast():
        assert torch.nn.functional.linear(torch.ones(1, 2), module.weight).dtype == torch.float16
    first, second = runtime.new_scaler(), runtime.new_scaler()
    assert first is not second
    loss = module(torch.ones(1, 2)).sum() / 2  # 2^16 itself is beyond float16
    runtime.fabric.backward(loss)
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [[2**15] * 2] * 2, "scaled by the newest scaler, once"
    assert open_runtime(EngineConfig(**CPU)).new_scaler() is None


@pytest.mark.parametrize(
    ("capability", "wanted", "used"), [((8, 0), True, True), ((8, 0), False, False), ((7, 5), True, False)]
)
def test_tf32_is_used_where_it_is_and_may_be_forbidden(
    capability: tuple[int, int], wanted: bool, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    try:
        allow_tf32(wanted)
        assert torch.get_float32_matmul_precision() == ("high" if used else "highest")
        assert torch.backends.cudnn.allow_tf32 is used
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_compiling_without_a_compiler_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"engine.compile=true needs a C\+\+ compiler"):
        open_runtime(EngineConfig(**CPU, compile=True))


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has what is asked for"
)
def test_a_device_that_is_not_there_is_said_before_any_work() -> None:
    with pytest.raises(UserError, match=r"accelerator gpu, 1 device\(s\).* is not available on this machine"):
        open_runtime(EngineConfig(accelerator="gpu"))


def test_a_library_says_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    """ "Using bfloat16 Automatic Mixed Precision (AMP)" stood between our own lines, twice."""
    caplog.set_level("INFO")
    open_runtime(EngineConfig(accelerator="cpu", precision="bf16-mixed"))
    assert [record.getMessage() for record in caplog.records] == []
