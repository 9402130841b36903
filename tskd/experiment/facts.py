"""What the settings of a run are chosen by: what lies in the data folder, and what the machine offers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, label

from tskd.console import progress
from tskd.data.layouts import Dataset
from tskd.data.prepared import spaced
from tskd.doctor import is_bf16_quicker
from tskd.engine.runtime import device_kind
from tskd.errors import UserError
from tskd.models.weights import efficientnet_lite0_path, find_sam
from tskd.recipe.schema import DataConfig, EngineConfig
from tskd.types import UNLABELLED, Record

LOOKED_AT = 48
"""Labelled images whose structures are measured."""
THINNER = 0.25
"""The quantile over images that stands for a class where it is thin."""
CRUMB = 4
"""Pixels; smaller parts are slips of the pen beside a structure."""
_TOUCHING = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Facts:
    """What the choices rest on."""

    labelled: int
    """Images with labels that may train, by the budget and without the test's."""
    cases: int
    """Cases that those are of, at most: of a volume there are many images."""
    validated: int
    """Labelled images that the data set itself sets apart for validation."""
    tested: int
    """Images of the test."""
    shown: int
    """Images that the student learns a teacher's answers on: all but those of the test, at most."""
    side: int
    """Median of the longer sides of the images, in px."""
    thickness: float | None
    """How thick structures of the thinnest class are in the images where they are thin, as a share of the longer side;
    None: no foreground was seen."""
    pixels: float | None
    """The same in px of the image, which is no such share of the median side where sizes vary."""
    thinnest: str
    """That class by its name; empty where there is one class only."""
    gpu: bool
    bf16: bool
    sam: Path | None
    offline: bool
    """Whether ImageNet weights of EfficientNet-Lite0 are installed."""


@dataclass(frozen=True)
class _Mask:
    side: int
    """The longer one."""
    thick: Mapping[int, float]
    """Of each class that it shows, in px."""


def look(dataset: Dataset, data: DataConfig, engine: EngineConfig) -> Facts:
    """Return what a data set and this machine offer under their settings; UserError where nothing can be learned."""
    labelled = [record for record in dataset.records if record.mask is not None and record.split != "test"]
    if not labelled:
        raise UserError(
            f"{dataset.root}: no image has a mask, so nothing can be learned. `tskd check` says what is there."
        )
    masks = _seen(dataset, labelled)
    classes = _thin_by_class(masks)
    if not classes and len(masks) == len(labelled):
        raise UserError(
            f"{dataset.root}: no mask of {len(labelled)} holds any foreground, so nothing can be learned. `tskd check` "
            "says what is there."
        )
    thinnest = min(classes, key=lambda number: classes[number][0], default=None)
    thickness, pixels = (None, None) if thinnest is None else classes[thinnest]
    training, tested = _parts(dataset, labelled, data)
    gpu = device_kind(engine.accelerator) != "cpu"
    free = [record for record in labelled if record.split != "val"]
    images, cases = _budget(free or labelled, training, data)
    return Facts(
        labelled=images,
        cases=cases,
        validated=len(labelled) - len(free),
        tested=tested,
        shown=len(dataset.records) - tested,
        side=int(np.median([mask.side for mask in masks])) if masks else 0,
        thickness=thickness,
        pixels=pixels,
        thinnest=_name(dataset.classes, thinnest) if thinnest is not None and len(classes) > 1 else "",
        gpu=gpu,
        bf16=_has_bf16(gpu),
        sam=find_sam(None),
        offline=efficientnet_lite0_path() is not None,
    )


def _parts(dataset: Dataset, labelled: list[Record], data: DataConfig) -> tuple[int, int]:
    """Return about how many labelled images may train and how many are tested, as `make_split` parts them."""
    official = sum(record.split == "test" and record.mask is not None for record in dataset.records)
    free = sum(record.split is None or (record.split == "train" and not official) for record in labelled)
    held_out = min(round(data.test_share * free), len(labelled) - 1)
    validated = sum(record.split == "val" for record in labelled)
    return max(len(labelled) - validated - held_out, 1), official + held_out


def _budget(labelled: list[Record], training: int, data: DataConfig) -> tuple[int, int]:
    """Return how many of the labelled images, and of their cases, will train, of so many images that may."""
    cases = max(round(len({record.case for record in labelled}) * training / len(labelled)), 1)
    if data.label_cases is not None:
        chosen = min(data.label_cases, cases)
        return max(round(training * chosen / cases), 1), chosen
    images = min(training, data.labels or training)
    return images, min(images, cases)


def _name(classes: tuple[str, ...], number: int) -> str:
    return classes[number - 1] if number <= len(classes) else f"class {number}"


def _seen(dataset: Dataset, labelled: list[Record]) -> list[_Mask]:
    """Return what evenly spaced masks show; where they show nothing, the others up to the first that shows something.

    A mask that cannot be read is left out: the run refuses it, by name and with all others.
    """
    places = spaced(np.arange(len(labelled)), LOOKED_AT).tolist()
    found: list[_Mask] = []
    with progress("configure: looking at structures", len(places)) as advance:
        for done, place in enumerate(places, start=1):
            found += _read(dataset, labelled[place])
            advance(done)
    for place in sorted(set(range(len(labelled))) - set(places)):
        if any(mask.thick for mask in found):
            break
        found += _read(dataset, labelled[place])
    return found


def _read(dataset: Dataset, record: Record) -> list[_Mask]:
    try:
        mask = dataset.read_mask(record)
    except UserError:
        return []
    numbers = np.unique(mask[(mask != 0) & (mask != UNLABELLED)]).tolist()
    return [_Mask(max(mask.shape), {number: thickness(mask == number) for number in numbers})]


def thickness(shown: np.ndarray) -> float:
    """Return how thick the structures of a mask (H, W) bool are, in px: the median over its connected parts.

    Parts of fewer than ``CRUMB`` pixels are left out where there are larger ones.
    Of a part it is twice the distance to the edge in its thickest tenth: a line's width to a pixel, two thirds of the
    diameter of a disc.
    """
    inside = distance_transform_edt(np.pad(shown, 1))
    parts, count = label(inside > 0, _TOUCHING)
    order = np.argsort(parts[inside > 0], kind="stable")
    sizes = np.bincount(parts[inside > 0], minlength=count + 1)[1:]
    each = np.split(inside[inside > 0][order], np.cumsum(sizes)[:-1])
    seen = [one for one in each if len(one) >= CRUMB] or each
    return 2 * float(np.median([np.quantile(one, 0.9) for one in seen]))


def _thin_by_class(masks: Iterable[_Mask]) -> dict[int, tuple[float, float]]:
    """Return how thick each class is where it is thin: as a share of the longer side, and in px."""
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for mask in masks:
        for number, pixels in mask.thick.items():
            found[number].append((pixels / mask.side, pixels))
    return {number: _quantiles(values) for number, values in found.items()}


def _quantiles(values: list[tuple[float, float]]) -> tuple[float, float]:
    share, pixels = np.quantile(values, THINNER, axis=0).tolist()
    return share, pixels


def _has_bf16(gpu: bool) -> bool:
    if gpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return is_bf16_quicker()
