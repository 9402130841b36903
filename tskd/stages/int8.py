"""The int8 network beside the float one: made in two ways, measured, and shipped where it is faster and as good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.utils import Extractor
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from tskd.console import say, warn
from tskd.data.labels import has_foreground
from tskd.data.prepared import Prepared, spaced
from tskd.deploy.network_file import CLASSES, INPUT, PROBABILITIES, ask, open_session
from tskd.deploy.onnx_export import silenced
from tskd.metrics.segmentation import agreement
from tskd.stages.network_answers import median_ms

MAX_DICE_DROP = 0.005
"""An int8 network that loses more Dice than this is not shipped."""
CALIBRATION_IMAGES = 48
JUDGED_ON = 32
"""Labelled images of the training side that both networks are scored on: test images choose nothing."""


@dataclass(frozen=True)
class Int8Verdict:
    """Whether the int8 network is worth shipping, and the figures that say so."""

    shipped: bool
    reason: str
    way: str
    """static or dynamic: see ``WAYS``."""
    dice_drop: float | None
    """Mean Dice of the float network minus that of the int8 network, over labelled images of the training side; None
    where none shows a structure."""
    float_ms: float
    int8_ms: float
    megabytes: float


def write_static(network: Path, path: Path, prepared: Prepared) -> None:
    """Write a copy whose convolutions and matrix products are int8, weights by channel, ranges from training images.

    Convolutional networks gain most; dynamic ranges would ruin depthwise convolutions. Relu and Clip are named so that
    their output is quantised, not their input: a stem of -258 to 368 leaves ReLU6's 0 to 6 two of 256 levels.
    """
    quantize_static(
        network,
        path,
        _Images(prepared),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,  # sums of int8 products overflow on processors without VNNI
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "ConvTranspose", "MatMul", "Gemm", "Relu", "Clip"],
        nodes_to_exclude=_only_for_doubt(network),
    )


def write_dynamic(network: Path, path: Path, prepared: Prepared | None = None) -> None:
    """Write a copy whose matrix products take int8 weights and activations quantised as they come: for transformers.

    Convolutions stay in float: onnxruntime's ConvInteger is slower than its float convolution.
    """
    quantize_dynamic(
        network,
        path,
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_only_for_doubt(network),
    )


def _only_for_doubt(network: Path) -> list[str]:
    """Return the names of nodes that neither classes nor probabilities need: squared distances do not survive int8."""
    model = onnx.load(network)
    needed = {node.name for node in Extractor(model).extract_model([INPUT], [CLASSES, PROBABILITIES]).graph.node}
    return [node.name for node in model.graph.node if node.name not in needed]


WAYS: dict[str, Callable[[Path, Path, Prepared], None]] = {"static": write_static, "dynamic": write_dynamic}


class _Images(CalibrationDataReader):
    """Images of the training side, one at a time."""

    def __init__(self, prepared: Prepared) -> None:
        rows = spaced(prepared.rows("train", "val", "unlabelled"), CALIBRATION_IMAGES)
        self.images: Iterator[np.ndarray] = (np.asarray(prepared.images[row]) for row in rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input; None at the end."""
        image = next(self.images, None)
        return None if image is None else {INPUT: image}


def ship_int8(network: Path, path: Path, prepared: Prepared, image: np.ndarray) -> Int8Verdict:
    """Write the better int8 network to ``path``, and keep it only where it earns its place.

    ``image`` is what both are timed on.
    """
    verdicts: dict[Path, Int8Verdict] = {}
    for way, write in WAYS.items():
        made = path.with_name(f".{way}.{path.name}")
        with silenced():
            write(network, made, prepared)
        verdicts[made] = compare(network, made, way, prepared, image)
    best = min(verdicts, key=lambda made: (not verdicts[made].shipped, verdicts[made].int8_ms))
    verdict = verdicts[best]
    if verdict.shipped:
        best.replace(path)
        say(f"int8: shipped ({verdict.reason})")
    else:
        warn(f"int8: not shipped ({verdict.reason}); the float network is")
    for made in verdicts:
        made.unlink(missing_ok=True)
    return verdict


def compare(network: Path, made: Path, way: str, prepared: Prepared, image: np.ndarray) -> Int8Verdict:
    """Return what an int8 network loses against the float one, and how fast both are on an image."""
    floats, int8 = open_session(network), open_session(made)
    drops = np.subtract(training_dice(floats, prepared), training_dice(int8, prepared))
    drop = float(drops.mean()) if drops.size else None
    float_ms, int8_ms = median_ms([partial(ask, floats), partial(ask, int8)], image)
    return judge_int8(way, drop, float_ms, int8_ms, megabytes=made.stat().st_size / 1e6)


def training_dice(session: Any, prepared: Prepared) -> list[float]:
    """Return the Dice of a network on evenly spaced labelled images of the training side; where there are tiles, most
    of which show nothing, on those with a structure alone. Empty where none of them shows a structure."""
    rows = np.concatenate([prepared.rows("val"), prepared.rows("train")])
    if prepared.tile is not None:
        rows = np.array([row for row in rows if has_foreground(prepared.masks[row])], rows.dtype)
    rows = spaced(rows, JUDGED_ON)
    if not any(has_foreground(prepared.masks[row]) for row in rows):
        return []
    images = ((np.asarray(prepared.images[row]), np.asarray(prepared.masks[row])) for row in rows)
    return [agreement(ask(session, image).classes, mask, len(prepared.classes)) for image, mask in images]


def judge_int8(way: str, dice_drop: float | None, float_ms: float, int8_ms: float, *, megabytes: float) -> Int8Verdict:
    """Return the verdict: an int8 network must be shown to lose at most ``MAX_DICE_DROP`` Dice, and be faster."""
    dice = "Dice not known" if dice_drop is None else f"Dice {-dice_drop:+.4f}"
    figures = f"{way}: {dice}, {int8_ms:.1f} ms against {float_ms:.1f} ms a look, {megabytes:.1f} MB"
    reason, shipped = figures, False
    if dice_drop is None:
        reason = f"no labelled image of the training side shows a structure to judge it by: {figures}"
    elif dice_drop > MAX_DICE_DROP:
        reason = f"it loses more Dice than {MAX_DICE_DROP}: {figures}"
    elif int8_ms >= float_ms:
        reason = f"it is not faster here: {figures}"
    else:
        shipped = True
    return Int8Verdict(shipped, reason, way, dice_drop, float_ms, int8_ms, round(megabytes, 2))
