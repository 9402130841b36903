"""A data set as training sees it: square uint8 arrays read by memory map, and the test images at their own size."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from tskd.artifacts import Artifact, json_sha256
from tskd.data.tiles import Corner
from tskd.machine.disk import naming
from tskd.types import Record

IMAGES, MASKS, RECORDS, DATASET, NATIVE = "images.npy", "masks.npy", "records.jsonl", "dataset.json", "native"
TEST_DIGEST = "test_digest"
"""Metric of what stands for test images that lie elsewhere."""
Part = Literal["train", "val", "unlabelled", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "unlabelled", "test")
"""The order of the rows in the arrays."""
OF_TARGET: tuple[Part, ...] = ("unlabelled", "train", "val")
"""Parts of a target's data that may be looked at without their labels: nothing is selected on its validation part."""


@dataclass(frozen=True)
class PreparedRecord:
    """One image of a prepared data set; its place in the list is its row in the arrays."""

    id: str
    case: str
    part: Part
    height: int
    width: int
    spacing: tuple[float, ...] | None
    """Millimetres along (row, column), and to the next slice where that is known."""
    volume: str | None = None
    """The volume whose slice it is; None: a single image."""
    place: int | None = None
    """Its place in the volume."""
    tile_of: str | None = None
    """The id of the image of which it is a tile; None: it is seen as a whole."""
    corner: Corner | None = None
    """Of the tile: (top, left) as :func:`tskd.data.tiles.cut_tile` counts."""
    content: str | None = None
    """:func:`content_of` the whole image, where the row holds a tile of it."""

    @property
    def image(self) -> str:
        """The id of the image, of which there may be several tiles."""
        return self.tile_of or self.id


@dataclass(frozen=True)
class Prepared:
    """A folder that the ``prepare`` stage wrote. Rows: train, val, unlabelled, test; masks exist for train and val.

    What ``teacher_images`` wrote is one too: the same rows at another size, the test images left out.
    """

    folder: Path

    @cached_property
    def dataset(self) -> dict[str, Any]:
        description: dict[str, Any] = json.loads((self.folder / DATASET).read_text(encoding="utf-8"))
        return description

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.dataset["classes"])

    @cached_property
    def records(self) -> tuple[PreparedRecord, ...]:
        lines = (self.folder / RECORDS).read_text(encoding="utf-8").splitlines()
        return tuple(_parse_record(line) for line in lines)

    @cached_property
    def images(self) -> np.ndarray:
        """(N, S, S, 3) uint8."""
        return np.load(self.folder / IMAGES, mmap_mode="r", allow_pickle=False)

    @cached_property
    def masks(self) -> np.ndarray:
        """(train + val, S, S) uint8 class index."""
        return np.load(self.folder / MASKS, mmap_mode="r", allow_pickle=False)

    @property
    def image_size(self) -> int:
        return int(self.images.shape[1])

    @property
    def tile(self) -> int | None:
        """Side in px of the tiles that larger images are cut into, and answered in; None: all are seen whole."""
        return self.dataset.get("tile")

    def count(self, *parts: Part) -> int:
        """Return the number of images of the parts; the tiles of one are one."""
        return len({record.image for record in self.records if record.part in parts})

    def rows(self, *parts: Part) -> np.ndarray:
        """Return the row numbers of the parts, in order."""
        return np.array([row for row, record in enumerate(self.records) if record.part in parts], dtype=np.int64)

    def unlabelled_images(self, side: int, *parts: Part) -> SomeImages:
        """Return the images of the parts, without labels, at a side."""
        return SomeImages(self.images, self.rows(*parts), side)

    def row_of(self, name: str) -> int:
        """Return the row of a record id; KeyError where there is none."""
        return self._rows[name]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {record.id: row for row, record in enumerate(self.records)}

    def cases(self, *parts: Part) -> set[str]:
        """Return the cases of the parts."""
        return {record.case for record in self.records if record.part in parts}

    def names(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        """Return the record ids of the rows."""
        return tuple(self.records[row].id for row in rows)

    def native_image(self, row: int) -> np.ndarray:
        """Return a test image at its own size, (H, W, 3) uint8."""
        with Image.open(native_path(self.folder, row, "image")) as image:
            return np.asarray(image)

    def native_mask(self, row: int) -> np.ndarray:
        """Return a test mask at its own size, (H, W) uint8 class index."""
        with Image.open(native_path(self.folder, row, "mask")) as mask:
            return np.asarray(mask)


@dataclass(frozen=True)
class SomeImages:
    """Some rows of an array of images (N, S, S, 3) uint8, read where they lie and squeezed to ``side``."""

    images: np.ndarray
    rows: np.ndarray
    side: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), self.side, self.side, 3)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Any) -> np.ndarray:
        return np.stack([squeeze_image(image, self.side) for image in self.images[self.rows[indices]]])


