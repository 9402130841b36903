"""Folders for the tests of the report, made by the stages' own writers from models whose mistakes are known.

They are fixtures: no number in them was trained.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tskd.artifacts import Artifact, Store
from tskd.data.known_digests import KnownDigests
from tskd.data.phantoms import Phantom, draw_phantom
from tskd.data.prepared import Prepared
from tskd.engine import open_runtime
from tskd.engine.logs import TrainingLog
from tskd.federated import scores
from tskd.machine.disk import write_json
from tskd.metrics.comparison import DICE, compare_methods, rank_table
from tskd.metrics.segmentation import case_means
from tskd.recipe.schema import DataConfig, EngineConfig, EvaluateConfig, Recipe, TransferConfig
from tskd.run_file import RunFile, write_run
from tskd.stages import transfer as transfer_stage
from tskd.stages.evaluate import evaluate
from tskd.stages.evaluation_files import read_cases
from tskd.stages.prepare import prepare
from tskd.stages.quality import write_quality
from tskd.stages.readings import Reading
from tskd.stages.source_data import dataset_digest, open_data
from tskd.stages.workbench import Workbench
from tskd.types import SegmentationOutput

SECRET = "Doe^Jane_1961"
"""Part of every image's name: if it is ever on a page, a patient is."""
SIDE, SIZE = 48, 32
TITLES = {"teacher": "teacher", "student": "task-specific distillation", "scratch": "student from scratch",
          "control": "control (U-Net)"}  # fmt: skip
SHARPNESS = {"teacher": 125.0, "student": 135.0, "scratch": 165.0, "control": 140.0}
"""Grey level from which each model calls a pixel lesion. Organs start at 130: what is above misses more of them."""


COMPUTE = {"student_gflops": 5400.0, "teacher_gflops": 12.0}


class Threshold(nn.Module):
    """Calls lesion what is brighter than a grey level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level / 255))

    def forward(self, image: Tensor) -> SegmentationOutput:
        return SegmentationOutput((image,), 1000 * (image.mean(dim=1, keepdim=True) - self.level))


def draw_data(
    root: Path, *, classes: str = "lesion", empty: Sequence[int] = (), faint: Sequence[int] = (), slices: int = 1
) -> Path:
    """Write 20 training and 8 test phantoms with bright organs, one a patient; ``empty`` test images have no mask.

    The organs of ``faint`` ones are no brighter than what is around them, so that every model misses them. With
    ``slices`` above 1 as many of them are the volume of one patient.
    """
    rows = []
    for number, phantom in enumerate(_patients(28)):
        part, name = ("train" if number < 20 else "test"), f"{SECRET}-{number}"
        organ = phantom.mask > 0
        image = 0.4 * phantom.image + (0.0 if number - 20 in faint else 130.0) * organ[..., None]
        mask = 0 * organ if number - 20 in empty else 255 * organ
        for kind, pixels in (("images", image), ("masks", mask)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / kind / f"{name}.png")
        volume = f"{SECRET}-volume{number // slices}" if slices > 1 else ""
        rows.append(f"{name},{part},{volume}\n")
    (root / "split.csv").write_text("id,split,volume\n" + "".join(rows))
    spacing = "spacing: [1, 1, 8]\n" if slices > 1 else ""
    (root / "dataset.yaml").write_text(f"name: 'cones <b>&amp;</b>'\nclasses: ['{classes}']\n{spacing}")
    return root


def _patients(count: int) -> list[Phantom]:
    found: dict[str, Phantom] = {}
    for number in itertools.count():
        phantom = draw_phantom("kidney_us", number, size=SIDE, seed=3)
        found.setdefault(phantom.case, phantom)
        if len(found) == count:
            return list(found.values())
    raise AssertionError


def open_prepared(store: Store, root: Path, labels: int) -> Artifact:
    config = DataConfig(root=str(root), image_size=SIZE, labels=labels)
    dataset = open_data(config, root)
    inputs = {"data": dataset_digest(dataset, KnownDigests(store.root / ".hashes.json"))}
    make = lambda folder: prepare(config, Reading(dataset, config.image_size, folder), folder)  # noqa: E731
    return store.build("prepare", make, config={"labels": labels}, inputs=inputs, seed=0, version=1)


def score(store: Store, prepared: Artifact, title: str, level: float, seed: int = 0) -> Artifact:
    def make(folder: Path) -> Mapping[str, Any]:
        data, device = Prepared(prepared.path), torch.device("cpu")
        return evaluate(EvaluateConfig(overlays=3), Threshold(level), data, folder, title=title, device=device)

    inputs = {"data": prepared.digest, "model": str(level), "title": title}
    return store.build("evaluate", make, config={}, inputs=inputs, seed=seed, version=1)


def train(
    store: Store, prepared: Artifact, stage: str, name: str, validations: Sequence[int] | None = (30,), **sources: str
) -> Artifact:
    """Return an artifact with a training's log; ``sources`` are digests of what it came from.

    ``validations``: the steps with a validation score; None: there is no log.
    """

    def make(folder: Path) -> Mapping[str, Any]:
        if validations is not None:
            log = TrainingLog(folder, step=0)
            for step in (10, 20, 30):
                log.write(step, {"loss": 1 / step, "dice_loss": 2 / step, "lr": 0.1, "seconds": step})
            for step in validations:
                log.write(step, {"val_score": 0.5})
        (folder / "student.safetensors").write_text(f"{stage} {name}")
        return {}

    inputs = {"data": prepared.digest, "name": name, **sources}
    return store.build(stage, make, config={}, inputs=inputs, seed=0, version=1)


def add_trainings(store: Store, prepared: Artifact, method: str, name: str) -> Artifact:
    """Return a model with a training's log, for task_kd one that comes from a distillation by a teacher."""
    if method != "task_kd":
        return train(store, prepared, "finetune", f"{method} {name}")
    teacher = train(store, prepared, "teacher", name)
    transfer = add_transfer(store, prepared, judged=False)
    start = train(store, prepared, "distill", name, teacher=teacher.digest, transfer=transfer.digest)
    return train(store, prepared, "finetune", f"{method} {name}", start=start.digest)


