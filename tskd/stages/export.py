"""Export: the student as one ONNX file, proved equal to the network on real cases, in a bundle that can be shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image
from torch import nn

from tskd.artifacts import (
    ARTIFACTS,
    MANIFEST,
    RUN_FILE,
    Artifact,
    Builder,
    Store,
    environment,
    find_by_digest,
    json_sha256,
    whole,
)
from tskd.data.labels import has_foreground
from tskd.data.prepared import PARTS, Prepared, spaced
from tskd.data.tiles import Corner, cut_tile, fits, tile_corners
from tskd.deploy.bundle import CARD, FOLDER, ONNX, ONNX_INT8, WEIGHTS, publish, require_ours, write_sums
from tskd.deploy.card import model_card
from tskd.deploy.description import BundleDescription, InputRule
from tskd.deploy.network_file import Answer, ask, confidence, open_session
from tskd.deploy.onnx_export import Deployable, Deployed, Doubts, write_onnx
from tskd.errors import RunFailed, UserError
from tskd.machine.disk import write_atomic
from tskd.machine.memory import cores
from tskd.metrics.segmentation import agreement
from tskd.models.description import read_description
from tskd.models.registry import load_model, save_tensors
from tskd.recipe.schema import ExportConfig
from tskd.run_file import REMEDY, RunFile, folder_of_run, read_run
from tskd.stages.doubt import read_doubts
from tskd.stages.int8 import ship_int8
from tskd.stages.network_answers import median_ms, network_answer
from tskd.types import UNLABELLED

VERSION = 5
MAX_PROBABILITY_DIFFERENCE = 1e-3
"""Largest difference of one probability of one pixel between network and file; rounding alone gives about 1e-6."""
ODD_SIZE = (173, 211)
"""A size (rows, columns) that no data set has: the file must answer at any."""
_SCORES = (
    "dataset",
    "level",
    "dice",
    "iou",
    "hd95",
    "assd",
    "n_cases",
    "n_images",
    "n_volumes",
    "volume_error_ml",
    "scored",
    "both_empty",
    "missed",
    "false_positive",
)


def axis_of(prepared: Artifact) -> int:
    """Return the axis along which volumes of prepared data were sliced."""
    return int(prepared.manifest["config"].get("axis", 2))


@dataclass(frozen=True)
class ParityCase:
    """One real image with labels."""

    id: str
    image: np.ndarray
    """(H, W, 3) uint8."""
    mask: np.ndarray
    """(H, W) uint8 class index."""


def build(
    store: Builder,
    config: ExportConfig,
    student: Artifact,
    prepared: Artifact,
    doubt: Artifact,
    scores: Mapping[str, Any],
    *,
    method: str,
    axis: int,
) -> Artifact:
    """Return the artifact with the bundle of a method's small model; ``scores`` are evaluation metrics by name.

    ``axis``: that along which volumes were sliced.
    """
    inputs = {
        "data": prepared.digest,
        "model": student.digest,
        "doubt": doubt.digest,
        "scores": json_sha256(scores),
    }
    return store.build(
        "export",
        lambda folder: export(
            config,
            student.path,
            Prepared(prepared.path),
            doubt,
            folder,
            method=method,
            scores=scores,
            data_digest=prepared.digest,
            axis=axis,
        ),
        config={**config.model_dump(), "method": method, **({} if axis == axis_of(prepared) else {"axis": axis})},
        inputs=inputs,
        seed=0,
        version=VERSION,
    )


def export_again(model: Path, *, int8: bool | None = None) -> Path:
    """Export a finished run's student once more, with an int8 network or without; return the bundle's folder.

    ``int8`` None: as the run's recipe says. ``model`` is the run's output folder or the bundle in it: the cases that
    prove the export are in the run's artifacts. Raises UserError where they are not there.
    """
    out = folder_of_run(model)
    if not (out / RUN_FILE).is_file():
        raise UserError(
            f"{model}: an export is checked on the run's own test images, and there is no {RUN_FILE} here or beside "
            "it. Give the output folder of a finished `tskd run`."
        )
    require_ours(out / FOLDER)
    run = read_run(out)
    store = Store(out / ARTIFACTS)
    student = _student_of(store.root, run)
    config = ExportConfig(**run.recipe["export"])
    if int8 is not None:
        config = config.model_copy(update={"int8": int8})
    prepared = _prepared_of(student)
    artifact = build(
        store, config, student, prepared, _doubt_of(store.root, run), run.metrics,
        method=run.method, axis=axis_of(prepared),
    )  # fmt: skip
    publish(artifact.path, out / FOLDER)
    return out / FOLDER


def export(
    config: ExportConfig,
    student: Path,
    prepared: Prepared,
    doubt: Artifact,
    folder: Path,
    *,
    method: str,
    scores: Mapping[str, Mapping[str, Any]],
    data_digest: str,
    axis: int,
) -> dict[str, Any]:
    """Write the bundle of the student saved in a folder; return parity, latency and the verdict on int8.

    The network is rebuilt from disk on the CPU, so that nothing of its training ends in the file. Raises RunFailed
    naming the worst case where the file does not do what the network does.
    """
    segmenter = load_model(student)
    if not isinstance(segmenter, Deployable):
        raise UserError(f"{student}: only small networks can be exported, this is a {type(segmenter).__name__}.")
    doubts = read_doubts(doubt.path)
    write_onnx(Deployed(segmenter, doubts), folder / ONNX)
    cases = parity_cases(prepared, config.parity_cases)
    timed = max((case.image for case in cases), key=lambda image: image.size)
    metrics: dict[str, Any] = {
        "parity": check_parity(
            segmenter, open_session(folder / ONNX), cases, max_dice_drop=config.max_dice_drop, doubts=doubts
        ),
        "parameters": sum(parameter.numel() for parameter in segmenter.parameters()),
        "latency": _latency(folder / ONNX, timed),
    }
    (folder / ONNX_INT8).unlink(missing_ok=True)  # of an interrupted attempt
    if config.int8:
        metrics["int8"] = asdict(ship_int8(folder / ONNX, folder / ONNX_INT8, prepared, timed))
    network, _ = read_description(student)
    dataset, versions = prepared.dataset, environment()
    rules = [note for note in dataset["notes"] if note.startswith("intensities:")]
    description = BundleDescription(
        kind=network.kind,
        classes=network.classes,
        image_size=network.image_size,
        arguments=network.arguments,
        method=method,
        input=InputRule(dataset["window"], axis, rules),
        dataset=dataset["name"],
        training_data_sha256=data_digest,
        images={part: prepared.count(part) for part in PARTS},
        cases={part: len(prepared.cases(part)) for part in PARTS},
        scores={name: _score_fields(values) for name, values in scores.items()},
        versions={"python": versions["python"], **versions["libraries"]},
        export=metrics,
        doubt=doubt.metrics,
        codes=dataset.get("codes", {}),
        tile=prepared.tile,
    )
    save_tensors(folder, segmenter.state_dict(), description.as_dict(), file=WEIGHTS)
    write_atomic(folder / CARD, model_card(description).encode())
    write_sums(folder)
    return metrics


def parity_cases(prepared: Prepared, count: int) -> list[ParityCase]:
    """Return up to ``count`` labelled images evenly spaced over the test part, at their own size (else: validation).

    Of an image that is answered in tiles it is one of them: that is what the network sees.
    """
    rows = prepared.rows("test")
    native = len(rows) > 0
    rows = rows if native else prepared.rows("val")
    if not len(rows):
        raise UserError("An export is checked on labelled images, and there are neither test nor validation images.")
    if not native:
        return [
            ParityCase(prepared.records[row].id, np.asarray(prepared.images[row]), np.asarray(prepared.masks[row]))
            for row in spaced(rows, count)
        ]
    shown = ((row, prepared.native_image(row), prepared.native_mask(row)) for row in spaced(rows, count))
    return [ParityCase(prepared.records[row].id, *_one_look(image, mask, prepared.tile)) for row, image, mask in shown]


def check_parity(
    segmenter: nn.Module,
    session: InferenceSession,
    cases: Sequence[ParityCase],
    *,
    max_dice_drop: float,
    doubts: Doubts | None = None,
) -> dict[str, Any]:
    """Compare file and network on real cases and at a size of no case; return the differences found.

    Raises RunFailed naming the worst case where Dice differs by more than ``max_dice_drop``, a probability or the
    confidence by more than ``MAX_PROBABILITY_DIFFERENCE``, or unfamiliarity by more than that share of itself.
    """
    dice, probability, doubt = {}, {}, {}
    for case in cases:
        ours, theirs = network_answer(segmenter, case.image, doubts), ask(session, case.image)
        dice[case.id] = abs(_dice(ours, case) - _dice(theirs, case))
        probability[case.id] = _probability_difference(ours, theirs)
        doubt[case.id] = doubt_difference(ours, theirs)
    resized = np.asarray(Image.fromarray(cases[0].image).resize(ODD_SIZE[::-1], Image.Resampling.BILINEAR))
    odd = f"an image of {ODD_SIZE[1]}x{ODD_SIZE[0]} pixels"
    probability[odd] = _probability_difference(network_answer(segmenter, resized, doubts), ask(session, resized))
    _refuse(dice, max_dice_drop, "Dice")
    _refuse(probability, MAX_PROBABILITY_DIFFERENCE, "a probability")
    _refuse(doubt, MAX_PROBABILITY_DIFFERENCE, "its doubt")
    return {
        "images": len(cases),
        "dice_difference_mean": float(np.mean(list(dice.values()))),
        "dice_difference_worst": max(dice.values()),
        "probability_difference_worst": max(probability.values()),
        "doubt_difference_worst": max(doubt.values()),
    }


def _one_look(image: np.ndarray, mask: np.ndarray, tile: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return what the network is shown at once of an image (H, W, 3) and its mask: of larger ones a tile with a
    structure, else with a label, the first such."""
    if tile is None or fits(image.shape, tile):
        return image, mask

    def shows(corner: Corner) -> tuple[bool, bool]:
        part = cut_tile(mask, corner, tile, UNLABELLED)
        return has_foreground(part), bool((part != UNLABELLED).any())

    best = max(tile_corners(image.shape, tile), key=shows)
    return cut_tile(image, best, tile), cut_tile(mask, best, tile, UNLABELLED)


