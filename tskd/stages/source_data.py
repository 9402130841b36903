"""The data set that settings name: a folder, or built-in images that are drawn first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tskd.artifacts import Artifact, Builder, json_sha256
from tskd.data.known_digests import KnownDigests
from tskd.data.layouts import LAYOUTS, Dataset, LayoutOptions, open_dataset
from tskd.data.phantoms import write_phantoms
from tskd.data.sites import take
from tskd.errors import UserError
from tskd.machine.memory import cores
from tskd.recipe.schema import NAMING, PHANTOMS, DataConfig

PHANTOM_DATA = "data"
HASHES = ".hashes.json"
"""Beside the artifacts: digests of data files, for the next start."""


def data_root(store: Builder, data: DataConfig) -> Path:
    """Return the folder of the data set that the settings name; the built-in images are drawn there once."""
    return build_phantoms(store, data).path if data.root == PHANTOMS else Path(data.root).expanduser()


def build_phantoms(store: Builder, data: DataConfig) -> Artifact:
    """Return the built-in images, drawn once."""
    return store.build(
        "phantoms",
        lambda folder: draw_phantoms(data, folder),
        config=data.phantom.model_dump(context=NAMING),
        inputs={},
        seed=data.split_seed,
        version=1,
    )


def draw_phantoms(config: DataConfig, folder: Path) -> dict[str, Any]:
    """Draw the built-in data set into the folder; what an interrupted attempt drew is kept."""
    phantom = config.phantom
    count = phantom.train + phantom.test
    if not (folder / PHANTOM_DATA).exists():  # it appears whole or not at all
        write_phantoms(
            phantom.family,
            folder / PHANTOM_DATA,
            count=count,
            size=phantom.size,
            seed=config.split_seed,
            test=phantom.test,
            scanners=phantom.scanners,
        )
    return {"images": count}


def open_data(config: DataConfig, root: Path) -> Dataset:
    """Find the records of the data set, or of its part, that the settings name, or of phantoms drawn to ``root``."""
    drawn = config.root == PHANTOMS
    options = LayoutOptions.of(config.model_dump())
    dataset = open_dataset(root / PHANTOM_DATA if drawn else root, config.layout, options)
    return take(dataset, config.where) if config.where else dataset


def dataset_digest(dataset: Dataset, known: KnownDigests) -> str:
    """Return a sha256 over everything that is read from a data set: file contents, ids, cases, splits, options.

    Only files that are not ``known`` are read.
    """
    paths = sorted({path for record in dataset.records for path in (record.image, record.mask) if path is not None})
    with ThreadPoolExecutor(cores()) as pool:
        contents = dict(zip(paths, pool.map(partial(_content_sha256, known), paths)))
    known.keep()
    described = [
        (
            *(r.id, r.case, r.split, r.index, r.spacing, r.volume, r.place),
            contents[r.image],
            r.mask and contents[r.mask],
        )
        for r in dataset.records
    ]
    identity = [dataset.layout, dataset.classes, asdict(dataset.options), described]
    if beside := [path for record in dataset.records if (path := LAYOUTS[dataset.layout].beside(record)) is not None]:
        identity.append([_content_sha256(known, path) for path in beside])
        known.keep()
    if dataset.codes:  # a later key: data sets without it keep their digest
        identity.append(dataset.codes)
    return json_sha256(identity)


def _content_sha256(known: KnownDigests, path: Path) -> str:
    try:
        return known.of(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Check that it exists and that you may read it."
        ) from error
