"""Where training runs: Fabric, threads, precision, and the time it may take."""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.utilities.exceptions import MisconfigurationException

from tskd.console import warn
from tskd.errors import UserError
from tskd.machine.memory import keep_freed_memory
from tskd.recipe.schema import EngineConfig, PrecisionName

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # what it remarks on itself is no news for a user
_FIRST_WITH_TF32 = (8, 0)
"""CUDA compute capability of Ampere."""


@dataclass(frozen=True)
class Runtime:
    """The machine side of a run."""

    fabric: Fabric
    checkpoint_seconds: float = 60.0
    deadline: float | None = None
    """``time.monotonic()`` after which training saves its state and pauses."""
    precision: PrecisionName = "32-true"
    float16: MixedPrecision | None = None
    """Fabric's part for ``16-mixed``."""
    compile: bool = False

    @property
    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """Return what scales the gradients of one training from now on; None where the precision needs no scaling.

        It keeps small gradients above the least number of float16 and skips steps whose large ones overflow. Its state
        belongs to the training's checkpoints, so no training may go on with that of another.
        """
        if self.float16 is None:
            return None
        self.float16.scaler = torch.amp.GradScaler(self.fabric.device.type)
        return self.float16.scaler


def started_by_fabric() -> bool:
    """Say whether ``fabric run`` has started this process, and with it the others already."""
    return os.environ.get("LT_CLI_USED", "0") != "0"


def open_runtime(config: EngineConfig, *, minutes: float | None = None) -> Runtime:
    """Start Fabric as the recipe says; ``minutes`` is the wall-clock limit after which a run pauses."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.compile:
        require_compiler()
    kind = device_kind(config.accelerator)
    if kind == "cuda":
        allow_tf32(config.tf32)
    strategy = "ddp" if config.strategy == "auto" and config.devices * config.num_nodes > 1 else config.strategy
    # Fabric itself takes bf16 for float16 on a CPU, where torch has float16 by now (slow: to try a recipe out)
    float16 = MixedPrecision("16-mixed", device=kind) if config.precision == "16-mixed" else None
    precision: dict[str, Any] = {"plugins": [float16]} if float16 else {"precision": config.precision}
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=strategy,
            **precision,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise UserError(
            f"engine: accelerator {config.accelerator}, {config.devices} device(s), strategy {strategy}, precision "
            f"{config.precision} is not available on this machine: {error} `tskd doctor` shows what it has."
        ) from error
    if not started_by_fabric():
        fabric.launch()
    if fabric.device.type == "cpu":
        keep_freed_memory()
        if float16:
            warn("engine.precision=16-mixed is for GPUs without bf16; a processor takes ten times as long with it")
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    return Runtime(fabric, config.checkpoint_seconds, deadline, config.precision, float16, config.compile)


def device_kind(accelerator: str) -> str:
    """Return torch's name of the kind of device that Fabric takes for an ``engine.accelerator``."""
    if accelerator in ("cpu", "mps"):
        return accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def allow_tf32(allowed: bool) -> None:
    """Let matrix products and convolutions in float32 round their factors to 10 bits of mantissa, or forbid it.

    GPUs before Ampere have no such units: nothing changes on them.
    """
    allowed = allowed and torch.cuda.get_device_capability() >= _FIRST_WITH_TF32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def require_compiler() -> None:
    """Raise UserError where torch.compile would fail in the first step for want of a C++ compiler."""
    candidates = (os.environ.get("CXX", "g++"), "clang++", "cl")
    if not any(map(shutil.which, candidates)):
        raise UserError("engine.compile=true needs a C++ compiler, and no g++ was found. Install one, or leave it off.")
