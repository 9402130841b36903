"""Answers on the shared images: how they are packed, unpacked and averaged, and the lesson that is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tskd.errors import UserError
from tskd.machine.disk import write_json
from tskd.models.ensemble import logits_of, probabilities_of
from tskd.models.registry import build_model
from tskd.recipe.schema import Recipe
from tskd.stages.cache import images_a_shard, view_bends, view_maps
from tskd.stages.lesson import Lesson
from tskd.stages.stored_answers import BENDS, LAYOUT, STORED, CacheLayout, shard_path

Packing = Literal["float16", "top"]
AT_ONCE = 64
"""Answers that are unpacked at a time: they are float32 then."""


def packed(logits: np.ndarray, packing: Packing) -> dict[str, np.ndarray]:
    """Return (N, K, S, S) float16 logits as they are sent: as they are, or of each pixel the most probable class (0:
    background) and its probability in 255 steps."""
    if packing == "float16":
        return {"logits": logits}
    classes, sure = np.empty((2, len(logits), *logits.shape[2:]), np.uint8)
    for rows in _chunks(len(logits)):
        probability, label = probabilities_of(torch.from_numpy(logits[rows])).max(dim=1)
        classes[rows], sure[rows] = label.numpy(), (255 * probability).round().numpy()
    return {"classes": classes, "probabilities": sure}


def shapes_of(layout: CacheLayout, packing: Packing) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return name -> shape and type of the arrays that a site has to send."""
    count, plane = layout.images * layout.views, layout.logits[1:]
    if packing == "float16":
        return {"logits": ((count, *layout.logits), "float16")}
    return dict.fromkeys(("classes", "probabilities"), ((count, *plane), "uint8"))


def unpacked(arrays: Mapping[str, np.ndarray], rows: slice, classes: int) -> Tensor:
    """Return (n, K + 1, S, S) probabilities, background first; what ``top`` has left out is shared by the others."""
    if "logits" in arrays:
        return probabilities_of(torch.from_numpy(arrays["logits"][rows]))
    label = torch.from_numpy(arrays["classes"][rows]).long()[:, None]
    sure = torch.from_numpy(arrays["probabilities"][rows]).float()[:, None] / 255
    rest = ((1 - sure) / classes).expand(-1, classes + 1, -1, -1).clone()
    return rest.scatter_(1, label, sure)


def require_answers(arrays: Mapping[str, np.ndarray], layout: CacheLayout, packing: Packing) -> None:
    """Raise UserError where what a site has sent are no answers on the shared images."""
    found = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    if found != shapes_of(layout, packing):
        raise UserError(
            f"answers of the shapes {found}, not {shapes_of(layout, packing)}: are its shared images others?"
        )
    if "classes" in arrays and arrays["classes"].max() > layout.logits[0]:
        raise UserError("it has sent answers with a class that there is not")


def plan(recipe: Recipe, lesson: Lesson, *, seed: int) -> CacheLayout:
    """Return the layout of the averaged answers; of features, which stay at the sites, a plane of zeros is kept."""
    student = build_model(lesson.student).eval()
    with torch.no_grad():
        side = student(torch.zeros(1, 3, lesson.student.image_size, lesson.student.image_size)).features[-1].shape[-1]
    images, views = len(lesson.seen.images), recipe.distill.views
    features = (1, side, side)
    logits = (len(lesson.student.classes), lesson.student.image_size, lesson.student.image_size)
    return CacheLayout(images, views, 0, features, logits, seed, images_a_shard(views, features, logits))


def write_average(
    replies: Sequence[tuple[Mapping[str, np.ndarray], float]], layout: CacheLayout, recipe: Recipe, folder: Path
) -> dict[str, Any]:
    """Write the weighted mean of the sites' probabilities as stored answers, as distillation reads them.

    ``replies``: each site's arrays and weight, in the order of the sites' names; the order decides the last bit.
    """
    total = sum(weight for _, weight in replies)
    augment = recipe.distill.augment
    for shard in range(layout.shards):
        first = shard * layout.shard_images
        images = np.arange(first, min(first + layout.shard_images, layout.images))
        logits = torch.cat([
            _mean(replies, slice(start, stop), layout.logits[0], total)
            for start, stop in _spans(first * layout.views, (images[-1] + 1) * layout.views)
        ])  # fmt: skip
        tensors = {
            "maps": torch.stack([view_maps(images, view, augment, layout.seed) for view in range(layout.views)], 1),
            "features": torch.zeros(len(images), layout.views, *layout.features, dtype=torch.float16),
            "logits": logits.reshape(len(images), layout.views, *layout.logits),
        }
        assert tuple(tensors) == STORED
        bends = [view_bends(images, view, augment, layout.seed) for view in range(layout.views)]
        if augment.p_elastic > 0:
            tensors[BENDS] = torch.stack([one.points for one in bends if one is not None], 1)
        save_file(tensors, shard_path(folder, shard))
    write_json(folder / LAYOUT, asdict(layout))
    return {"images": layout.images, "views": layout.views, "megabytes": round(layout.bytes / 1e6, 1)}


def _mean(replies: Sequence[tuple[Mapping[str, np.ndarray], float]], rows: slice, classes: int, total: float) -> Tensor:
    mean = torch.stack([unpacked(arrays, rows, classes) * (weight / total) for arrays, weight in replies]).sum(dim=0)
    return logits_of(mean).half()


def _chunks(count: int) -> list[slice]:
    return [slice(start, stop) for start, stop in _spans(0, count)]


def _spans(first: int, last: int) -> list[tuple[int, int]]:
    return [(start, min(start + AT_ONCE, last)) for start in range(first, int(last), AT_ONCE)]
