"""What cache building, a distillation step and sampling cost as the transfer set grows: linear in time, flat in memory?

    python benchmarks/scale.py --threads 2

Times are an image's (a stored view's for the cache, a step's for distillation) and should not depend on the set's size.
What keeps a shared machine's ups and downs out of the comparison: all sizes take turns, in alternating order; small
sets are built over again until every size has done the same work; and ``x`` is the median over the rounds of a time's
ratio to the first size's in the same round. Each size runs in a process of its own, so that its peak memory (imports
and weights included) is its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from measure import in_fresh_process, print_results, step_seconds

from tskd.engine import Training, open_runtime
from tskd.experiment.run import Run
from tskd.machine.memory import peak_memory_mb
from tskd.models.registry import build_model, load_model
from tskd.recipe.schema import Recipe, build_recipe
from tskd.stages import cache, stored_answers
from tskd.stages.distill import attach_projection, distillation_step, stored
from tskd.stages.samples import draw_samples, open_sampler

SIZES, QUICK = (250, 500, 1000, 2000), (2, 4)
BATCH, SMALL_BATCH = 16, 2
FIRST = 64
"""Images that go through once before anything is timed: the first batches allocate."""
Row = dict[str, Any]
PHANTOMS = {"family": "dermoscopy", "train": 24, "test": 8, "size": 64}


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=40, help="distillation steps that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="times that all sizes take turns")
    parser.add_argument("--quick", action="store_true", help="a few images: does it run?")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    sizes, rounds = (QUICK, 1) if options.quick else (SIZES, options.rounds)
    steps, batch = (3, SMALL_BATCH) if options.quick else (options.steps, BATCH)
    with TemporaryDirectory() as folder:
        in_fresh_process(_make_shared, Path(folder), options.threads)
        turns = [_one_round(sizes, turn, Path(folder), (steps, batch), options.threads) for turn in range(rounds)]
    print_results([_over_rounds(turns, size) for size in sizes], as_json=options.json, threads=options.threads)


def _one_round(sizes: Sequence[int], turn: int, shared: Path, trained: tuple[int, int], threads: int) -> dict[int, Row]:
    """Return a row a size; every second round goes from the largest to the smallest."""
    order = sizes if turn % 2 == 0 else sizes[::-1]
    passes = {size: max(sizes) // size for size in sizes}
    return {size: in_fresh_process(measure, size, passes[size], shared, trained, threads) for size in order}


def measure(size: int, passes: int, shared: Path, trained: tuple[int, int], threads: int) -> Row:
    """Return seconds of each part and the peak memory after it, in this process, for a transfer set of ``size``.

    ``trained``: the steps of the distillation that is timed, and the images in its batch.
    """
    steps, batch = trained
    run = _open_run(shared, size, threads)
    images = run.transfer_set
    teacher = load_model(run.teachers.adapted.path)
    layout = cache.plan_cache(
        teacher, build_model(run.student_description), images, image_size=run.prepared.image_size, views=2, seed=0
    )

    def answer(folder: Path, count: int = size) -> None:
        part = replace(layout, images=count)
        cache.build_cache(teacher, images, part, run.recipe.distill.augment, folder, runtime=run.runtime)

    with TemporaryDirectory(dir=shared) as first:
        answer(Path(first), min(size, FIRST))
    answers, seconds = _repeated(answer, passes, shared)
    row: Row = {"images": size, "cache ms": 1000 * seconds / (layout.views * size)}
    row["cache MB"] = round(peak_memory_mb())
    batches = stored_answers.CachedBatches(answers, images, batch, run.recipe.distill.augment, seed=0)
    settings = run.recipe.distill.model_copy(update={"steps": steps})
    level, module = attach_projection(build_model(run.student_description), stored(batches(0, 0, 1)))
    step = distillation_step(settings, stored, level)
    training = Training("benchmark", module, step, batches, settings, seed=0)
    row["step ms"] = 1000 * median(step_seconds(training, run.runtime))
    row["step MB"] = round(peak_memory_mb())
    row["sample ms"] = 1000 * _sampling_seconds(run, size, passes, shared) / size
    row["sample MB"] = round(peak_memory_mb())
    return row


def _sampling_seconds(run: Run, size: int, passes: int, shared: Path) -> float:
    config = run.recipe.diffusion.model_copy(update={"sampling_steps": 5})
    sampler = open_sampler(run.diffusion.path, config, image_size=run.prepared.image_size, seed=0, runtime=run.runtime)
    sampler(range(min(size, sampler.at_once)))

    def draw(folder: Path) -> None:
        draw_samples(range(size), sampler, folder, runtime=run.runtime)

    return _repeated(draw, passes, shared)[1]


def _repeated(work: Callable[[Path], Any], passes: int, shared: Path) -> tuple[Path, float]:
    """Do the work several times, each into a new folder; return the last folder and the mean seconds."""
    folders = [Path(mkdtemp(dir=shared)) for _ in range(passes)]
    began = time.perf_counter()
    for folder in folders:
        work(folder)
    return folders[-1], (time.perf_counter() - began) / passes


def _make_shared(folder: Path, threads: int) -> None:
    """Train what every size uses, for a step each: weights change no cost."""
    run = _open_run(folder, 1, threads)
    assert run.teachers.adapted
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


def _over_rounds(turns: Sequence[Mapping[int, Row]], size: int) -> Row:
    """Return the median time and the largest memory of a size, each with the median ratio to the first size's."""
    row: Row = {"images": size}
    for name in (name for name in turns[0][size] if name != "images"):
        values = [rows[size][name] for rows in turns]
        row[name] = max(values) if name.endswith(" MB") else median(values)
        row[f"{name} x"] = median(rows[size][name] / rows[min(rows)][name] for rows in turns)
    return row


if __name__ == "__main__":
    main()