def rows_by_image(records: Sequence[PreparedRecord], rows: Iterable[int]) -> dict[str, list[int]]:
    """Return the rows of each image, of which there may be several tiles, in the order of the first."""
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(records[row].image, []).append(int(row))
    return found


def spaced(rows: Sequence[int] | np.ndarray, most: int) -> np.ndarray:
    """Return at most so many of the rows, evenly spaced from the first to the last."""
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)
    return np.asarray(rows)[np.unique(places)]


def digest_of_test(artifact: Artifact) -> str:
    """Return one sha256 over ids, images and masks of a prepared data set's test part, whichever rows they are.

    Of test images that lie at several sites the artifact that stands for them says it.
    """
    if known := artifact.metrics.get(TEST_DIGEST):
        return str(known)
    prepared, files = Prepared(artifact.path), artifact.manifest["files"]
    kinds: tuple[Literal["image", "mask"], ...] = ("image", "mask")
    lines = [
        [prepared.records[row].id, *(files[native_path(Path(), row, kind).as_posix()] for kind in kinds)]
        for row in prepared.rows("test")
    ]
    return json_sha256(sorted(lines))


def digest_of_source(artifact: Artifact) -> str:
    """Return the digest of the images and masks that a prepared data set was read from."""
    return str(artifact.manifest["inputs"]["data"])


def open_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Return a new uint8 array on disk, to be filled and flushed."""
    with naming(path):
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is said now: it would end the process at a later write
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def write_prepared_records(folder: Path, records: Iterable[PreparedRecord]) -> None:
    """Write the list of a prepared data set's images, in the order of the rows."""
    lines = (json.dumps(_fields(record)) + "\n" for record in records)
    (folder / RECORDS).write_text("".join(lines), encoding="utf-8")


def _fields(record: PreparedRecord) -> dict[str, Any]:
    """Return what is written of a record; of a whole image nothing of tiles."""
    of_tiles = ("tile_of", "corner", "content")
    return {name: value for name, value in asdict(record).items() if value is not None or name not in of_tiles}


ONE_TONE = "one tone"
"""What stands for the content of an image without any."""


def content_of(image: np.ndarray) -> str:
    """Return a digest of the pixels of an image that was squeezed to a square."""
    return hashlib.sha256(image.tobytes()).hexdigest() if image.min() < image.max() else ONE_TONE


def squeeze_image(image: np.ndarray, side: int) -> np.ndarray:
    """Return (side, side, 3) uint8 of an image (H, W, 3) uint8: bilinear, and antialiased where it shrinks."""
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def squeeze_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """Return (side, side) uint8 of a mask (H, W) uint8, by nearest neighbour."""
    return np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))


def native_path(folder: Path, row: int, kind: Literal["image", "mask"]) -> Path:
    """Return where a test image or mask is kept at its own size."""
    return folder / NATIVE / f"{row:06d}_{kind}.png"


def prepared_record(record: Record, part: Part, shape: tuple[int, ...]) -> PreparedRecord:
    """Return what is kept of a record, whose image has the shape (H, W, ...)."""
    return PreparedRecord(record.id, record.case, part, shape[0], shape[1], record.spacing, record.volume, record.place)


def as_tile(record: PreparedRecord, corner: Corner) -> PreparedRecord:
    """Return what is kept of a tile of a record's image."""
    return replace(record, id=f"{record.id}@{corner[0]},{corner[1]}", tile_of=record.id, corner=corner)


def _parse_record(line: str) -> PreparedRecord:
    values = json.loads(line)
    pairs = {name: tuple(values.pop(name)) for name in ("spacing", "corner") if values.get(name)}
    return PreparedRecord(**{"spacing": None, **values, **pairs})
