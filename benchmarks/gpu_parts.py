"""The parts of gpu.py: each is asked with a scale and a folder, and answers with the rows of one table."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import distill
import numpy as np
import pandas as pd
import torch
from measure import WARM_UP, step_seconds
from torch import nn
from transformers import SamConfig, SamModel

from tskd.artifacts import ARTIFACTS, MANIFEST, finished_in, measured
from tskd.cli import main
from tskd.engine import ImageBatches, Runtime, Training, fit, open_runtime
from tskd.engine.out_of_memory import is_out_of_memory
from tskd.errors import RunFailed
from tskd.experiment.run import Run
from tskd.machine.disk import write_json
from tskd.models.diffusion import images_at_once, sample
from tskd.models.registry import adapt, build_model
from tskd.models.swin_unet import PRESETS
from tskd.recipe.schema import AugmentConfig, DiffusionConfig, EngineConfig, FinetuneConfig, TeacherConfig, build_recipe
from tskd.seeding import derive
from tskd.stages.denoisers import build_denoiser, plan_of
from tskd.stages.diffusion import DenoisingBatches, denoising_step, describe
from tskd.stages.label_training import label_step
from tskd.stages.students import describe_student
from tskd.stages.teacher import choose_teacher, parts_of_batch

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
COMPARED = ["dataset", "data.labels", "arm", "seed", "title", "dice", "hd95_px"]
"""Columns of a comparison that are shown."""
TINY_SAM = {
    "vision_config": {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 128, "patch_size": 16,
        "window_size": 4, "global_attn_indexes": [1, 3], "output_channels": 32, "mlp_dim": 64, "num_pos_feats": 16,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 4},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    accelerator: str
    sam: dict[str, Any]
    """Arguments of transformers' ``SamConfig``."""
    sam_sizes: tuple[int, int]
    sam_batch: int
    steps: int
    """Timed steps of a training."""
    presets: dict[str, int]
    """Diffusion presets and the size of their images."""
    diffusion_batch: int
    sampling_steps: int
    case: distill.Case
    student_px: int
    student_batch: int
    shared_steps: int
    """Timed steps of each of the runs that share the device."""
    recipe: tuple[str, ...]
    """Settings over recipes/gpu.yaml for the run to its end."""
    control: tuple[str, ...]
    """Settings of the training by two processes."""
    grid: dict[str, Any] | None = None
    """The comparison on data sets of the user's; None: recipes/compare/real.yaml."""
    data: tuple[str, ...] = ()
    """Those data sets."""


_RUN = ("distill.cache=on", "finetune.validate_every=10", "teacher.validate_every=10")
FULL = Scale(
    accelerator="gpu",
    sam={},
    sam_sizes=(512, 1024),
    sam_batch=4,
    steps=5,
    presets={"small": 128, "base": 256},
    diffusion_batch=16,
    sampling_steps=25,
    case=distill.Case("sam", 512, 256, 3),
    student_px=256,
    student_batch=32,
    shared_steps=40,
    recipe=(
        "teacher.steps=20", "distill.steps=60", "distill.views=2", "finetune.steps=20", "data.labels=20",
        "data.phantom.train=80", "data.phantom.test=16", "data.phantom.size=256", *_RUN,
    ),
    control=("data.image_size=256", "data.phantom.size=256", "control.batch_size=32", "control.steps=60"),
)  # fmt: skip
TINY = Scale(
    accelerator="cpu",
    sam=TINY_SAM,
    sam_sizes=(64, 128),
    sam_batch=2,
    steps=1,
    presets={"tiny": 16},
    diffusion_batch=2,
    sampling_steps=2,
    case=distill.QUICK[0],
    student_px=32,
    student_batch=2,
    shared_steps=2,
    recipe=(
        "data.image_size=32", "data.labels=6", "data.phantom.train=8", "data.phantom.test=2", "data.phantom.size=32",
        "teacher.image_size=64", "teacher.steps=2", "teacher.batch_size=2", "distill.steps=2", "distill.batch_size=2",
        "distill.views=1", "finetune.steps=2", "finetune.batch_size=2", "engine.precision=32-true",
        "student.backbone=test_efficientnet", "student.weights=null", "student.initialisation=random",
        "baselines=[]", *_RUN,
    ),
    control=(
        "data.image_size=32", "data.phantom.size=32", "data.labels=6", "data.phantom.train=8", "data.phantom.test=2",
        "control.batch_size=4", "control.steps=3", "control.channels=[8,16,32]",
    ),
    grid={
        "name": "tiny",
        "recipe": {
            "data": {"image_size": 32, "labels": 6, "phantom": {"train": 8, "test": 2, "size": 32}},
            "control": {"batch_size": 4, "steps": 2, "channels": [8, 16, 32]},
        },
        "axes": {"method": ["control"]},
    },
)  # fmt: skip

