"""The transfer set: unlabelled images the student learns from, as references into what is stored already."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from tskd.data.prepared import Prepared, open_array, squeeze_image

RECORDS, IMAGES, GATE = "records.jsonl", "images", "gate.json"
QUALITY = "quality.json"
"""What the ``quality`` stage says of synthetic images."""
SAMPLES, SAMPLE_SHEET = "samples.npy", "samples.png"
"""What the ``samples`` stage draws, and the picture that the ``diffusion`` stage ends with."""
Origin = Literal["real", "target", "synthetic", "augmented"]
ORIGINS: tuple[Origin, ...] = ("real", "target", "synthetic", "augmented")
"""In the order of the transfer set."""


@dataclass(frozen=True)
class TransferRecord:
    """One image of the transfer set."""

    id: str
    origin: Origin
    row: int
    """Row in the prepared images (real) or in the file of its origin."""


@dataclass(frozen=True)
class TransferSet:
    """What the ``transfer`` stage wrote, with the prepared data that its real images lie in: these say its size."""

    folder: Path
    prepared: Prepared

    @cached_property
    def records(self) -> tuple[TransferRecord, ...]:
        lines = (self.folder / RECORDS).read_text(encoding="utf-8").splitlines()
        return tuple(TransferRecord(**json.loads(line)) for line in lines)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(record.id for record in self.records)

    @cached_property
    def images(self) -> TransferImages:
        return TransferImages(self, self.records)


class TransferImages:
    """Images of a transfer set or of the data behind it as one array (N, S, S, 3) uint8, read where they lie.

    Images that were made for the student's size are enlarged (or reduced) where the real ones have another.
    """

    def __init__(self, transfer: TransferSet, records: Sequence[TransferRecord]) -> None:
        self.sources = {"real": transfer.prepared.images}
        self.sources |= {
            path.stem: np.load(path, mmap_mode="r") for path in sorted((transfer.folder / IMAGES).glob("*.npy"))
        }
        self.places = [(record.origin, record.row) for record in records]
        self.shape = (len(self.places), *transfer.prepared.images.shape[1:])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        places = [self.places[index] for index in indices]
        return np.stack([squeeze_image(self.sources[origin][row], self.shape[1]) for origin, row in places])


def write_records(folder: Path, records: Iterable[TransferRecord]) -> None:
    """Write the list of a transfer set's images."""
    lines = (json.dumps(asdict(record)) + "\n" for record in records)
    (folder / RECORDS).write_text("".join(lines), encoding="utf-8")


def images_path(folder: Path, origin: Origin) -> Path:
    """Return where a transfer set keeps the images of an origin; real ones stay in the prepared data."""
    return folder / IMAGES / f"{origin}.npy"


def write_images(path: Path, images: Iterable[np.ndarray], *, count: int, size: int) -> None:
    """Write ``count`` images (size, size, 3) uint8 as one array, one at a time: memory does not grow with them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = open_array(path, (count, size, size, 3))
    for row, image in zip(range(count), images, strict=True):
        array[row] = image
    array.flush()


def read_samples(folders: Sequence[Path]) -> np.ndarray:
    """Return the images of ``samples`` artifacts, (N, S, S, 3) uint8."""
    return np.concatenate([np.load(folder / SAMPLES, mmap_mode="r", allow_pickle=False) for folder in folders])


def read_sample(folders: Sequence[Path], number: int) -> np.ndarray:
    """Return one of these images, (S, S, 3) uint8, without reading the others; IndexError where there are fewer."""
    for folder in folders:
        block = np.load(folder / SAMPLES, mmap_mode="r", allow_pickle=False)
        if number < len(block):
            return np.array(block[number])
        number -= len(block)
    raise IndexError(number)
