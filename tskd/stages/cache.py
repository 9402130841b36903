"""Cache: the teacher looks at each stored view of a transfer image once; distillation then costs the student alone.

View 0 of an image is the image itself, the others are moved by a map drawn from (seed, image, view). The map and, as
fp16, the teacher's features on the student's grid and its logits lie in safetensors shards, read by memory map.
In training, view, symmetry (flips, quarter turns) and crop are drawn anew; image, features and logits move alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from tskd.artifacts import Artifact
from tskd.console import progress, say
from tskd.data.augment import CELLS, Bends, draw_bends, draw_geometry, move_images
from tskd.data.transfer_set import TransferSet
from tskd.engine import Runtime
from tskd.engine.batches import geometry_range, to_images
from tskd.engine.out_of_memory import inference_remedies, memory_explained
from tskd.losses.distance import match_grid, match_size
from tskd.machine.disk import require_room, write_atomic, write_json
from tskd.models.flops import gflops, inference_flops
from tskd.models.projections import matching_level
from tskd.models.registry import build_model
from tskd.recipe.schema import NAMING, AugmentConfig, DistillConfig
from tskd.seeding import torch_generator
from tskd.stages.lesson import Lesson
from tskd.stages.stored_answers import BENDS, LAYOUT, STORED, TEACHER_GFLOPS, CacheLayout, image_bytes, shard_path
from tskd.stages.workbench import Workbench

VERSION = 3
OF_THE_STUDENT = {"photometric", "appearance", "amplitude", "amplitude_band", "flip", "crop"}
"""Settings of the augmentation that change no answer: what the student sees alone, and what is drawn in training."""
SHARD_IMAGES, SHARD_BYTES = 64, 2**26
"""At most so much is in one shard: it is built in memory."""
LARGEST_SHARE_OF_TRAINING = 0.5


def cache_pays(config: DistillConfig, images: int) -> bool:
    """Say whether to cache: where the recipe decides, or (``auto``) by the rule of thumb.

    The rule: cache where the stored views are at most half of the views that training looks at. Below that the teacher
    would see most stored views only once or twice anyway, and computing online gives fresh ones for the same price.
    """
    if config.cache != "auto":
        return config.cache == "on"
    return images * config.views <= LARGEST_SHARE_OF_TRAINING * config.steps * config.batch_size


def build(bench: Workbench, config: DistillConfig, lesson: Lesson) -> Artifact | None:
    """Return the teacher's stored answers; None where computing them online is cheaper."""
    if not cache_pays(config, len(lesson.seen.images)):
        return None
    return bench.build(
        "cache",
        lambda folder: store_answers(bench, config, lesson, folder),
        config={
            "views": config.views,
            "augment": _settings_of_views(config.augment),
            "precision": bench.precision,  # the teacher answers under it
        },
        inputs=lesson.inputs,
        version=VERSION,
        together=True,
    )


def _settings_of_views(augment: AugmentConfig) -> dict[str, Any]:
    """Return the settings as a cache is named by them: those of the student at their defaults, which names had."""
    of_views = AugmentConfig(**augment.model_dump(exclude=OF_THE_STUDENT))
    return of_views.model_dump(context=NAMING)


def store_answers(bench: Workbench, config: DistillConfig, lesson: Lesson, folder: Path) -> dict[str, Any]:
    """Ask the teacher about every view of the transfer images as it sees them, and keep its answers."""
    teacher, shown = lesson.teacher.load(), lesson.seen_by_teacher
    layout = plan_cache(
        teacher, build_model(lesson.student), shown,
        image_size=lesson.student.image_size, views=config.views, seed=bench.seed,
    )  # fmt: skip
    spent = gflops(layout.images * layout.views * inference_flops(teacher, shown.images.shape[1]))
    metrics = build_cache(teacher, shown, layout, config.augment, folder, runtime=bench.runtime)
    return metrics | {TEACHER_GFLOPS: spent}


def plan_cache(
    teacher: nn.Module, student: nn.Module, transfer: TransferSet, *, image_size: int, views: int, seed: int
) -> CacheLayout:
    """Return the shapes of the stored answers of a teacher for a student, by asking both about one image.

    ``transfer`` is as the teacher sees it, ``image_size`` the side of what the student sees.
    """
    image = to_images(transfer.images[[0]])
    with torch.no_grad():
        answer = teacher.cpu().eval()(image)
        side = student.eval()(torch.zeros(1, 3, image_size, image_size)).features[-1].shape[-1]
    level = matching_level(answer.features, side)
    features = (answer.features[level].shape[1], side, side)
    logits = (answer.logits.shape[1], image_size, image_size)
    return CacheLayout(
        len(transfer.images), views, level, features, logits, seed, images_a_shard(views, features, logits)
    )


