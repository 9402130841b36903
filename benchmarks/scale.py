"""What cache building, a distillation step and sampling cost as the transfer set grows: linear in time, flat in memory?

    python benchmarks/scale.py --threads 2

Each size runs in a process of its own, so that its peak memory (imports and weights included) is its own. Times are an
image's (a step's for distillation) and should not depend on the size of the set; ``x`` is the ratio to the first row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
from measure import in_fresh_process, print_results, step_seconds

from tskd.artifacts import Artifact, peak_memory_mb
from tskd.config import Recipe, build_recipe
from tskd.engine import Training, open_runtime
from tskd.models.registry import build_model, load_model
from tskd.run import Run
from tskd.stages import cache
from tskd.stages.distill import attach_projection, distillation_step, stored
from tskd.stages.samples import draw_samples, open_sampler

SIZES, QUICK = (250, 500, 1000, 2000), (8, 16)
FIRST = 64
"""Images that go through once before anything is timed: the first batches allocate."""
PHANTOMS = {"family": "dermoscopy", "train": 24, "test": 8, "size": 64}


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=40, help="distillation steps that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="times that all sizes take turns; the best time counts")
    parser.add_argument("--quick", action="store_true", help="a few images: does it run?")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    sizes, steps, rounds = (QUICK, 3, 1) if options.quick else (SIZES, options.steps, options.rounds)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        in_fresh_process(_make_shared, Path(folder), options.threads)
        for size in sizes * rounds:
            rows.append(
                in_fresh_process(measure, size, Path(mkdtemp(dir=folder)), Path(folder), steps, options.threads)
            )
    rows = [_best(rows[place :: len(sizes)]) for place in range(len(sizes))]
    print_results([_compared(row, rows[0]) for row in rows], as_json=options.json, threads=options.threads)


def measure(size: int, folder: Path, shared: Path, steps: int, threads: int) -> dict[str, Any]:
    """Return seconds of each part and the peak memory after it, in this process, for a transfer set of ``size``."""
    run = _open_run(shared, size, threads)
    images = run.transfer_set
    teacher = load_model(run.teacher.path)
    layout = cache.plan_cache(teacher, build_model(run.student_description), images, views=2, seed=0)
    answers, first = folder / "cache", folder / "first"
    for place, part in ((first, replace(layout, images=min(size, FIRST))), (answers, layout)):
        place.mkdir()
        began = time.perf_counter()
        cache.build_cache(teacher, images, part, run.recipe.distill.augment, place, runtime=run.runtime)
    row: dict[str, Any] = {"images": size, "cache ms": 500 * (time.perf_counter() - began) / size}
    row["cache MB"] = round(peak_memory_mb())
    batches = cache.CachedBatches(answers, images, 16, run.recipe.distill.augment, seed=0)
    settings = run.recipe.distill.model_copy(update={"steps": steps})
    level, module = attach_projection(build_model(run.student_description), stored(batches(0, 0, 1)))
    step = distillation_step(settings, stored, level)
    training = Training("benchmark", module, step, batches, settings, seed=0)
    row["step ms"] = 1000 * float(np.median(step_seconds(training, run.runtime)))
    row["step MB"] = round(peak_memory_mb())
    denoiser = run.diffusion
    row["sample ms"] = 1000 * _sampling_seconds(denoiser, run, size, answers) / size
    row["sample MB"] = round(peak_memory_mb())
    return row


def _sampling_seconds(denoiser: Artifact, run: Run, size: int, folder: Path) -> float:
    config = run.recipe.diffusion.model_copy(update={"sampling_steps": 5})
    sampler = open_sampler(denoiser.path, config, image_size=run.prepared.image_size, seed=0, runtime=run.runtime)
    sampler(range(min(size, sampler.at_once)))
    began = time.perf_counter()
    draw_samples(range(size), sampler, folder, runtime=run.runtime)
    return time.perf_counter() - began


def _make_shared(folder: Path, threads: int) -> None:
    """Train what every size uses, for a step each: weights change no cost."""
    run = _open_run(folder, 1, threads)
    assert run.teacher
    assert run.diffusion


def _open_run(folder: Path, size: int, threads: int) -> Run:
    recipe: Recipe = build_recipe(
        {
            "data": {"image_size": 64, "labels": 12, "phantom": PHANTOMS},
            "teacher": {"name": "timm/resnet10t", "weights": "random", "adaptation": "full", "steps": 1},
            "transfer": {"real": 0, "augmented": size},
            "diffusion": {"image_size": 32, "steps": 1},
            "engine": {"accelerator": "cpu", "threads": threads},
        },
        "benchmark",
    )
    return Run(recipe, folder, open_runtime(recipe.engine))


def _best(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the shortest of each time and the largest of each memory."""
    return {name: (max if name.endswith(" MB") else min)(row[name] for row in rounds) for name in rounds[0]}


def _compared(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Return the row with the ratio of each time and memory to the first row's."""
    compared: dict[str, Any] = {}
    for name, value in row.items():
        compared[name] = value
        if name.endswith((" ms", " MB")):
            compared[f"{name} x"] = value / first[name]
    return compared


if __name__ == "__main__":
    main()