def add_transfer(store: Store, prepared: Artifact, *, judged: bool = True) -> Artifact:
    """Return a transfer set whose first synthetic image copies a training image; a run judges its synthetic images."""
    data = Prepared(prepared.path)
    noise = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    images = np.concatenate([data.images[data.rows("train")[:1]], noise])
    make_samples = lambda folder: _keep(images, folder)  # noqa: E731
    drawn_by = {"model": train(store, prepared, "diffusion", "of the images").digest}
    samples = store.build("samples", make_samples, config={"first": 0}, inputs=drawn_by, seed=0, version=1)
    means = lambda images: images.reshape(len(images), 16, -1).mean(axis=2).astype(np.float32)  # noqa: E731
    config = TransferConfig(synthetic=len(images), copy_quantile=0.1)
    bench = Workbench(store, 0, open_runtime(EngineConfig(accelerator="cpu")))
    transfer = transfer_stage.build(bench, config, prepared, [samples])

    def judge(folder: Path) -> Mapping[str, Any]:
        return write_quality(images, {"teacher": means, "imagenet": None}, transfer.path, data, folder, seed=0)

    if judged:
        store.build("quality", judge, config={}, inputs={"transfer": transfer.digest}, seed=0, version=1)
    return transfer


def make_run(
    out: Path,
    root: Path,
    models: Sequence[str] = ("teacher", "student", "scratch", "control"),
    *,
    transfer: bool = True,
    validations: Sequence[int] | None = (30,),
) -> Path:
    """Write the folder of a run on the data in ``root`` and return it; ``validations``: of each training's log."""
    store = Store(out / "artifacts")
    prepared = open_prepared(store, root, labels=8)
    stages = {name: "teacher" if name == "teacher" else "finetune" for name in models}
    trained = {name: train(store, prepared, stage, name, validations) for name, stage in stages.items()}
    scored = {name: score(store, prepared, TITLES[name], SHARPNESS[name]) for name in models}
    if transfer:
        add_transfer(store, prepared)
    recipe = Recipe().model_dump(mode="json")
    recipe["data"] |= {"root": str(root), "image_size": SIZE, "labels": 8}
    recipe["teacher"] |= {"weights": str(root / "weights/sam-vit-base")}
    export = {
        "parity": {"images": 4, "dice_difference_worst": 0.0},
        "parameters": 1,
        "latency": {"image": [SIDE, SIDE], "ms_by_threads": {"1": 2.5}},
    }
    summary = {
        "dataset": Prepared(prepared.path).dataset["name"],
        "labels": 8,
        "seed": 0,
        "method": "task_kd",
        "teacher": "EfficientNet-Lite0 (ImageNet), not SAM",
        "seconds": 1.0,
        "peak_memory_mb": 1.0,
        "metrics": {name: artifact.metrics | COMPUTE for name, artifact in scored.items()},
        "budget_rule": "Every student has the same training compute.",
        "artifacts": {name: artifact.path.name for name, artifact in trained.items()},
        "export": export,
        "networks": {name: {"parameters": 5_000_000, "model_mb": 20.0, "latency_ms": 7.5} for name in models},
        "evaluations": {name: artifact.path.name for name, artifact in scored.items()},
        "stages": {name: {} for name in store.used},
        "recipe": recipe,
    }
    write_json(out / "run.json", summary)
    return out


