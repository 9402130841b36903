"""Pooled: the prepared images of several sites in one place, which is what a federation does without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tskd.artifacts import Artifact, Builder, write_json
from tskd.data.prepared import (
    DATASET,
    IMAGES,
    MASKS,
    PARTS,
    Part,
    Prepared,
    PreparedRecord,
    open_array,
    write_prepared_records,
)

VERSION = 1
JOINED: tuple[Part, ...] = tuple(part for part in PARTS if part != "test")
"""Each site's test images are scored at the site."""


def build(store: Builder, sites: Mapping[str, Artifact]) -> Artifact:
    """Return the training, validation and unlabelled images of prepared data sets as one."""
    return store.build(
        "pooled",
        lambda folder: join({name: Prepared(artifact.path) for name, artifact in sites.items()}, folder),
        config={"sites": list(sites)},
        inputs={f"site {name}": artifact.digest for name, artifact in sites.items()},
        seed=0,
        version=VERSION,
    )


def join(sites: Mapping[str, Prepared], folder: Path) -> dict[str, Any]:
    """Write the rows of all sites part by part, their ids, cases and volumes named after the site."""
    rows = list(_rows(sites))
    first = next(iter(sites.values()))
    side = first.image_size
    labelled = [place for place in rows if place[1].part in ("train", "val")]
    images = open_array(folder / IMAGES, (len(rows), side, side, 3))
    masks = open_array(folder / MASKS, (len(labelled), side, side))
    for number, (name, _, row) in enumerate(rows):
        images[number] = sites[name].images[row]
        if number < len(labelled):
            masks[number] = sites[name].masks[row]
    images.flush()
    masks.flush()
    write_prepared_records(folder, [record for _, record, _ in rows])
    write_json(folder / DATASET, {**first.dataset, "name": "pooled"})
    return {part: int(np.sum([record.part == part for _, record, _ in rows])) for part in JOINED}


def _rows(sites: Mapping[str, Prepared]) -> Iterator[tuple[str, PreparedRecord, int]]:
    """Yield site, record and its row there, in the order of the joined rows."""
    for part in JOINED:
        for name, prepared in sites.items():
            for row in prepared.rows(part).tolist():
                record = prepared.records[row]
                volume = record.volume and f"{name}/{record.volume}"
                yield name, replace(record, id=f"{name}/{record.id}", case=f"{name}/{record.case}", volume=volume), row
