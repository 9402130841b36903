"""Prepare: read every file once, split by case, and keep what training and evaluation need in plain arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from tskd.artifacts import Artifact, Builder, canonical_json, write_json
from tskd.console import progress, say, warn
from tskd.data.duplicates import DuplicatePair, ImageFingerprint, find_pairs, fingerprint_image, settle_duplicates
from tskd.data.grey_levels import LevelUse, describe_losses, record_use
from tskd.data.known_digests import KnownDigests
from tskd.data.label_sense import doubts
from tskd.data.layouts import Dataset
from tskd.data.layouts.pairs import Oddity, notes_on, oddities, unclear_turn
from tskd.data.prepared import (
    DATASET,
    IMAGES,
    MASKS,
    NATIVE,
    PARTS,
    native_path,
    open_array,
    prepared_record,
    squeeze_image,
    squeeze_mask,
    write_prepared_records,
)
from tskd.data.splits import Split, make_split, save_split
from tskd.errors import UserError
from tskd.recipe.schema import PHANTOMS, DataConfig, SourceConfig
from tskd.stages.source_data import data_root, open_data
from tskd.types import UNLABELLED, Record

VERSION = 4
HASHES = ".hashes.json"
"""Beside the artifacts: digests of data files, for the next start."""
HELD_BYTES = 256_000_000
"""Of decoded images that may be test images: more than these are decoded again once the split is known."""
_SHOWN = 10


@dataclass(frozen=True)
class _Read:
    """What one pass over a record yields besides its resized pixels."""

    shape: tuple[int, ...]
    fingerprint: ImageFingerprint
    indices: frozenset[int] | None
    """Class indices in its mask, background (0) included; None: unlabelled."""
    oddities: tuple[Oddity, ...]
    grey: LevelUse


def build(store: Builder, data: DataConfig) -> Artifact:
    """Return the data set of the settings, read once; built-in images are drawn first."""
    dataset = open_data(data, data_root(store, data))
    return store.build(
        "prepare",
        lambda folder: prepare(data, dataset, folder),
        config=data.model_dump(exclude={"root", "phantom", "layout"}),
        inputs={"data": dataset_digest(dataset, KnownDigests(store.root / HASHES))},
        seed=data.split_seed,
        version=VERSION,
    )


def tested_data(data: DataConfig, other: SourceConfig) -> DataConfig:
    """Return the settings under which another data set is tested: all labels are known, the split is drawn alike.

    So training and test of one data set never share a case, whichever of its images it is tested on. Duplicates
    across its own parts do no harm where nothing trains on it.
    """
    free = {"labels": None, "label_cases": None, "budget_seed": None, "allow_duplicates": True}
    return DataConfig(**{**data.model_dump(), **free, **other.model_dump()})


def same_images(data: DataConfig, other: SourceConfig) -> bool:
    """Tell whether two settings read the same files; phantoms of one family do, however many are drawn."""
    if PHANTOMS in (data.root, other.root):
        return data.root == other.root and data.phantom.family == other.phantom.family
    return Path(data.root).expanduser().resolve() == Path(other.root).expanduser().resolve()


def prepare(config: DataConfig, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Write arrays, split and native test images of a data set.

    Raises UserError naming every file that cannot be used, and where an identical image is in training and test.
    """
    staged = _Staging(folder, len(dataset.records), config.image_size)
    may_be_tested = Held(dataset.records)
    reads = _read_all(dataset, staged, may_be_tested)
    uses = {record.id: read.grey for record, read in zip(dataset.records, reads, strict=True)}
    if loss := describe_losses(dataset.records, uses):
        warn(" ".join(loss))
    records, pairs = _settle_duplicates(dataset.records, reads)
    found = {record.id: read.indices for record, read in zip(records, reads, strict=True) if read.indices is not None}
    split = make_split(
        records,
        presence={id_: indices - {0} for id_, indices in found.items()},
        labels=config.labels,
        label_cases=config.label_cases,
        seed=config.split_seed,
        budget_seed=config.budget_seed,
        val_share=config.val_share,
        test_share=config.test_share,
    )
    _refuse_leaks(pairs, split, config)
    _refuse_senseless(found, dataset.classes, split, config)
    save_split(split, folder / "split.json")
    order = _row_order(records, split)
    staged.reorder([index for index, _ in order], labelled=len(split.train) + len(split.val))
    write_prepared_records(folder, [prepared_record(records[index], part, reads[index].shape) for index, part in order])
    tested = [(row, index) for row, (index, part) in enumerate(order) if part == "test"]
    _keep_native(dataset, tested, may_be_tested, folder)
    notes = _notes_on(dataset.records, reads)
    write_json(folder / DATASET, _describe(dataset, config, notes))
    return {"cases": len({record.case for record in records}), **{part: len(getattr(split, part)) for part in PARTS}}


