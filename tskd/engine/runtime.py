"""Where training runs: Fabric, threads, and the time it may take."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from tskd.config import EngineConfig
from tskd.errors import UserError
from tskd.memory import keep_freed_memory


@dataclass(frozen=True)
class Runtime:
    """The machine side of a run."""

    fabric: Fabric
    checkpoint_seconds: float = 60.0
    deadline: float | None = None
    """``time.monotonic()`` after which training saves its state and pauses."""

    @property
    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


def started_by_fabric() -> bool:
    """Say whether ``fabric run`` has started this process, and with it the others already."""
    return os.environ.get("LT_CLI_USED", "0") != "0"


def open_runtime(config: EngineConfig, *, minutes: float | None = None) -> Runtime:
    """Start Fabric as the recipe says; ``minutes`` is the wall-clock limit after which a run pauses."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    strategy = "ddp" if config.strategy == "auto" and config.devices * config.num_nodes > 1 else config.strategy
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=strategy,
            precision=config.precision,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise UserError(
            f"engine: accelerator {config.accelerator}, {config.devices} device(s), strategy {strategy}, precision "
            f"{config.precision} cannot be had on this machine: {error} `tskd doctor` shows what it has."
        ) from error
    if not started_by_fabric():
        fabric.launch()
    if fabric.device.type == "cpu":
        keep_freed_memory()
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    return Runtime(fabric, config.checkpoint_seconds, deadline)
