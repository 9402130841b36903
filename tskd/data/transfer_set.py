"""The transfer set: unlabelled images the student learns from, as references into what is stored already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from tskd.data.prepared import Prepared

RECORDS = "records.jsonl"
Origin = Literal["real", "synthetic", "augmented"]


@dataclass(frozen=True)
class TransferRecord:
    """One image of the transfer set."""

    id: str
    origin: Origin
    row: int
    """Row in the prepared images (real) or in the file of its origin."""


@dataclass(frozen=True)
class TransferSet:
    """What the ``transfer`` stage wrote, with the prepared data that its real images lie in."""

    folder: Path
    prepared: Prepared

    @cached_property
    def records(self) -> tuple[TransferRecord, ...]:
        lines = (self.folder / RECORDS).read_text(encoding="utf-8").splitlines()
        return tuple(TransferRecord(**json.loads(line)) for line in lines)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(record.id for record in self.records)

    @property
    def images(self) -> TransferImages:
        return TransferImages(self)


class TransferImages:
    """The images of a transfer set as one array (N, S, S, 3) uint8, read where they lie."""

    def __init__(self, transfer: TransferSet) -> None:
        self.sources = {"real": transfer.prepared.images}
        self.sources |= {
            path.stem: np.load(path, mmap_mode="r") for path in sorted((transfer.folder / "images").glob("*.npy"))
        }
        self.places = [(record.origin, record.row) for record in transfer.records]
        self.shape = (len(self.places), *transfer.prepared.images.shape[1:])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        places = [self.places[index] for index in indices]
        return np.stack([self.sources[origin][row] for origin, row in places])