def dataset_digest(dataset: Dataset, known: KnownDigests) -> str:
    """Return a sha256 over everything that is read from a data set: file contents, ids, cases, splits, options.

    Only files that are not ``known`` are read.
    """
    paths = sorted({path for record in dataset.records for path in (record.image, record.mask) if path is not None})
    with ThreadPoolExecutor() as pool:
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
    if dataset.codes:  # a later key: data sets without it keep their digest
        identity.append(dataset.codes)
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def _content_sha256(known: KnownDigests, path: Path) -> str:
    try:
        return known.of(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Check that it exists and that you may read it."
        ) from error


class _Staging:
    """Resized pixels on disk, in the order of reading first and in the order of rows in the end."""

    def __init__(self, folder: Path, count: int, size: int) -> None:
        self.folder, self.size = folder, size
        self.paths = (folder / ".images.npy", folder / ".masks.npy")
        self.images = open_array(self.paths[0], (count, size, size, 3))
        self.masks = open_array(self.paths[1], (count, size, size))

    def put(self, index: int, image: np.ndarray, mask: np.ndarray | None) -> None:
        self.images[index] = squeeze_image(image, self.size)
        if mask is not None:
            self.masks[index] = squeeze_mask(mask, self.size)

    def reorder(self, order: Sequence[int], *, labelled: int) -> None:
        images = open_array(self.folder / IMAGES, (len(order), self.size, self.size, 3))
        masks = open_array(self.folder / MASKS, (labelled, self.size, self.size))
        for row, index in enumerate(order):
            images[row] = self.images[index]
            if row < labelled:
                masks[row] = self.masks[index]
        images.flush()
        masks.flush()
        for path in self.paths:
            path.unlink()


