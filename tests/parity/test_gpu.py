"""What a GPU computes is what the CPU computes, in every precision and after a resume. Without a GPU all are skipped.

`benchmarks/gpu.py` runs these first.
"""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tskd.artifacts import measured
from tskd.engine import ImageBatches, Runtime, Training, fit, open_runtime
from tskd.engine.logs import read_log
from tskd.models.description import NetworkDescription
from tskd.models.registry import build_model
from tskd.recipe.schema import AugmentConfig, EngineConfig, FinetuneConfig, PrecisionName
from tskd.stages.label_training import label_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() and "TSKD_GPU_TESTS_ON_CPU" not in os.environ, reason="there is no GPU"
    ),
]
STEPS, SIZE, BATCH = 6, 32, 4


class Killed(Exception):
    """Stands for a kill."""


def runtime(precision: PrecisionName = "32-true", accelerator: str | None = None, **more: Any) -> Runtime:
    """Return the GPU's runtime, in full float32 unless the precision says otherwise."""
    accelerator = accelerator or ("gpu" if torch.cuda.is_available() else "cpu")
    config = {"accelerator": accelerator, "precision": precision, "tf32": False, "checkpoint_seconds": 0, **more}
    return open_runtime(EngineConfig.model_validate(config))


def training() -> Training:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, SIZE, SIZE, 3), np.uint8)
    masks = (images.mean(axis=-1) > 128).astype(np.uint8)
    batches = ImageBatches(images, masks, [str(row) for row in range(16)], BATCH, AugmentConfig(), seed=0)
    torch.manual_seed(0)
    # without the skip, whose dropping is drawn by each device for itself
    arguments = {"backbone": "vit_tiny_patch16_224", "decoder": "plain"}
    student = NetworkDescription("timm", arguments, ("any",), SIZE)
    # AdamW's first steps are the signs of gradients, whose rounding would show were the rate not small
    settings = FinetuneConfig(steps=STEPS, batch_size=BATCH, lr=1e-4, validate_every=2)
    return Training("gpu", build_model(student), label_step, batches, settings, seed=0)


def losses(folder: Path, machine: Runtime) -> list[float]:
    folder.mkdir()
    fit(training(), folder, machine)
    return [line["loss"] for line in read_log(folder) if "loss" in line]


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-3), ("bf16-mixed", 0.03), ("16-mixed", 0.03)])
def test_a_training_on_the_gpu_has_the_losses_of_the_cpu(
    tmp_path: Path, precision: PrecisionName, tolerance: float
) -> None:
    found = losses(tmp_path / "gpu", runtime(precision))
    assert found == pytest.approx(losses(tmp_path / "cpu", runtime(accelerator="cpu")), rel=tolerance)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_resumed_training_ends_as_if_it_had_not_been_killed(tmp_path: Path, precision: PrecisionName) -> None:
    machine = runtime(precision)

    def kill(done: int, module: object) -> None:
        if done == 3:
            raise Killed

    expected = losses(tmp_path / "whole", machine)
    with pytest.raises(Killed):
        fit(replace(training(), on_step=kill), tmp_path, machine)
    fit(training(), tmp_path, machine)
    assert [line["loss"] for line in read_log(tmp_path) if "loss" in line] == pytest.approx(expected, rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_peak_of_the_gpus_memory_is_measured(tmp_path: Path) -> None:
    machine = runtime()
    gc.collect()
    held = torch.cuda.memory_allocated() / 2**20  # by what earlier tests left behind
    with measured() as small:
        torch.zeros(2**20, device=machine.fabric.device)
    with measured() as large:
        fit(training(), tmp_path, machine)
    weights = sum(parameter.numel() * 4 for parameter in training().module.parameters()) / 2**20
    assert small["peak_gpu_memory_mb"] - held == pytest.approx(4, abs=1), "a million floats"
    assert large["peak_gpu_memory_mb"] - held > 4 * weights, "weights, gradients and the two moments of AdamW"


@pytest.mark.slow
def test_a_compiled_training_has_the_same_losses(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("compiling for a CPU takes minutes")
    found = losses(tmp_path / "compiled", runtime(compile=True))
    assert found == pytest.approx(losses(tmp_path / "usual", runtime()), rel=1e-3)