SITES = {"north": (130.0, 24), "south": (170.0, 12), "west": (145.0, 5)}
"""Site -> the grey level from which a student calls a pixel lesion there, and its labelled images. South is worst."""


def score_sites(
    store: Store,
    prepared: Artifact,
    title: str,
    shift: float = 0.0,
    seed: int = 0,
    levels: Mapping[str, float] = MappingProxyType({name: level for name, (level, _) in SITES.items()}),
) -> Artifact:
    """Return the scores of all sites as a federated run writes them; at a higher grey level more is missed."""
    found = {name: score(store, prepared, title, level + shift, seed) for name, level in levels.items()}
    tested = store.build("sites", lambda folder: {}, config={}, inputs={"of": prepared.digest}, seed=0, version=1)
    inputs = {"data": tested.digest, **{f"site {name}": one.digest for name, one in found.items()}}
    join = lambda folder: scores.join({name: one.path for name, one in found.items()}, folder, title=title)  # noqa: E731
    return store.build("federated_evaluation", join, config={}, inputs=inputs, seed=seed, version=1)


def rounds_of(count: int, absent: Mapping[int, Sequence[str]] = MappingProxyType({})) -> list[dict[str, Any]]:
    """Return what went between a server and its sites; ``absent``: round -> those that did not answer."""
    return [
        {
            "round": number,
            "seconds": 2.5,
            "score": 0.4 + number / 50,
            "sites": {
                name: {"down": 2_000_000, "up": 1_000_000, "images": labelled, "loss": 1 / number, "score": 0.3}
                for name, (_, labelled) in SITES.items()
                if name not in absent.get(number, ())
            },
        }
        for number in range(1, count + 1)
    ]