Rows = list[dict[str, Any]]


def tests(scale: Scale, out: Path) -> Rows:
    """The tests that need a GPU: the same training on the CPU and on the GPU, resumed, in each precision."""
    if find_spec("pytest") is None:
        return [{"passed": "pytest is not installed"}]
    import pytest

    kinds = ("passed", "failed", "error", "skipped")
    counts = Counter(dict.fromkeys(kinds, 0))

    class Counting:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or report.outcome == "skipped":
                counts[report.outcome] += 1
            elif report.outcome == "failed":
                counts["error"] += 1

    chosen = ["-m", "gpu", "-p", "no:cacheprovider", f"--rootdir={ROOT}", str(ROOT / "tests/parity/test_gpu.py")]
    with redirect_stdout(sys.stderr):  # in this process, which is the part's own and has imported torch
        if pytest.main(chosen, plugins=[Counting()]):
            print("tests: not all passed; what they said is above", file=sys.stderr)
    return [dict(counts)]


def sam(place: int, scale: Scale, out: Path) -> Rows:
    """LoRA steps of a SAM at one size in each precision, its blocks kept and computed again."""
    ways = product(PRECISIONS, (False, True))
    return [_sam_row(scale, out, scale.sam_sizes[place], precision, again) for precision, again in ways]


def diffusion(preset: str, scale: Scale, out: Path) -> Rows:
    """Training steps and samples of a preset in float32 and half precision."""
    return [_diffusion_row(preset, scale, out, precision) for precision in PRECISIONS]


def distillation(scale: Scale, out: Path) -> Rows:
    """Images a second of the student alone, with stored answers and with the teacher in every step."""
    rows = []
    for precision in PRECISIONS[:2]:
        _sam_folder(scale, out)
        with TemporaryDirectory(dir=out) as folder:
            (Path(folder) / "sam").symlink_to(out / "sam", target_is_directory=True)
            ways = distill.open_ways(scale.case, Path(folder), scale.student_batch, _engine(scale, precision))
            speeds = distill.fastest(ways, scale.case, scale.student_batch, rounds=1)
        sizes = f"{scale.case.teacher} {scale.case.teacher_px} px, student {scale.case.student_px} px"
        rows.append({"teacher": sizes, "precision": precision, **{f"{way}, images/s": n for way, n in speeds.items()}})
    return rows


def recipe(scale: Scale, out: Path) -> Rows:
    """recipes/gpu.yaml on phantoms to its end, with so few steps that it fits; its scores say nothing."""
    folder = out / "run"
    settings = (f"teacher.weights={_sam_folder(scale, out)}", f"engine.accelerator={scale.accelerator}", *scale.recipe)
    _tskd("run", ROOT / "recipes/gpu.yaml", "--out", folder, *(f"--set={one}" for one in settings))
    made = sorted(finished_in(folder / ARTIFACTS), key=lambda artifact: (artifact.path / MANIFEST).stat().st_mtime)
    return [
        {
            "stage": manifest["stage"],
            "steps": manifest["metrics"].get("steps", ""),
            "seconds": manifest["seconds"],
            "peak of the GPU MB": manifest["peak_gpu_memory_mb"],
            "device": manifest["device"],
        }
        for manifest in (artifact.manifest for artifact in made)
    ]


def sharing(scale: Scale, out: Path) -> Rows:
    """Two trainings at once on one device, and one alone."""
    alone = _at_once(scale, 1)
    together = _at_once(scale, 2)
    speeds = {"alone, images/s": alone, "each of two, images/s": together}
    return [{**speeds, "two at once / one after the other": 2 * together / alone}]


def processes(scale: Scale, out: Path) -> Rows:
    """One training by one process and by two (DDP)."""
    if scale.accelerator == "gpu" and torch.cuda.device_count() < 2:
        return [{"processes": "not possible: there is one GPU, and two processes of a training need one each"}]
    return [_processes_row(scale, out, devices) for devices in (1, 2)]