def images_a_shard(views: int, features: Sequence[int], logits: Sequence[int]) -> int:
    """Return how many images of stored answers of these shapes lie in one shard."""
    return max(1, min(SHARD_IMAGES, SHARD_BYTES // image_bytes(views, features, logits)))


def build_cache(
    teacher: nn.Module,
    transfer: TransferSet,
    layout: CacheLayout,
    augment: AugmentConfig,
    folder: Path,
    *,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write all shards; finished ones are kept when the work is taken up again, and processes share them out.

    ``transfer`` is as the teacher sees it, at its own size; logits are stored at the student's.

    Raises RunFailed where the disk has too little room for what is left to write.
    """
    _require_room(layout, folder)
    fabric = runtime.fabric
    teacher = teacher.to(fabric.device).requires_grad_(False).eval()
    say(f"cache: {layout.images} images x {layout.views} views, {layout.bytes / 1e6:.0f} MB on disk")
    explained = memory_explained("cache", fabric.device, inference_remedies("teacher.image_size", runtime))
    with explained, progress("cache: teacher", layout.shards) as advance:
        for shard in range(fabric.global_rank, layout.shards, fabric.world_size):
            if not shard_path(folder, shard).exists():
                write_shard(teacher, transfer, layout, augment, folder, shard, runtime)
            advance(shard + 1)
    fabric.barrier()
    if fabric.is_global_zero:
        write_json(folder / LAYOUT, asdict(layout))
    return {"images": layout.images, "views": layout.views, "megabytes": round(layout.bytes / 1e6, 1)}


def view_maps(images: np.ndarray, view: int, augment: AugmentConfig, seed: int) -> Tensor:
    """Return (B, 2, 3) maps of a stored view, each a function of (seed, image, view) alone; view 0 is the identity."""
    if view == 0:
        return torch.eye(2, 3).expand(len(images), -1, -1)
    limits = geometry_range(augment, (False, False))
    maps = [draw_geometry(1, limits, torch_generator(seed, "view", image, view))[0] for image in images.tolist()]
    return torch.stack(maps)


def view_bends(images: np.ndarray, view: int, augment: AugmentConfig, seed: int) -> Bends | None:
    """Return the bends of a stored view, as :func:`view_maps` its maps; None where the settings bend no image."""
    limits = geometry_range(augment, (False, False))
    drawn = [draw_bends(1, limits, torch_generator(seed, "view bends", image, view)) for image in images.tolist()]
    points = [bends.points * (view > 0) for bends in drawn if bends is not None]
    return Bends(torch.cat(points), torch.zeros(len(images), 2)) if points else None


def _require_room(layout: CacheLayout, folder: Path) -> None:
    written = sum(path.stat().st_size for path in folder.glob("shard-*.safetensors"))
    remedy = "lower distill.views, or compute online: --set distill.cache=off"
    require_room(folder, layout.bytes - written, what="the teacher's answers", remedy=remedy)


def write_shard(
    teacher: nn.Module,
    transfer: TransferSet,
    layout: CacheLayout,
    augment: AugmentConfig,
    folder: Path,
    shard: int,
    runtime: Runtime,
) -> None:
    first = shard * layout.shard_images
    images = np.arange(first, min(first + layout.shard_images, layout.images))
    every_map = torch.empty(len(images), layout.views, 2, 3)
    points = torch.zeros(len(images), layout.views, 2, CELLS + 3, CELLS + 3)
    features = torch.empty(len(images), layout.views, *layout.features, dtype=torch.float16)
    logits = torch.empty(len(images), layout.views, *layout.logits, dtype=torch.float16)
    for rows in _chunks(len(images), 8):
        pixels = to_images(transfer.images[images[rows]])
        for view in range(layout.views):
            maps = view_maps(images[rows], view, augment, layout.seed)
            bends = view_bends(images[rows], view, augment, layout.seed)
            if bends is not None:
                points[rows, view] = bends.points
            with torch.no_grad(), runtime.fabric.autocast():
                answer = teacher(move_images(pixels, maps, bends=bends).to(runtime.fabric.device))
            features[rows, view] = (
                match_grid(answer.features[layout.level], torch.Size(layout.features[1:])).cpu().half()
            )
            logits[rows, view] = match_size(answer.logits, torch.Size(layout.logits[1:])).cpu().half()
            every_map[rows, view] = maps
    tensors = dict(zip(STORED, (every_map, features, logits)))
    if augment.p_elastic > 0:
        tensors[BENDS] = points
    write_atomic(shard_path(folder, shard), save(tensors))  # one that is there is not written again


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