def _latency(network: Path, image: np.ndarray) -> dict[str, Any]:
    counts = sorted({1, cores()})
    milliseconds = median_ms([partial(ask, open_session(network, threads)) for threads in counts], image)
    by_threads = {str(threads): value for threads, value in zip(counts, milliseconds, strict=True)}
    return {"image": list(image.shape[:2]), "ms_by_threads": by_threads}


def _dice(answer: Answer, case: ParityCase) -> float:
    return agreement(answer.classes, case.mask, len(answer.probabilities) - 1)


def _probability_difference(ours: Answer, theirs: Answer) -> float:
    return float(np.abs(ours.probabilities - theirs.probabilities).max())


def doubt_difference(ours: Answer, theirs: Answer) -> float:
    """Return how far the file's doubt is from the network's.

    Its confidence is that of its own mask, in which a pixel on the border of two classes may have gone to the other.
    """
    pairs = (
        (confidence(theirs.classes, ours.probabilities), theirs.confidence),
        (ours.unfamiliarity, theirs.unfamiliarity),
    )
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs if a is not None and b is not None)


def _refuse(differences: Mapping[str, float], limit: float, what: str) -> None:
    worst = list(differences)[int(np.argmax(list(differences.values())))]  # of a not-a-number too: it fails
    if not differences[worst] <= limit:
        raise RunFailed(
            f"The exported file does not do what the network does: {what} differs by {differences[worst]:.2g} on "
            f"{worst} (allowed: {limit:g}). No bundle was written. Try another version of torch or onnxruntime."
        )