def real(scale: Scale, out: Path) -> Rows:
    """The comparison of small models on data sets of the user's; runs that ended before are not run again."""
    grid = str(out / "grid.yaml") if scale.grid else "real"
    if scale.grid:
        write_json(Path(grid), scale.grid)  # JSON is YAML
    rows = []
    for data in scale.data:
        folder = out / "real" / Path(data).name
        precision = "bf16-mixed" if scale.accelerator == "gpu" else "32-true"
        _tskd(
            *("compare", grid, "--data", data, "--out", folder, "--workers", max(1, (os.cpu_count() or 2) - 2)),
            *("--set", f"engine.precision={precision}", "--set", f"engine.accelerator={scale.accelerator}"),
        )
        table = pd.read_csv(folder / "table.csv")
        rows += table.filter(COMPARED).to_dict("records")
    return rows


PARTS: dict[str, Callable[[Scale, Path], Rows]] = {
    "tests": tests,
    "sam-small": partial(sam, 0),
    "sam-large": partial(sam, 1),
    "distillation": distillation,
    "diffusion-small": lambda scale, out: diffusion(min(scale.presets, key=scale.presets.__getitem__), scale, out),
    "diffusion-base": lambda scale, out: diffusion(max(scale.presets, key=scale.presets.__getitem__), scale, out),
    "recipe": recipe,
    "sharing": sharing,
    "processes": processes,
    "real": real,
}


def device_line(scale: Scale) -> str:
    """Return one line on what the figures were measured with."""
    if scale.accelerator == "cpu":
        return f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = "unknown"
    if shutil.which(asked[0]):
        driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    names = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    return f"{', '.join(names)}, driver {driver}, torch {torch.__version__}, Python {platform.python_version()}"


def _engine(scale: Scale, precision: str = "32-true") -> EngineConfig:
    return EngineConfig(accelerator=scale.accelerator, precision=precision, checkpoint_seconds=1e9)


def _sam_folder(scale: Scale, out: Path) -> Path:
    """Return a folder as transformers saves a SAM; it is written once, with random weights."""
    folder = out / "sam"
    if not (folder / "model.safetensors").is_file():
        torch.manual_seed(0)
        SamModel(SamConfig(**scale.sam)).save_pretrained(folder)
    return folder


def _labelled(size: int, batch: int) -> ImageBatches:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (max(batch, 16), size, size, 3), np.uint8)
    masks = (images.mean(axis=-1) > 128).astype(np.uint8)
    return ImageBatches(images, masks, [str(row) for row in range(len(images))], batch, AugmentConfig(), seed=0)