def make_federation(
    out: Path,
    root: Path,
    *,
    strategy: str = "fedavg",
    rounds: Sequence[Mapping[str, Any]] = (),
    method: str = "task_kd",
    privacy: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write the folder of a federated run at the made-up sites and return it; its data lie elsewhere."""
    elsewhere, store = Store(out / "sites" / "all" / "artifacts"), Store(out / "artifacts")
    prepared = open_prepared(elsewhere, root, labels=8)
    names = ("teacher",) if method == "teacher" else ("teacher", "student")
    models = {
        name: train(store, prepared, "distill" if name == "student" else "federated_teacher", name) for name in names
    }
    scored = {name: score_sites(store, prepared, TITLES[name], -10.0 * (name == "teacher")) for name in names}
    sites = {name: {"split_seed": number, "root": str(root)} for number, name in enumerate(SITES)}
    recipe = Recipe(method=method, federated={"sites": sites, "transfer": {"root": str(root / "public")}})
    total = {name: {way: sum(one["sites"].get(name, {}).get(way, 0) for one in rounds) for way in ("down", "up")}
             for name in SITES}  # fmt: skip
    summary = run_file(
        dataset="sites",
        labels=41,
        method=method,
        teacher="EfficientNet-Lite0 (ImageNet), not SAM",
        metrics={name: one.metrics | COMPUTE for name, one in scored.items()},
        artifacts={name: one.path.name for name, one in models.items()},
        evaluations={name: one.path.name for name, one in scored.items()},
        stages={name: {} for name in store.used},
        recipe=recipe.model_dump(mode="json"),
        federated={
            "strategy": strategy,
            "sites": {name: one.metrics["sites"] for name, one in scored.items()},
            "labelled": {name: labelled for name, (_, labelled) in SITES.items()},
            "rounds": list(rounds),
            "bytes": total if rounds else {},
            "privacy": dict(privacy),
        },
    )
    write_run(out, summary)
    return out


ALONE_AT_WEST = 200.0
"""Grey level from which the site with the fewest labels, left alone, calls a pixel lesion."""


def keep_rounds(store: Store, strategy: str, rounds: Sequence[Mapping[str, Any]]) -> Artifact:
    """Return a teacher that knows the rounds it came from."""

    def make(folder: Path) -> Mapping[str, Any]:
        (folder / "teacher.safetensors").write_text(strategy)
        return {"rounds": list(rounds)}

    return store.build("federated_teacher", make, config={"strategy": strategy}, inputs={}, seed=0, version=1)


def make_federated_comparison(out: Path, root: Path, *, noise: float = 0.0) -> Path:
    """Write the folder of a comparison of three strategies over two seeds and return it; with ``noise`` one has it.

    Alone the smallest site does badly, all in one place they do a little better than under fedavg but at south.
    """
    elsewhere, store = Store(out / "sites" / "all" / "artifacts"), Store(out / "artifacts")
    prepared = open_prepared(elsewhere, root, labels=8)
    (out / "runs").mkdir()
    lines = []
    for strategy in ("alone", "pooled", "fedavg"):
        rounds = rounds_of(3, {2: ["west"]}) if strategy == "fedavg" else []
        teacher = keep_rounds(store, strategy, rounds)
        model = train(store, prepared, "distill", strategy, teacher=teacher.digest)
        levels = {name: level - 4.0 * (strategy == "pooled" and name != "south") for name, (level, _) in SITES.items()}
        levels |= {"west": ALONE_AT_WEST} if strategy == "alone" else {}
        for seed in (0, 1):
            scored = score_sites(store, prepared, TITLES["student"], float(seed), seed, levels=levels)
            name = f"task_kd-{strategy}-{seed}"
            write_json(out / "runs" / f"{name}.json", {"artifacts": {"model": model.path.name}})
            line = _line(scored, "task_kd", TITLES["student"], 8, seed)
            line = {("federated.strategy" if key == "data.labels" else key): value for key, value in line.items()}
            sent = {"mb_down": 16.0, "mb_up": 8.0} if rounds else {"mb_down": 0.0, "mb_up": 0.0}
            said = {"updates_are": f"clipped to 1, noise {noise:g}", "epsilon": 284.31, "delta": 1e-5}
            sent |= said if noise and rounds else dict.fromkeys(said, "")
            lines.append(line | {"run": name, "federated.strategy": strategy, **sent})
    write_csv(out / "table.csv", lines)
    write_json(out / "comparison.json", {
        "name": "federations", "axes": {"federated.strategy": ["alone", "pooled", "fedavg"], "seed": [0, 1]},
        "replicates": ["seed"], "compare": "federated.strategy", "baseline": "alone",
        "grid": {"recipe": {"data": {"root": str(root)}}, "axes": {}}, "budget_rule": "", "runs": 6, "ended": 6,
        "failed": 0, "made_with": [
            {"python": "3.11", "system": "Linux", "device": "CPU", "libraries": {}, "git_commit": None, "runs": 6},
        ],
    })  # fmt: skip
    return out


def make_comparison(out: Path, root: Path, *, failed: str = "") -> Path:
    """Write the folder of a comparison: task_kd and scratch, 4 and 8 labels, two seeds; return it."""
    store = Store(out / "artifacts")
    (out / "runs").mkdir()
    lines, scores = [], {}
    for labels in (4, 8):
        prepared = open_prepared(store, root, labels)
        for method, title, level in (("task_kd", TITLES["student"], 150.0), ("scratch", TITLES["scratch"], 180.0)):
            for seed in (0, 1):
                scored = score(store, prepared, title, level - 3 * labels + seed, seed)
                model = add_trainings(store, prepared, method, f"{labels}-{seed}")
                write_json(out / "runs" / f"{method}-{labels}-{seed}.json", {"artifacts": {"model": model.path.name}})
                lines.append(_line(scored, method, title, labels, seed))
                means = case_means(read_cases(scored.path), "dice")
                scores.setdefault((labels, method), []).append(list(means.values()))
    if failed:
        point = {"method": "scratch", "dataset": "", "data.labels": 8, "seed": 2}  # of a failed run no more is known
        lines.append({"run": "bad", "status": "failed", "error": failed, **point})
    write_csv(out / "table.csv", lines)
    by_labels = {k: {m: np.array(scores[k, m]) for m in ("task_kd", "scratch")} for k in (4, 8)}
    tests = [
        {"dataset": "cones", "data.labels": labels, **asdict(test)}
        for labels, group in by_labels.items()
        for test in compare_methods(group, DICE, seed=0)
    ]
    write_csv(out / "tests.csv", tests)
    change = compare_methods(
        {
            name: by_labels[labels]["task_kd"] - by_labels[labels]["scratch"]
            for name, labels in (("task_kd", 8), ("scratch", 4))
        },
        DICE, seed=0,
    )  # fmt: skip
    place = {"dataset": "cones", "data.labels": "", "axis": "data.labels", "first": 4, "last": 8}
    write_csv(out / "changes.csv", [{**place, **asdict(test)} for test in change])
    write_csv(out / "ranks.csv", [
        {"dataset": "cones", "data.labels": labels, **vars(rank)}
        for labels, group in by_labels.items() for rank in rank_table(group, DICE)
    ])  # fmt: skip
    write_csv(out / "bias_variance.csv", [
        {"dataset": "cones", "data.labels": labels, "method": method, "error": 0.05, "bias2": 0.03, "variance": 0.02,
         "remainder": 0.0, "runs": 2}
        for labels in (4, 8) for method in ("task_kd", "scratch")
    ])  # fmt: skip
    write_json(out / "comparison.json", {
        "name": "labels", "created": "2026-11-22", "axes": {"method": ["task_kd", "scratch"], "labels": [4, 8]},
        "replicates": ["seed"],
        "grid": {"recipe": {"data": {"root": str(root)}, "teacher": {"rank": 7}}, "axes": {"data.labels": [4, 8]}},
        "budget_rule": "Every student has the same training compute.", "runs": len(lines), "ended": len(lines),
        "failed": int(bool(failed)), "executor": {"executor": "local", "workers": 2, "address": None},
        "made_with": [
            {"python": "3.11", "system": "Linux", "device": "CPU", "libraries": {"torch": "2"}, "git_commit": None,
             "runs": 6},
            {"python": "3.12", "system": "Linux", "device": "CPU", "libraries": {"torch": "3"}, "git_commit": None,
             "runs": 2},
        ],
    })  # fmt: skip
    return out


def _line(scored: Artifact, method: str, title: str, labels: int, seed: int) -> dict[str, Any]:
    found = scored.metrics
    counts = ("n_cases", "scored", "missed", "false_positive", "both_empty")
    kept = {name: found[name] for name in ("dice", "iou", "hd95_px", "assd_px", *counts)}
    return {
        "run": f"{method}-{labels}-{seed}", "status": "done", "error": "", "method": method, "title": title,
        "dataset": "cones", "data.labels": labels, "seed": seed, **kept, "seconds": 3.0, **COMPUTE,
        "parameters": 5e6 - len(method), "latency_ms": 4.0 + len(method), "evaluation": scored.path.name,
    }  # fmt: skip


def write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write lines with the columns of the first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def _keep(images: np.ndarray, folder: Path) -> Mapping[str, Any]:
    np.save(folder / "samples.npy", images)
    return {}


def run_file(**values: Any) -> RunFile:
    """Return what a run found of which a test states a part."""
    nothing = {name: {} for name in ("metrics", "artifacts", "evaluations", "export", "stages", "recipe")}
    told: dict[str, Any] = {"dataset": "", "labels": 0, "seed": 0, "method": "task_kd", "teacher": None, "seconds": 0.0}
    return RunFile(**{**nothing, **told, **values})