def _student_of(root: Path, run: RunFile) -> Artifact:
    """Return the student that a run ended with, verified: what is exported is what was trained and scored."""
    path = root / run.artifacts["student"]
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path}: the student that {RUN_FILE} names is gone. {REMEDY}")
    return whole(path, REMEDY)


def _prepared_of(student: Artifact) -> Artifact:
    """Return the data a student was trained on, found by the digest in its manifest and verified."""
    prepared = find_by_digest(student.path.parent, "prepare", student.manifest["inputs"]["data"])
    if prepared is None:
        raise UserError(f"{student.path.parent}: the data the student was trained on is gone. {REMEDY}")
    return whole(prepared.path, REMEDY)


def _doubt_of(root: Path, run: RunFile) -> Artifact:
    """Return what is known of the student's doubt, verified."""
    path = root / run.doubt.get("artifact", "")
    if not (path / MANIFEST).is_file():
        raise UserError(f"{root.parent}: what its student knows of its doubts is not there. {REMEDY}")
    return whole(path, REMEDY)


def _score_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores alone: nothing else of an evaluation may leave with the bundle."""
    kept = {key: value for key, value in values.items() if key.startswith(_SCORES)}
    if "classes" in values:
        kept["classes"] = {label: _score_fields(one) for label, one in values["classes"].items()}
    if "slices" in values:
        kept["slices"] = _score_fields(values["slices"])
    return kept
