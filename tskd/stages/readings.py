"""Readings: one pass over the files of a data set, which all splits and label budgets of the same images share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from tskd.console import progress, say, warn
from tskd.data.duplicates import ImageFingerprint, find_pairs, fingerprint_image, settle_duplicates
from tskd.data.grey_levels import LevelUse, describe_losses, record_use
from tskd.data.layouts import Dataset
from tskd.data.layouts.pairs import Oddity, notes_on, oddities, unclear_turn
from tskd.data.png import packed
from tskd.data.prepared import squeeze_image, squeeze_mask
from tskd.errors import UserError
from tskd.machine.disk import naming
from tskd.machine.memory import cores
from tskd.types import UNLABELLED, Record

HELD_BYTES = 256_000_000
"""Of decoded images that may be test images: more than these are decoded again once the split is known."""
SHOWN = 10
"""Of files and pairs that a message names."""


class Readings:
    """Data sets that were read in this process, each once for all that is made of its images (tiles are cut anew).

    Pixels lie on the disk; they and what is held in memory are given back with the object.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, Path, int], Reading | UserError] = {}

    def of(self, digest: str, dataset: Dataset, side: int, folder: Path) -> Reading:
        """Return the data set of that digest as it was read at that side; UserError, each time, where it cannot be."""
        key = (digest, dataset.root, side)
        if key not in self._known:
            try:
                self._known[key] = Reading(dataset, side, folder)
            except UserError as error:  # so many files are not read again for every budget that cannot be had
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, UserError):
            raise found
        return found


@dataclass(frozen=True)
class _Seen:
    """What one pass over a record yields besides its resized pixels."""

    shape: tuple[int, ...]
    fingerprint: ImageFingerprint
    indices: frozenset[int] | None
    """Class indices in its mask, background (0) included; None: unlabelled."""
    oddities: tuple[Oddity, ...]
    grey: LevelUse


