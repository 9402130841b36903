"""Teacher images: what is trained on, read anew at the size of a teacher that sees another one than the student.

A teacher that was shown the student's images would see each shrunk and enlarged again, and be tested on sharp ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tskd.artifacts import Artifact, Builder
from tskd.console import progress, say
from tskd.data.layouts import Dataset
from tskd.data.prepared import (
    DATASET,
    IMAGES,
    MASKS,
    Prepared,
    PreparedRecord,
    open_array,
    rows_by_image,
    squeeze_image,
    squeeze_mask,
    write_prepared_records,
)
from tskd.data.tiles import cut_tile, fill_up
from tskd.machine.disk import require_room, write_json
from tskd.machine.memory import cores
from tskd.recipe.schema import DataConfig
from tskd.stages.source_data import data_root, open_data
from tskd.types import UNLABELLED

VERSION = 1


def build(store: Builder, data: DataConfig, prepared: Artifact, size: int) -> Artifact:
    """Return the images as a teacher of that size sees them; the prepared data themselves where the sizes agree."""
    if size == data.image_size:
        return prepared
    root = data_root(store, data)
    return store.build(
        "teacher_images",
        lambda folder: write_teacher_images(open_data(data, root), Prepared(prepared.path), size, folder),
        config={"image_size": size},
        inputs={"data": prepared.digest},
        seed=data.split_seed,
        version=VERSION,
    )


def write_teacher_images(dataset: Dataset, prepared: Prepared, size: int, folder: Path) -> Mapping[str, Any]:
    """Write images and masks of the data set's training, validation and unlabelled part, squeezed to ``size``.

    Row k shows what row k of ``prepared`` shows, under the same affine map from the image's own coordinates: those of
    [-1, 1] mean the same place in both. Raises RunFailed where the disk has too little room.
    """
    records = [record for record in prepared.records if record.part != "test"]
    labelled = len(prepared.masks)
    needed = (3 * len(records) + labelled) * size**2
    require_room(
        folder, needed, what="the teacher's images", remedy="lower teacher.image_size, or set it to data.image_size"
    )
    say(f"teacher: its own {len(records)} images at {size} px, {needed / 1e6:.0f} MB on disk")
    source = {record.id: record for record in dataset.records}
    rows_of = rows_by_image(records, range(len(records)))
    images = open_array(folder / IMAGES, (len(records), size, size, 3))
    masks = open_array(folder / MASKS, (labelled, size, size))

    def put(rows: Sequence[int]) -> None:
        record = source[records[rows[0]].image]
        image, mask = dataset.read_image(record), dataset.read_mask(record) if rows[0] < labelled else None
        if prepared.tile is not None and records[rows[0]].corner is not None:
            image, _ = fill_up(image, prepared.tile)
            mask = None if mask is None else fill_up(mask, prepared.tile, UNLABELLED)[0]
        for row in rows:
            images[row] = squeeze_image(_shown(image, records[row], prepared.tile), size)
            if mask is not None:
                masks[row] = squeeze_mask(_shown(mask, records[row], prepared.tile), size)

    with ThreadPoolExecutor(cores()) as pool, progress("teacher: reading", len(rows_of)) as advance:
        for done, _ in enumerate(pool.map(put, rows_of.values()), start=1):
            advance(done)
    images.flush()
    masks.flush()
    write_prepared_records(folder, records)
    write_json(folder / DATASET, {**prepared.dataset, "image_size": size})
    return {"images": len(records), "image_size": size, "megabytes": round(needed / 1e6, 1)}


def _shown(pixels: np.ndarray, record: PreparedRecord, tile: int | None) -> np.ndarray:
    """Return the part of an image or mask (H, W, ...), filled up to a tile, that a record shows."""
    return pixels if tile is None or record.corner is None else cut_tile(pixels, record.corner, tile)
