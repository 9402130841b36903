"""nnU-Net 2.8 itself on the split of a run: planned, trained and predicted by its own code, scored by ours.

    pip install "nnunetv2==2.8.1"              # beside tskd in an environment of its own: it needs timm below 1.0.23
    python benchmarks/nnunet.py OUT/artifacts/prepare-0123456789ab --out FOLDER --minutes 60
    python benchmarks/nnunet.py PREPARED --out FOLDER --tiny       # two epochs of two iterations: does it run?

It learns from the images that our models learn from, at their size: all labelled rows of the prepared data, those of
the validation part too (fold ``all``). Test images are squeezed to the same square, answered with mirroring, and the
answer is brought back to the image's own size and scored by the code of ``tskd run``. ``--minutes`` is for training:
a few iterations are timed, then epochs and iterations are set so that the polynomial schedule ends in that time; its
published training is 1000 epochs of 250 iterations. Planning and prediction come on top. nnU-Net draws no seeded
numbers: two runs differ. FOLDER holds all of it; the same command goes on from the last checkpoint. A checkpoint is a
pickle: give no FOLDER that somebody else made.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, print_results
from PIL import Image
from torch import Tensor, nn

from tskd.artifacts import RUN_FILE, Artifact, whole
from tskd.console import say, warn
from tskd.data.prepared import Prepared
from tskd.errors import UserError, refused_by_system, require_folder
from tskd.machine.disk import write_json
from tskd.models.timm_segmenter import resize_images, resize_logits
from tskd.recipe.schema import EvaluateConfig
from tskd.report.run.folder import STUDENT, RunFolder, open_run
from tskd.report.text import dice_of, interval_of, number
from tskd.stages.evaluate import evaluate
from tskd.types import UNLABELLED, SegmentationOutput

NAME, NUMBER = "Dataset001_tskd", 1
VERSION = "2.8"
SETTINGS, SCHEDULE, RESULT, SCORES = "settings.json", "schedule.json", "nnunet.json", "scores"
PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
EPOCHS, ITERATIONS = 1000, 250
"""nnU-Net's own length."""
BETWEEN = 0.1
"""The largest part of an epoch that its end may take: a checkpoint, a plot."""
IMAGES_A_PROCESS = 100
"""A process takes seconds to start."""
TRIAL_EPOCHS, TRIAL_ITERATIONS = 3, 5
NOT_TRAINING = ("prepare", "evaluate", "ablation", "export", "quality")
"""Stages of a run whose time is no model's training."""


@dataclass(frozen=True)
class Schedule:
    """How long nnU-Net is trained."""

    epochs: int
    iterations: int
    """In an epoch."""
    iteration_seconds: float
    between_seconds: float
    """From an epoch's last iteration to the next one's first."""

    @property
    def seconds(self) -> float:
        return self.epochs * (self.iterations * self.iteration_seconds + self.between_seconds)

    def __str__(self) -> str:
        return (
            f"{self.epochs} epochs of {self.iterations} iterations: about {self.seconds / 60:.1f} minutes, "
            f"{self.iteration_seconds:.3g} s an iteration and {self.between_seconds:.3g} s between epochs"
        )


def main() -> None:
    """Train, score and print; exit 2 with one message where that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="folder of the stage prepare: OUT/artifacts/prepare-...")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that nnU-Net writes")
    parser.add_argument("--minutes", type=float, default=60.0, help="for training")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="left out: cuda where there is one")
    parser.add_argument("--tiny", action="store_true", help="two epochs of two iterations, for a test of this program")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        rows = compare(options)
    except (UserError, OSError) as error:
        print(refused_by_system(error) if isinstance(error, OSError) else error, file=sys.stderr)
        sys.exit(2)
    print_results(rows, as_json=options.json, threads=torch.get_num_threads())


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for nnU-Net and one for each model of the run that the data belong to."""
    artifact = open_prepared(options.prepared)
    prepared, device = Prepared(artifact.path), choose_device(options.device)
    refuse_unfit(prepared)
    version = require_nnunet()
    out = options.out.resolve()
    settings = {"data": artifact.digest, "minutes": options.minutes, "tiny": options.tiny, "nnunetv2": version}
    take_folder(out, settings)
    with own_paths(out), contextlib.redirect_stdout(sys.stderr):  # it talks a lot
        schedule = ready(prepared, out, options.minutes, device, tiny=options.tiny)
        say(f"nnU-Net: {schedule}")
        trained = train(schedule, out, device)
        model = NnUnet(*load_predictor(out, device), prepared.image_size)
        (out / SCORES).mkdir(exist_ok=True)
        title = f"nnU-Net {version}, {schedule.epochs} epochs of {schedule.iterations}" + (
            ", tiny: no result" if options.tiny else ""
        )
        scores = evaluate(EvaluateConfig(), model, prepared, out / SCORES, title=title, device=device)
    found = {
        **scores, **trained, "parameters": model.parameters_of_network, "schedule": asdict(schedule), **settings,
        "image_size": prepared.image_size, "labels": len(prepared.rows("train", "val")), "device": str(device),
        "machine": machine(torch.get_num_threads()),
    }  # fmt: skip
    write_json(out / RESULT, found)
    return [table_row(scores, trained["seconds"], found["parameters"]), *rows_of_run(prepared)]


