"""Distillation at the cost of the student: images a second of the student alone, with stored answers, and online.

    python benchmarks/distill.py --threads 2            # the table of docs/explanation/benchmarks.md, about ten minutes
    python benchmarks/distill.py --quick                # a minute, small networks: does it run?

``student alone`` is the limit: the same training on one batch kept in memory with random targets. The three take turns
in one process, so that a busy machine slows all alike; peak memory is that of a fresh process each. SAM has random
weights: the cost is the same. A step holds all that training does: reading and augmenting the batch, forward, backward,
clipping, AdamW, the moving average.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measure import WARM_UP, in_fresh_process, print_results, step_seconds
from torch import nn
from transformers import SamConfig, SamModel

from tskd.data.prepared import Prepared
from tskd.data.transfer_set import TransferSet
from tskd.engine import ImageBatches, Training, open_runtime
from tskd.experiment.run import Run
from tskd.machine.memory import peak_memory_mb
from tskd.models.registry import adapt, build_model
from tskd.recipe.schema import EngineConfig, Recipe, TeacherConfig, build_recipe
from tskd.stages import cache, stored_answers, teacher_images
from tskd.stages.distill import Ask, attach_projection, distillation_step, online, stored
from tskd.stages.teacher import choose_teacher
from tskd.types import Batch, SegmentationOutput

MODES = ("student alone", "cached", "online")


@dataclass(frozen=True)
class Case:
    """A teacher at its size and a student at its own."""

    teacher: str
    teacher_px: int
    student_px: int
    online_steps: int
    """Timed steps a round; a SAM step takes many seconds."""
    student: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the recipe's ``student`` section."""


CASES = (
    Case("offline", 128, 128, 8),
    Case("sam", 256, 128, 1),
    Case("sam", 256, 256, 1),
    Case("sam", 512, 128, 1),
)
QUICK = (Case("timm/test_resnet", 32, 32, 2, {"backbone": "test_vit", "patch": 16}),)


def main() -> None:
    """Print one row a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="rows of the table, from 0")
    parser.add_argument("--quick", action="store_true", help="small networks, one round")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    chosen = [CASES[number] for number in options.cases]
    cases, rounds = (QUICK, 1) if options.quick else (chosen, options.rounds)
    with TemporaryDirectory() as folder:
        if any(case.teacher == "sam" for case in cases):
            in_fresh_process(_write_sam, Path(folder) / "sam")
        rows = [measure(case, Path(folder), options.batch, rounds, options.threads) for case in cases]
    print_results(rows, as_json=options.json, threads=options.threads)


def _write_sam(folder: Path) -> None:
    SamModel(SamConfig()).save_pretrained(folder)


def measure(case: Case, folder: Path, batch: int, rounds: int, threads: int) -> dict[str, Any]:
    """Return one row: images a second of the three ways, their ratios and peak memories."""
    speeds = in_fresh_process(_speeds, case, folder, batch, rounds, threads)
    peaks = {mode: in_fresh_process(_peak, case, folder, batch, threads, mode) for mode in MODES}
    return {
        "teacher": f"{case.teacher} {case.teacher_px} px",
        "student px": case.student_px,
        **{f"{mode}, images/s": speeds[mode] for mode in MODES},
        "cached / student alone": speeds["cached"] / speeds["student alone"],
        "cached / online": speeds["cached"] / speeds["online"],
        **{f"{mode}, peak MB": round(peaks[mode]) for mode in MODES},
    }


def _speeds(case: Case, folder: Path, batch: int, rounds: int, threads: int) -> dict[str, float]:
    """Return each way's images a second over its best round: what is slower was disturbed."""
    return fastest(open_ways(case, folder, batch, _on_cpu(threads)), case, batch, rounds)


def fastest(ways: Mapping[str, Way], case: Case, batch: int, rounds: int) -> dict[str, float]:
    """Return each way's images a second over its best of ``rounds`` turns."""
    best = dict.fromkeys(MODES, 0.0)
    for _ in range(rounds):
        for mode in MODES:
            steps = case.online_steps if mode == "online" else max(case.online_steps, 4)
            seconds = ways[mode](steps)
            best[mode] = max(best[mode], batch * len(seconds) / sum(seconds))
    return best


