"""What `engine.precision` and `engine.compile` make of a student's training step, as ratios to float32 as it is.

    python benchmarks/engine.py --threads 2             # the table of docs/explanation/benchmarks.md, three minutes
    python benchmarks/engine.py --quick                 # 32 px, two steps, nothing compiled: does it run?

The ways take turns in one process, and seconds are those of its processor time over the threads, compilers included,
so that other work on the machine counts little. A step is all that training does. ``first step`` has the compilation in
it (of the first round: later ones find it cached).
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measure import WARM_UP, print_results
from torch import nn

from tskd.engine import ImageBatches, Runtime, Training, fit, open_runtime
from tskd.models.registry import build_model
from tskd.recipe.schema import AugmentConfig, EngineConfig, FinetuneConfig, StudentConfig
from tskd.stages.label_training import label_step
from tskd.stages.students import describe_student

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # helpers that are never waited for could not be counted
WAYS = {
    "32-true": {},
    "32-true, compiled": {"compile": True},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-mixed, compiled": {"precision": "bf16-mixed", "compile": True},
    "16-mixed": {"precision": "16-mixed"},
}
USUAL = "32-true"
VIT = "ViT-Tiny"
STUDENTS = {VIT: {}, "U-Net": {"backbone": "tf_efficientnet_lite0", "decoder": "unet"}}
"""The recipe's own student, and that of `recipes/laptop.yaml`."""


def main() -> None:
    """Print one row a way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--student", choices=STUDENTS, default=VIT)
    parser.add_argument("--size", type=int, default=128, help="image size in pixels")
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--steps", type=int, default=6, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="rows of the table")
    parser.add_argument("--quick", action="store_true", help="two ways at 32 px, two steps, one round")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.quick:
        options.size, options.batch, options.steps, options.rounds = 32, 2, 2, 1
        options.ways = [USUAL, "bf16-mixed"]
    rounds = [{way: train(way, options) for way in options.ways} for _ in range(options.rounds)]
    rows = [_row(way, rounds, options) for way in options.ways]
    print_results(rows, as_json=options.json, threads=options.threads)


def train(way: str, options: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds of the first step and the median of the timed ones of one short training."""
    runtime = open_runtime(EngineConfig(accelerator="cpu", threads=options.threads, **WAYS[way]))
    ends = [_processor_seconds()]

    def note(step: int, module: nn.Module) -> None:
        ends.append(_processor_seconds())

    with TemporaryDirectory() as folder:
        fit(replace(_training(options), on_step=note), Path(folder), _without_saving(runtime))
    seconds = np.diff(ends) / options.threads
    return float(seconds[0]), float(np.median(seconds[WARM_UP:]))


def _processor_seconds() -> float:
    return sum(os.times()[:4])  # of the process, and of the compilers that it waited for


def _training(options: argparse.Namespace) -> Training:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, options.size, options.size, 3), np.uint8)
    masks = (images.mean(axis=-1) > 128).astype(np.uint8)
    settings = FinetuneConfig(steps=options.steps + WARM_UP, batch_size=options.batch)
    names = [str(number) for number in range(len(images))]
    batches = ImageBatches(images, masks, names, options.batch, AugmentConfig(), seed=0)
    torch.manual_seed(0)
    student = describe_student(
        StudentConfig(**STUDENTS[options.student]), weights=None, classes=["any"], image_size=options.size
    )
    return Training("benchmark", build_model(student), label_step, batches, settings, seed=0)


def _without_saving(runtime: Runtime) -> Runtime:
    return replace(runtime, checkpoint_seconds=1e9)


def _row(way: str, rounds: list[dict[str, tuple[float, float]]], options: argparse.Namespace) -> dict[str, Any]:
    steps = [one[way][1] for one in rounds]
    ratios = [one[way][1] / one[USUAL][1] for one in rounds if USUAL in one]
    return {
        "student": options.student,
        "way": way,
        "px": options.size,
        "first step s": rounds[0][way][0],
        "step s": statistics.median(steps),
        f"step / {USUAL}": statistics.median(ratios) if ratios else float("nan"),
    }


if __name__ == "__main__":
    main()