# Before any work


def open_prepared(path: Path) -> Artifact:
    """Return the artifact of prepared data, verified; UserError where it is none or has no test images."""
    require_folder(path)
    remedy = f"Give a folder of the stage prepare of a finished run, OUT/artifacts/prepare-..., which is not {path}."
    artifact = whole(path.resolve(), remedy)
    if artifact.manifest["stage"] != "prepare":
        raise UserError(f"{path} holds what the stage {artifact.manifest['stage']} made. {remedy}")
    return artifact


def refuse_unfit(prepared: Prepared) -> None:
    """Raise UserError for data that nnU-Net cannot learn from, or that leave nothing to score."""
    folder, masks = prepared.folder, prepared.masks
    if not len(masks):
        raise UserError(f"{folder} has no labelled images: nnU-Net learns from labels alone. Prepare data with masks.")
    if not any(((mask > 0) & (mask != UNLABELLED)).any() for mask in masks):
        raise UserError(f"{folder}: no mask holds any of the classes. Raise data.labels, or look at `tskd check`.")
    if not len(prepared.rows("test")):
        raise UserError(f"{folder} has no test images: there is nothing to score. Prepare data with a test part.")


def require_nnunet() -> str:
    """Return the version of nnU-Net that is installed; UserError says how to install the one that is meant."""
    how = 'Install it beside tskd, in an environment of its own: pip install "nnunetv2==2.8.1"'
    if importlib.util.find_spec("nnunetv2") is None:
        raise UserError(f"nnU-Net is not installed. {how}")
    version = importlib.metadata.version("nnunetv2")
    if not version.startswith(f"{VERSION}."):
        raise UserError(f"nnU-Net {version} is installed, this program is written for {VERSION}. {how}")
    if torch.__version__.startswith("2.9."):
        raise UserError(f"nnU-Net {version} refuses torch {torch.__version__}: install 2.8 or 2.10 and later.")
    return version


def choose_device(name: str | None) -> torch.device:
    """Return the device to train on; UserError where there is none of the name."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here. Leave it out to train on the CPU.")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def take_folder(out: Path, settings: Mapping[str, Any]) -> None:
    """Write what is trained into the folder; UserError where it holds something else."""
    require_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    kept = out / SETTINGS
    if not kept.is_file():
        if any(out.iterdir()):
            raise UserError(f"{out} holds other files. Give an empty folder with --out.")
        write_json(kept, settings)
    elif (before := json.loads(kept.read_text(encoding="utf-8"))) != settings:
        changed = ", ".join(key for key in settings if before.get(key) != settings[key])
        raise UserError(f"{out} holds a training with another {changed}. Give another --out, or the same command.")


@contextlib.contextmanager
def own_paths(out: Path) -> Iterator[None]:
    """Let nnU-Net read and write below the folder alone, and log nowhere else."""
    before = dict(os.environ)
    os.environ.update({**{name: str(out / name) for name in PATHS}, "nnUNet_wandb_enabled": "0"})
    os.environ.pop("nnUNet_extTrainer", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# nnU-Net's folder


def write_raw(prepared: Prepared, folder: Path) -> None:
    """Write labelled rows as nnU-Net's raw data set: PNG under their row numbers, so that no id leaves the data."""
    rows, channels = prepared.rows("train", "val"), count_channels(prepared)
    ignored = bool(np.any(prepared.masks == UNLABELLED))
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for row in rows:
        image = planes(np.asarray(prepared.images[row]), channels)
        Image.fromarray(image.squeeze()).save(folder / "imagesTr" / f"{row:06d}_0000.png")
        Image.fromarray(numbered(prepared.masks[row], prepared)).save(folder / "labelsTr" / f"{row:06d}.png")
    classes = {f"{index} {name}": index for index, name in enumerate(prepared.classes, start=1)}
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {str(index): name for index, name in enumerate("RGB" if channels == 3 else ["grey"])},
            "labels": {"background": 0, **classes, **({"ignore": len(classes) + 1} if ignored else {})},
            "numTraining": len(rows),
            "file_ending": ".png",
            "overwrite_image_reader_writer": "NaturalImage2DIO",
        },
    )