class Held:
    """Decoded images that may turn out to be test images, up to ``HELD_BYTES`` of them: no file is decoded twice."""

    def __init__(self, records: Sequence[Record]) -> None:
        stated = any(one.split == "test" and one.mask is not None for one in records)
        splits = (None, "test") if stated else (None, "test", "train")
        self._wanted = [one.mask is not None and one.split in splits for one in records]
        self._held: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._left = HELD_BYTES
        self._lock = Lock()

    def put(self, index: int, image: np.ndarray, mask: np.ndarray | None) -> None:
        """Keep a decoded image with its mask where it may be tested and there is room."""
        if mask is None or not self._wanted[index]:
            return
        with self._lock:
            self._left -= image.nbytes + mask.nbytes
            if self._left >= 0:
                self._held[index] = image, mask

    def get(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what was kept, and keep it no longer."""
        return self._held.pop(index, None)


def _read_all(dataset: Dataset, staged: _Staging, held: Held) -> list[_Read]:
    """Read all records in parallel (decoders release the interpreter lock); name all that fail, not only the first."""

    def read(index: int) -> _Read | str:
        try:
            return _read_one(dataset, index, staged, held)
        except UserError as error:
            return str(error)

    reads: list[_Read] = []
    problems: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("prepare: reading", len(dataset.records)) as advance:
        for done, answer in enumerate(pool.map(read, range(len(dataset.records))), start=1):
            reads.append(answer) if isinstance(answer, _Read) else problems.append(answer)
            advance(done)
    if problems := list(dict.fromkeys(problems)):  # a volume says the same in each of its slices
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        raise UserError(f"{len(problems)} files cannot be used:{listed}{more}\n`tskd check` shows the whole data set.")
    return reads


def _read_one(dataset: Dataset, index: int, staged: _Staging, held: Held) -> _Read:
    record = dataset.records[index]
    image = dataset.read_image(record)
    mask = None if record.mask is None else dataset.read_mask(record)
    staged.put(index, image, mask)
    held.put(index, image, mask)
    indices = None if mask is None else frozenset(np.unique(mask).tolist()) - {UNLABELLED}
    grey = record_use(dataset, record, image)
    return _Read(image.shape, fingerprint_image(image), indices, tuple(oddities(record)), grey)


def _settle_duplicates(
    records: Sequence[Record], reads: Sequence[_Read]
) -> tuple[tuple[Record, ...], list[DuplicatePair]]:
    """Make one case of images that show the same; return the pairs across cases."""
    fingerprints = {record.id: read.fingerprint for record, read in zip(records, reads, strict=True)}
    pairs = find_pairs(fingerprints, groups={record.id: record.case for record in records})
    return settle_duplicates(records, pairs), pairs


def _refuse_leaks(pairs: Sequence[DuplicatePair], split: Split, config: DataConfig) -> None:
    sides: Mapping[str, str] = split.sides()
    across = [p for p in pairs if {"train", "val"} & {sides.get(p.first), sides.get(p.second)} and
              "test" in {sides.get(p.first), sides.get(p.second)}]  # fmt: skip
    exact = [pair for pair in across if pair.exact]
    if exact and not config.allow_duplicates:
        listed = "".join(f"\n  {pair.first} = {pair.second}" for pair in exact[:_SHOWN])
        raise UserError(
            f"{len(exact)} images are in both training and test, so the test scores would be too good:{listed}\n"
            "Take one of each pair out, or accept it with --set data.allow_duplicates=true"
        )
    if near := len(across) - len(exact):
        warn(f"{near} pairs of nearly identical images lie across training and test; `tskd check` names them")


def _refuse_senseless(
    found: Mapping[str, frozenset[int]], classes: Sequence[str], split: Split, config: DataConfig
) -> None:
    """Warn of labels that say nothing; raise UserError where nothing can be learned, other than by a small budget."""
    budget = config.labels is not None or config.label_cases is not None
    for doubt in doubts(found, classes, split.sides()):
        if doubt.severity == "error" and not (budget and "training" in doubt.message):
            raise UserError(f"{config.root}: {doubt}")
        warn(str(doubt))


def _notes_on(records: Sequence[Record], reads: Sequence[_Read]) -> tuple[str, ...]:
    """Return what was done about odd pairs; what could not be told is warned of, file by file."""
    notes = notes_on(oddity for read in reads for oddity in read.oddities)
    unclear = [r.mask for r, read in zip(records, reads, strict=True) if r.mask and "perhaps turned" in read.oddities]
    for fault in map(unclear_turn, unclear[:_SHOWN]):
        warn(f"{fault.path}: {fault.message}")
    if len(unclear) > _SHOWN:
        warn(f"and {len(unclear) - _SHOWN} more masks of which EXIF does not tell; `tskd check` names them all")
    for note in notes:
        say(note)
    return notes


def _row_order(records: Sequence[Record], split: Split) -> list[tuple[int, Any]]:
    index_of = {record.id: index for index, record in enumerate(records)}
    return [(index_of[name], part) for part in PARTS for name in getattr(split, part)]


def _keep_native(dataset: Dataset, rows: Sequence[tuple[int, int]], held: Held, folder: Path) -> None:
    (folder / NATIVE).mkdir(exist_ok=True)

    def keep(place: tuple[int, int]) -> None:
        row, index = place
        image, mask = held.get(index) or _decode(dataset, dataset.records[index])
        Image.fromarray(image).save(native_path(folder, row, "image"), compress_level=1)
        Image.fromarray(mask).save(native_path(folder, row, "mask"), compress_level=1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(keep, rows))


def _decode(dataset: Dataset, record: Record) -> tuple[np.ndarray, np.ndarray]:
    return dataset.read_image(record), dataset.read_mask(record)


def _describe(dataset: Dataset, config: DataConfig, notes: Sequence[str]) -> dict[str, Any]:
    codes = {name: code._asdict() for name, code in dataset.codes.items()}
    return {
        "name": dataset.name,
        "layout": dataset.layout,
        "classes": list(dataset.classes),
        "image_size": config.image_size,
        "window": dataset.options.window,
        "notes": [*dataset.notes, *notes],
        **({"codes": codes} if codes else {}),
    }