def _peak(case: Case, folder: Path, batch: int, threads: int, mode: str) -> float:
    """Return the peak memory in MB of a process that trains in one way and does nothing else."""
    open_ways(case, folder, batch, _on_cpu(threads), only=mode)[mode](1)
    return peak_memory_mb()


Way = Callable[[int], list[float]]
"""Takes so many steps and returns their seconds."""


def _on_cpu(threads: int) -> EngineConfig:
    return EngineConfig(accelerator="cpu", threads=threads)


def open_ways(case: Case, folder: Path, batch: int, engine: EngineConfig, only: str | None = None) -> dict[str, Way]:
    """Return what trains in each way; the weights of a SAM lie in ``folder/sam``, the cache is built beside them."""
    runtime = open_runtime(engine)
    recipe = _recipe(case, batch)
    run = Run(recipe, folder / f"{case.teacher.replace('/', '-')}-{case.teacher_px}-{case.student_px}", runtime)
    kept_in = run.out / "cache"
    teacher = None
    if only in (None, "online") or not (kept_in / stored_answers.LAYOUT).is_file():
        teacher = _teacher(recipe.teacher, run)
    if not (kept_in / stored_answers.LAYOUT).is_file():
        _store(teacher, run, kept_in)
    cached = stored_answers.CachedBatches(kept_in, run.transfer_set, batch, recipe.distill.augment, seed=0)
    kept = cached(0, 0, 1)
    drawn = [torch.randn_like(one).to(runtime.fabric.device) for one in (*stored(kept).features, stored(kept).logits)]
    noise = SegmentationOutput(tuple(drawn[:-1]), drawn[-1])
    ways: dict[str, Way] = {
        "student alone": partial(_train, run, lambda step, part, parts: kept, lambda _: noise),
        "cached": partial(_train, run, cached, stored),
    }
    if teacher is not None:
        images, shown = run.transfer_set, _shown(run)
        sharp = None if shown.prepared == images.prepared else shown.images
        fresh = ImageBatches(
            images.images, None, images.names, batch, recipe.distill.augment, seed=0, teacher_images=sharp
        )
        ways["online"] = partial(_train, run, fresh, online(teacher, runtime))
    return ways


def _recipe(case: Case, batch: int) -> Recipe:
    phantoms = {"family": "kidney_us", "train": 24, "test": 8, "size": case.student_px}
    data = {"image_size": case.student_px, "labels": 12, "phantom": phantoms}
    teacher = {"name": case.teacher, "image_size": case.teacher_px}
    distill = {"batch_size": batch, "views": 1}
    return build_recipe({"data": data, "teacher": teacher, "student": case.student, "distill": distill}, "benchmark")


def _teacher(config: TeacherConfig, run: Run) -> nn.Module:
    """Return an adapted teacher as distillation meets it; training it would change no cost."""
    if config.name == "sam":
        config = config.model_copy(update={"weights": str(run.out.parent / "sam")})
    elif config.name.startswith("timm/"):
        config = config.model_copy(update={"weights": "random", "adaptation": "full"})
    source = choose_teacher(config, run.prepared.classes, run.prepared.image_size, download=False)
    model = build_model(source.description)
    adapt(model, source.description)
    return model.requires_grad_(False).eval()


def _shown(run: Run) -> TransferSet:
    """Return the transfer set at the teacher's size."""
    size = run.recipe.teacher.image_size
    assert size is not None
    data = teacher_images.build(run.bench, run.recipe.data, run.prepared_artifact, size)
    return TransferSet(run.transfer.path, Prepared(data.path))


def _store(teacher: nn.Module | None, run: Run, folder: Path) -> None:
    assert teacher is not None
    config, images, size = run.recipe.distill, _shown(run), run.prepared.image_size
    layout = cache.plan_cache(teacher, build_model(run.student_description), images, image_size=size, views=1, seed=0)
    folder.mkdir()
    cache.build_cache(teacher, images, layout, config.augment, folder, runtime=run.runtime)


def _train(run: Run, batches: Callable[[int, int, int], Batch], ask: Ask, steps: int) -> list[float]:
    settings = run.recipe.distill.model_copy(update={"steps": steps + WARM_UP})
    level, module = attach_projection(build_model(run.student_description), ask(batches(0, 0, 1)))
    step = distillation_step(settings, ask, level)
    return step_seconds(Training("benchmark", module, step, batches, settings, seed=0), run.runtime)


if __name__ == "__main__":
    main()