def count_channels(prepared: Prepared) -> int:
    """Return 1 where all labelled images are grey, else 3."""
    images = (prepared.images[row] for row in prepared.rows("train", "val"))
    return 1 if all((image == image[..., :1]).all() for image in images) else 3


def planes(image: np.ndarray, channels: int) -> np.ndarray:
    """Return (S, S, C) uint8 of an image (S, S, 3) uint8: as it is, or its brightness."""
    return image if channels == 3 else np.asarray(Image.fromarray(image).convert("L"))[..., None]


def numbered(mask: np.ndarray, prepared: Prepared) -> np.ndarray:
    """Return a mask (S, S) uint8 as nnU-Net numbers it: pixels without a label come after the last class."""
    return np.where(mask == UNLABELLED, len(prepared.classes) + 1, mask).astype(np.uint8)


# Planning, training


def ready(prepared: Prepared, out: Path, minutes: float, device: torch.device, *, tiny: bool) -> Schedule:
    """Return the schedule of a data set that is planned and preprocessed; what was begun and not ended is made anew."""
    kept = out / SCHEDULE
    if kept.is_file():
        return Schedule(**json.loads(kept.read_text(encoding="utf-8")))
    for name in PATHS:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir()
    write_raw(prepared, out / PATHS[0] / NAME)
    plan(processes=min(8, os.cpu_count() or 1, 1 + len(prepared.masks) // IMAGES_A_PROCESS))
    timed = time_iterations(device)
    shutil.rmtree(out / PATHS[2])
    (out / PATHS[2]).mkdir()
    schedule = Schedule(2, 2, *timed) if tiny else fit_schedule(60 * minutes, *timed)
    write_json(kept, asdict(schedule))
    return schedule


def plan(processes: int) -> None:
    """Let nnU-Net look at its raw data, plan the 2d configuration and preprocess."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    api.extract_fingerprints([NUMBER], num_processes=processes, check_dataset_integrity=True)
    plans = api.plan_experiments([NUMBER])
    api.preprocess([NUMBER], plans, ("2d",), num_processes=(processes,))


def fit_schedule(seconds: float, iteration: float, between: float) -> Schedule:
    """Return the longest schedule up to nnU-Net's own that ends in the time; UserError where no iteration fits.

    Epochs are what the learning rate falls by: there are as many as keep their ends to a tenth of the time.
    """
    least = min(ITERATIONS, max(1, math.ceil(between * (1 / BETWEEN - 1) / iteration)))
    epochs = min(EPOCHS, int(seconds / (least * iteration + between))) or 1
    iterations = min(ITERATIONS, int((seconds / epochs - between) / iteration))
    if iterations < 1:
        raise UserError(f"One iteration of nnU-Net takes {iteration:.3g} s here. Give it more --minutes.")
    return Schedule(epochs, iterations, iteration, between)


def time_iterations(device: torch.device) -> tuple[float, float]:
    """Return seconds of an iteration, waiting for its batch included, and between epochs, of a short training."""
    trainer = make_trainer(device, Schedule(TRIAL_EPOCHS, TRIAL_ITERATIONS, 0, 0))
    step, ends = trainer.train_step, []

    def timed(batch: Any) -> Any:
        answer = step(batch)  # its loss is read, so a GPU has ended
        ends.append(time.perf_counter())
        return answer

    trainer.train_step = timed
    trainer.run_training()
    took = np.array([after - before for before, after in pairwise(ends)])
    first = np.arange(1, len(ends)) % TRIAL_ITERATIONS == 0
    iteration = float(took[TRIAL_ITERATIONS:][~first[TRIAL_ITERATIONS:]].mean())  # the first epoch warms up
    return iteration, max(0.0, float(took[first][-1]) - iteration)


def make_trainer(device: torch.device, schedule: Schedule, *, resumed: bool = False) -> Any:
    """Return nnU-Net's own trainer of fold ``all``, which has no validation images: one batch keeps its log going."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    trainer = get_trainer_from_args(str(NUMBER), "2d", "all", continue_training=resumed, device=device)
    trainer.num_epochs, trainer.num_iterations_per_epoch = schedule.epochs, schedule.iterations
    trainer.num_val_iterations_per_epoch = 1
    trainer.save_every = max(1, min(trainer.save_every, schedule.epochs // 20))
    maybe_load_checkpoint(trainer, resumed, validation_only=False)
    return trainer


def train(schedule: Schedule, out: Path, device: torch.device) -> dict[str, Any]:
    """Train to the end of the schedule, from the last checkpoint where there is one; return what it took."""
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    fold = Path(get_output_folder(NAME, configuration="2d", fold="all"))
    resumed = any(fold.glob("checkpoint_*.pth"))
    torch.backends.cudnn.benchmark = True
    trainer = make_trainer(device, schedule, resumed=resumed)
    if not (fold / "checkpoint_final.pth").is_file():
        trainer.run_training()
    stamps = (trainer.logger.get_value(f"epoch_{side}_timestamps", step=None) for side in ("start", "end"))
    planned = trainer.configuration_manager
    return {
        "seconds": round(sum(end - start for start, end in zip(*stamps)), 1),
        "epochs": schedule.epochs,
        "iterations_per_epoch": schedule.iterations,
        "batch_size": planned.batch_size,
        "patch_size": [int(side) for side in planned.patch_size],
    }


# Prediction


class NnUnet(nn.Module):
    """nnU-Net as our evaluation asks a model: (1, 3, H, W) in [0, 1] to logits at the image's size, mirroring on."""

    def __init__(self, predictor: Any, channels: int, side: int) -> None:
        super().__init__()
        self.predictor, self.channels, self.side = predictor, channels, side

    @property
    def parameters_of_network(self) -> int:
        return sum(one.numel() for one in self.predictor.network.parameters())

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Squeeze to the square, ask for probabilities, and enlarge their logarithms as our networks' logits."""
        (square,) = resize_images(images, self.side).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        stack = planes(square, self.channels).transpose(2, 0, 1)[:, None].astype(np.float32)
        _, answer = self.predictor.predict_single_npy_array(
            stack, {"spacing": (999, 1, 1)}, save_or_return_probabilities=True
        )
        logs = torch.from_numpy(answer[:, 0]).float().clamp(min=torch.finfo(torch.float32).tiny).log()
        logits = (logs[1:] - logs[:1])[None].to(images.device)
        return SegmentationOutput((), resize_logits(logits, images.shape[-2:]))


def load_predictor(out: Path, device: torch.device) -> tuple[Any, int]:
    """Return nnU-Net's predictor with the weights of the end of the training, and its number of channels."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    predictor = nnUNetPredictor(use_mirroring=True, device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(get_output_folder(NAME, configuration="2d"), ("all",))
    return predictor, len(predictor.dataset_json["channel_names"])


# What is shown


def table_row(scores: Mapping[str, Any], seconds: float, parameters: int | None) -> dict[str, Any]:
    """Return a model's line of the table: the scores are a summary of an evaluation."""
    unit = "mm" if "hd95_mm" in scores else "px"
    return {
        "model": scores["model"],
        dice_of(scores["level"]): number(scores["dice"]),
        "95 % interval": interval_of(scores, "dice"),
        f"HD95 {unit}": number(scores[f"hd95_{unit}"], 1),
        "n": scores["n_cases"],
        "minutes": round(seconds / 60, 1),
        "parameters": parameters,
    }


def rows_of_run(prepared: Prepared) -> list[dict[str, Any]]:
    """Return the lines of the run whose data these are; none, and a word on it, where it scored other images."""
    out = prepared.folder.parents[1]
    if not (out / RUN_FILE).is_file():
        return []
    try:
        run = open_run(out)
    except UserError as error:
        warn(f"the run beside the data is left out: {error}")
        return []
    if {run.prepared.folder, run.tested.folder} != {prepared.folder}:
        warn(f"the run in {out} is left out: it was trained or tested on other data than {prepared.folder.name}")
        return []
    return [_row_of_model(run, name) for name in run.models]


def _row_of_model(run: RunFolder, name: str) -> dict[str, Any]:
    """Return the line of one of our models; its minutes are those of all trainings that it came from."""
    made: Sequence[Artifact] = [one for one in run.stages.values() if one.manifest["stage"] not in NOT_TRAINING]
    seconds = sum(one.manifest["seconds"] for one in made if name in run.models_from(one))
    title = f"{run.title(name)} ({run.summary.method})" if name == STUDENT else run.title(name)
    scores = {**run.metrics[name], "model": title}
    return table_row(scores, seconds, run.summary.networks.get(name, {}).get("parameters"))


if __name__ == "__main__":
    main()
