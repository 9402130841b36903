"""Public: images that belong to no site, prepared so that all may learn from them; labels are not looked at."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tskd.artifacts import Artifact, Builder
from tskd.data.known_digests import KnownDigests
from tskd.data.layouts import Dataset
from tskd.data.prepared import (
    DATASET,
    IMAGES,
    MASKS,
    open_array,
    prepared_record,
    squeeze_image,
    write_prepared_records,
)
from tskd.machine.disk import write_json
from tskd.machine.memory import cores
from tskd.recipe.schema import DataConfig
from tskd.stages.source_data import HASHES, data_root, dataset_digest, open_data

VERSION = 1


def build(store: Builder, data: DataConfig) -> Artifact:
    """Return the images of the settings as a prepared data set whose rows are all ``unlabelled``."""
    dataset = open_data(data, data_root(store, data))
    unlabelled = replace(dataset, records=tuple(replace(one, mask=None, split=None) for one in dataset.records))
    return store.build(
        "public",
        lambda folder: write_public(unlabelled, data.image_size, folder),
        config={"image_size": data.image_size},
        inputs={"data": dataset_digest(unlabelled, KnownDigests(store.root / HASHES))},
        seed=0,
        version=VERSION,
    )


def write_public(dataset: Dataset, side: int, folder: Path) -> dict[str, Any]:
    """Write every image, squeezed to the side, and no mask; UserError names a file that cannot be read."""
    records = dataset.records
    images = open_array(folder / IMAGES, (len(records), side, side, 3))

    def put(row: int) -> tuple[int, ...]:
        image = dataset.read_image(records[row])
        images[row] = squeeze_image(image, side)
        return image.shape

    with ThreadPoolExecutor(cores()) as pool:
        shapes = list(pool.map(put, range(len(records))))
    images.flush()
    np.save(folder / MASKS, np.zeros((0, side, side), np.uint8))
    write_prepared_records(
        folder, [prepared_record(record, "unlabelled", shape) for record, shape in zip(records, shapes, strict=True)]
    )
    write_json(
        folder / DATASET,
        {"name": dataset.name, "layout": dataset.layout, "classes": list(dataset.classes), "image_size": side,
         "window": dataset.options.window, "notes": list(dataset.notes)},
    )  # fmt: skip
    return {"images": len(records)}
