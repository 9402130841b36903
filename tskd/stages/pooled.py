"""Pooled: the prepared images of several sites in one place, which is what a federation does without."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tskd.artifacts import Artifact, Builder
from tskd.data.prepared import (
    DATASET,
    IMAGES,
    MASKS,
    NATIVE,
    PARTS,
    Part,
    Prepared,
    PreparedRecord,
    native_path,
    open_array,
    write_prepared_records,
)
from tskd.machine.disk import write_json

VERSION = 1
JOINED: tuple[Part, ...] = tuple(part for part in PARTS if part != "test")
"""Each site's test images are scored at the site."""
EVERYWHERE = "sites"
"""What the test images of all sites are called together."""


def build(store: Builder, sites: Mapping[str, Artifact], *, tested: bool = False) -> Artifact:
    """Return the training, validation and unlabelled images of prepared data sets as one; ``tested``: the test images
    too."""
    return store.build(
        "pooled",
        lambda folder: join({n: Prepared(artifact.path) for n, artifact in sites.items()}, folder, tested=tested),
        config={"sites": list(sites), **({"tested": True} if tested else {})},
        inputs={f"site {name}": artifact.digest for name, artifact in sites.items()},
        seed=0,
        version=VERSION,
    )


def join(sites: Mapping[str, Prepared], folder: Path, *, tested: bool = False) -> dict[str, Any]:
    """Write the rows of all sites part by part, their ids, cases and volumes named after the site."""
    parts = PARTS if tested else JOINED
    rows = list(_rows(sites, parts))
    first = next(iter(sites.values()))
    side = first.image_size
    labelled = [place for place in rows if place[1].part in ("train", "val")]
    images = open_array(folder / IMAGES, (len(rows), side, side, 3))
    masks = open_array(folder / MASKS, (len(labelled), side, side))
    for number, (name, record, row) in enumerate(rows):
        images[number] = sites[name].images[row]
        if number < len(labelled):
            masks[number] = sites[name].masks[row]
        if record.part == "test":
            _copy_native(sites[name].folder, row, folder, number)
    images.flush()
    masks.flush()
    write_prepared_records(folder, [record for _, record, _ in rows])
    write_json(folder / DATASET, {**first.dataset, "name": EVERYWHERE if tested else "pooled"})
    return {part: int(np.sum([record.part == part for _, record, _ in rows])) for part in parts}


def _copy_native(source: Path, row: int, folder: Path, number: int) -> None:
    (folder / NATIVE).mkdir(exist_ok=True)
    for kind in ("image", "mask"):
        shutil.copyfile(native_path(source, row, kind), native_path(folder, number, kind))


def _rows(sites: Mapping[str, Prepared], parts: Sequence[Part]) -> Iterator[tuple[str, PreparedRecord, int]]:
    """Yield site, record and its row there, in the order of the joined rows."""
    for part in parts:
        for name, prepared in sites.items():
            for row in prepared.rows(part).tolist():
                record = prepared.records[row]
                volume = record.volume and f"{name}/{record.volume}"
                yield name, replace(record, id=f"{name}/{record.id}", case=f"{name}/{record.case}", volume=volume), row
