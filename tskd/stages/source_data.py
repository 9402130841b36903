"""The data set that settings name: a folder, or built-in images that are drawn first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tskd.artifacts import Artifact, Builder
from tskd.data.layouts import Dataset, LayoutOptions, open_dataset
from tskd.data.phantoms import write_phantoms
from tskd.data.sites import take
from tskd.recipe.schema import NAMING, PHANTOMS, DataConfig

PHANTOM_DATA = "data"


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