class Reading:
    """A data set read once: what every preparation of its images starts from.

    Raises UserError naming every file that cannot be used.
    """

    def __init__(self, dataset: Dataset, side: int, folder: Path) -> None:
        """``side``: of the squares that images become; ``folder``: whose disk holds them until the object is gone."""
        self.dataset, self.side = dataset, side
        count = len(dataset.records)
        self.images, self.masks = _scratch(folder, (count, side, side, 3)), _scratch(folder, (count, side, side))
        self._held = _Held(dataset.records)
        self._files: dict[int, tuple[bytes, bytes]] = {}
        self._room = HELD_BYTES
        self._lock = Lock()
        seen = self._read_all()
        if loss := describe_losses(
            dataset.records, {record.id: one.grey for record, one in zip(dataset.records, seen, strict=True)}
        ):
            warn(" ".join(loss))
        for text in dataset.warnings:
            warn(text)
        self.notes = tell_oddities(dataset.records, [one.oddities for one in seen])
        self.shapes = [one.shape for one in seen]
        fingerprints = {record.id: one.fingerprint for record, one in zip(dataset.records, seen, strict=True)}
        self.pairs = find_pairs(fingerprints, groups={record.id: record.case for record in dataset.records})
        """Images across cases that show the same."""
        self.records = settle_duplicates(dataset.records, self.pairs)
        """The data set's, those of such pairs in one case."""
        self.indices = {r.id: one.indices for r, one in zip(self.records, seen, strict=True) if one.indices is not None}
        """Class indices in each labelled record's mask, background (0) included."""

    def native(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a record's image and, where it has one, mask at their own size."""
        record = self.dataset.records[index]
        if known := self._held.look(index):
            return known
        return self.dataset.read_image(record), None if record.mask is None else self.dataset.read_mask(record)

    def native_files(self, index: int) -> tuple[bytes, bytes]:
        """Return a labelled record's image and mask at their own size, as the bytes of PNG files."""
        if index in self._files:
            return self._files[index]
        record = self.dataset.records[index]
        image, mask = self._held.take(index) or (self.dataset.read_image(record), self.dataset.read_mask(record))
        files = packed(image, quickly=True), packed(mask, quickly=True)
        with self._lock:
            if (size := sum(map(len, files))) <= self._room:
                self._room -= size
                self._files[index] = files
        return files

    def forget_decoded(self) -> None:
        """Give back the decoded images that no test has asked for."""
        self._held.clear()

    def _read_all(self) -> list[_Seen]:
        """Read all records in parallel (decoders release the interpreter lock); name all that fail, not the first."""

        def read(index: int) -> _Seen | str:
            try:
                return self._read(index)
            except UserError as error:
                return str(error)

        seen: list[_Seen] = []
        problems: list[str] = []
        count = len(self.dataset.records)
        with ThreadPoolExecutor(cores()) as pool, progress("prepare: reading", count) as advance:
            for done, answer in enumerate(pool.map(read, range(count)), start=1):
                seen.append(answer) if isinstance(answer, _Seen) else problems.append(answer)
                advance(done)
        if problems := list(dict.fromkeys(problems)):  # a volume says the same in each of its slices
            more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            listed = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
            raise UserError(
                f"{len(problems)} files cannot be used:{listed}{more}\n`tskd check` shows the whole data set."
            )
        return seen

    def _read(self, index: int) -> _Seen:
        dataset, record = self.dataset, self.dataset.records[index]
        image = dataset.read_image(record)
        mask = None if record.mask is None else dataset.read_mask(record)
        self.images[index] = squeeze_image(image, self.side)
        if mask is not None:
            self.masks[index] = squeeze_mask(mask, self.side)
            self._held.put(index, image, mask)
        indices = None if mask is None else frozenset(np.unique(mask).tolist()) - {UNLABELLED}
        grey = record_use(dataset, record, image)
        return _Seen(image.shape, fingerprint_image(image), indices, tuple(oddities(record)), grey)


class _Held:
    """Decoded images that may turn out to be test images, up to ``HELD_BYTES`` of them: so much is decoded once."""

    def __init__(self, records: Sequence[Record]) -> None:
        stated = any(one.split == "test" and one.mask is not None for one in records)
        splits = (None, "test") if stated else (None, "test", "train")
        self._wanted = [one.split in splits for one in records]
        self._images: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = HELD_BYTES
        self._lock = Lock()

    def put(self, index: int, image: np.ndarray, mask: np.ndarray) -> None:
        """Keep a decoded image with its mask where it may be tested and there is room."""
        if not self._wanted[index]:
            return
        with self._lock:
            if (size := image.nbytes + mask.nbytes) <= self._room:
                self._room -= size
                self._images[index] = image, mask

    def look(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what was kept."""
        return self._images.get(index)

    def take(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what was kept, and keep it no longer."""
        return self._images.pop(index, None)

    def clear(self) -> None:
        """Keep nothing any longer."""
        self._images.clear()


def _scratch(folder: Path, shape: tuple[int, ...]) -> np.memmap:
    """Return a uint8 array in a file without a name on the folder's disk: it is gone with the array or the process."""
    with naming(folder), tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is said now: it would end the process at a later write
            os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
        return np.memmap(file, np.uint8, "w+", shape=shape)


def tell_oddities(records: Sequence[Record], found: Sequence[Sequence[Oddity]]) -> tuple[str, ...]:
    """Say and return what was done about odd pairs; what could not be told is warned of, file by file."""
    notes = notes_on(oddity for one in found for oddity in one)
    unclear = [r.mask for r, one in zip(records, found, strict=True) if r.mask and "perhaps turned" in one]
    for fault in map(unclear_turn, unclear[:SHOWN]):
        warn(f"{fault.path}: {fault.message}")
    if len(unclear) > SHOWN:
        warn(f"and {len(unclear) - SHOWN} more masks of which EXIF does not tell; `tskd check` names them all")
    for note in notes:
        say(note)
    return notes