def _sam_row(scale: Scale, out: Path, size: int, precision: str, again: bool) -> dict[str, Any]:
    runtime = open_runtime(_engine(scale, precision))
    settings = TeacherConfig(
        name="sam", weights=str(_sam_folder(scale, out)), image_size=size, batch_size=scale.sam_batch,
        steps=scale.steps + WARM_UP, gradient_checkpointing=again,
    )  # fmt: skip
    source = choose_teacher(settings, ("any",), size, download=False)
    parts = parts_of_batch(settings, source, 1)
    settings = settings.model_copy(update={"accumulate": parts})
    model: Any = build_model(source.description)
    adapt(model, source.description)
    if again:
        model.checkpoint_gradients()
    training = Training("SAM", model, label_step, _labelled(size, scale.sam_batch), settings, seed=0)
    row = {"px": size, "precision": precision, "blocks": "computed again" if again else "kept"}
    row |= {"images at once": scale.sam_batch // parts}
    return row | _speed(training, runtime, images=scale.sam_batch)


def _speed(training: Training, runtime: Runtime, *, images: int) -> dict[str, Any]:
    """Return images a second and the peak of memory; a device that is too small is an answer too."""
    try:
        with measured() as usage:
            seconds = step_seconds(training, runtime)
    except RunFailed as error:
        if not is_out_of_memory(error):
            raise
        torch.cuda.empty_cache()
        return {"images/s": "out of memory", "peak MB": ""}
    peak = usage["peak_gpu_memory_mb"] or usage["peak_memory_mb"]
    return {"images/s": images / float(np.median(seconds)), "peak MB": round(peak)}


def _diffusion_row(preset: str, scale: Scale, out: Path, precision: str) -> dict[str, Any]:
    runtime = open_runtime(_engine(scale, precision))
    size = scale.presets[preset]
    phantom = {"family": "oral_ulcer", "train": 16, "test": 4, "size": max(size, 32)}
    run = Run(build_recipe({"data": {"image_size": phantom["size"], "phantom": phantom}}, "gpu"), out / "data", runtime)
    config = DiffusionConfig(
        preset=preset, image_size=size, batch_size=scale.diffusion_batch, steps=scale.steps + WARM_UP
    )
    assert preset in PRESETS
    description = describe(config, run.prepared, {})
    model = build_denoiser(description)
    batches = DenoisingBatches.of(config, run.prepared, description, seed=derive(0, "gpu"))
    training = Training("diffusion", model, denoising_step(config, {}), batches, config, seed=0)
    row = {"preset": preset, "px": size, "precision": precision, **_speed(training, runtime, images=config.batch_size)}
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    plan = plan_of(description, steps=scale.sampling_steps, half=half)
    count = images_at_once(size) if scale.accelerator == "gpu" else 1
    draw = partial(sample, model.eval(), seeds=range(count), device=runtime.fabric.device)  # the answer is on the CPU
    draw(plan=replace(plan, steps=1))  # the first call allocates
    began = time.perf_counter()
    draw(plan=plan)
    return row | {f"samples/s ({scale.sampling_steps} steps)": count / (time.perf_counter() - began)}


def _at_once(scale: Scale, count: int) -> float:
    """Return the images a second of the slowest of so many trainings that run side by side."""
    fresh = multiprocessing.get_context("fork")
    start, speeds = fresh.Barrier(count), fresh.SimpleQueue()
    running = [fresh.Process(target=_side_by_side, args=(scale, start, speeds)) for _ in range(count)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        raise RuntimeError("a training that shares the device failed; what it said is above")
    return min(speeds.get() for _ in running)


def _side_by_side(scale: Scale, start: Barrier, speeds: Any) -> None:
    runtime = open_runtime(_engine(scale))
    settings = FinetuneConfig(steps=scale.shared_steps + WARM_UP, batch_size=scale.student_batch)
    student = describe_student(
        build_recipe({}, "gpu").student, weights=None, classes=["any"], image_size=scale.student_px
    )
    batches = _labelled(scale.student_px, scale.student_batch)
    ends: list[float] = []

    def note(step: int, module: nn.Module) -> None:
        if step < WARM_UP:
            return
        if runtime.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        if step == WARM_UP:
            start.wait(timeout=240)  # were the other one dead, it would be waited for until the time is over
        ends.append(time.perf_counter())

    training = Training("sharing", build_model(student), label_step, batches, settings, seed=0)
    with TemporaryDirectory() as folder:
        fit(replace(training, on_step=note), Path(folder), runtime)
    speeds.put(scale.student_batch * (len(ends) - 1) / (ends[-1] - ends[0]))


def _processes_row(scale: Scale, out: Path, devices: int) -> dict[str, Any]:
    folder = out / f"processes-{devices}"
    engine = (f"engine.accelerator={scale.accelerator}", f"engine.devices={devices}")
    settings = (f"--set={one}" for one in (*scale.control, *engine))
    _tskd("stage", "control", "--out", folder, *settings)
    (path,) = folder.glob("artifacts/control-*/manifest.json")
    manifest = json.loads(path.read_text())
    metrics = manifest["metrics"]
    images = metrics["steps"] * manifest["config"]["batch_size"]
    figures = {"images/s, validation included": images / metrics["train_seconds"], "Dice": metrics["val_dice"]}
    return {"processes": devices, "steps": metrics["steps"], **figures}


def _tskd(*arguments: object) -> None:
    """Run a command of tskd as a user would, in a forked process that need not import torch anew."""
    command = list(map(str, arguments))
    process = multiprocessing.get_context("fork").Process(target=_command, args=(command,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"tskd {' '.join(command)} ended with {process.exitcode}; what it said is above")


def _command(arguments: list[str]) -> None:
    os.dup2(2, 1)  # what this program prints on stdout are its figures
    # Fabric starts further processes of a training by the command line that it finds here
    sys.modules["__main__"].__spec__ = find_spec("tskd.cli")
    sys.argv[1:] = arguments
    main(arguments)
