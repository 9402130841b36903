"""Prepare: split by case what was read, and keep what training and evaluation need in plain arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tskd.artifacts import Artifact, Builder
from tskd.console import counted, progress, warn
from tskd.data.duplicates import DuplicatePair
from tskd.data.known_digests import KnownDigests
from tskd.data.label_sense import doubts
from tskd.data.layouts import Dataset
from tskd.data.prepared import (
    DATASET,
    IMAGES,
    MASKS,
    NATIVE,
    PARTS,
    Part,
    PreparedRecord,
    as_tile,
    content_of,
    native_path,
    open_array,
    prepared_record,
    spaced,
    squeeze_image,
    squeeze_mask,
    write_prepared_records,
)
from tskd.data.splits import Split, make_split, save_split
from tskd.data.tiles import MOST_TILES, Corner, cut_tile, fill_up, fits, middle_corner, tile_corners
from tskd.errors import UserError
from tskd.machine.disk import require_room, write_json
from tskd.machine.memory import cores
from tskd.recipe.schema import NAMING, PHANTOMS, DataConfig, SourceConfig
from tskd.stages.readings import SHOWN, Reading, Readings
from tskd.stages.source_data import HASHES, data_root, dataset_digest, open_data
from tskd.types import UNLABELLED

VERSION = 5
_OF_TILES = {"tiles": 2}
"""In the names of data sets that are cut alone: how tiles are chosen and scored."""


def build(store: Builder, data: DataConfig, readings: Readings | None = None) -> Artifact:
    """Return the data set of the settings, read once; built-in images are drawn first.

    ``readings``: of other settings before, which may have read the same images already.
    """
    dataset = open_data(data, data_root(store, data))
    digest = dataset_digest(dataset, KnownDigests(store.root / HASHES))

    def make(folder: Path) -> dict[str, Any]:
        return prepare(data, (readings or Readings()).of(digest, dataset, data.image_size, folder), folder)

    return store.build(
        "prepare",
        make,
        config={
            **data.model_dump(exclude={"root", "phantom", "layout", "where"}, context=NAMING),
            **({} if data.tile is None else _OF_TILES),
        },
        inputs={"data": digest},
        seed=data.split_seed,
        version=VERSION,
    )


_READ_ALIKE = ("layout", "structure", "sequence")
"""How a folder is read, wherever it is read."""
_DEFAULT = SourceConfig().model_dump()


def tested_data(data: DataConfig, other: SourceConfig) -> DataConfig:
    """Return the settings under which another data set is tested: all labels are known, the split is drawn alike.

    So training and test of one data set share no case where both take all of its images; where either takes a part
    (``where``), the parts are split apart, and what they share is refused. Duplicates across its own parts do no harm
    where nothing trains on it.
    """
    free = {"labels": None, "label_cases": None, "budget_seed": None, "allow_duplicates": True}
    stated = other.model_dump()
    as_trained = {"axis": data.axis, "window": stated["window"] or data.window}  # networks see one plane, and one scale
    if same_images(data, other):
        as_trained |= {name: getattr(data, name) for name in _READ_ALIKE if stated[name] == _DEFAULT[name]}
    return DataConfig(**{**data.model_dump(), **free, **stated, **as_trained})


def build_target(store: Builder, data: DataConfig, other: SourceConfig, readings: Readings | None = None) -> Artifact:
    """Return the prepared data of a site where nothing but images is learned from; only its test images are kept apart.

    A data set without any label has none, and all of its images may be learned from.
    """
    config = tested_data(data, other)
    dataset = open_data(config, data_root(store, config))
    if any(record.mask is not None for record in dataset.records):
        return build(store, config, readings)
    digest = dataset_digest(dataset, KnownDigests(store.root / HASHES))

    def make(folder: Path) -> dict[str, Any]:
        reading = (readings or Readings()).of(digest, dataset, config.image_size, folder)
        everything = Split((), (), tuple(sorted(record.id for record in dataset.records)), ())
        return write_prepared(config, reading, everything, folder)

    return store.build(
        "prepare",
        make,
        config={
            "image_size": config.image_size,
            "labelled": False,
            **({} if config.tile is None else {"tile": config.tile, **_OF_TILES}),
        },
        inputs={"data": digest},
        seed=config.split_seed,
        version=VERSION,
    )


def same_images(data: SourceConfig, other: SourceConfig) -> bool:
    """Tell whether two settings read the same files; phantoms of one family do, however many are drawn."""
    if PHANTOMS in (data.root, other.root):
        return data.root == other.root and data.phantom.family == other.phantom.family
    return Path(data.root).expanduser().resolve() == Path(other.root).expanduser().resolve()


def prepare(config: DataConfig, reading: Reading, folder: Path) -> dict[str, Any]:
    """Write arrays, split and native test images of a data set that was read.

    Raises UserError where an identical image is in training and test, and where there is nothing to learn.
    """
    records = reading.records
    split = make_split(
        records,
        presence={id_: indices - {0} for id_, indices in reading.indices.items()},
        labels=config.labels,
        label_cases=config.label_cases,
        seed=config.split_seed,
        budget_seed=config.budget_seed,
        val_share=config.val_share,
        test_share=config.test_share,
    )
    _refuse_leaks(reading.pairs, split, config)
    _refuse_senseless(reading.indices, reading.dataset.classes, split, config)
    return write_prepared(config, reading, split, folder)


def write_prepared(config: DataConfig, reading: Reading, split: Split, folder: Path) -> dict[str, Any]:
    """Write what was read, part by part."""
    records = reading.records
    save_split(split, folder / "split.json")
    rows = _without_lost_labels(list(_rows(reading, split, config.tile)), reading)
    _require_room_for_tiles(config, rows, folder)
    _write_rows(reading, rows, config.tile, folder)
    write_prepared_records(folder, (_record_of(row, reading) for row in rows))
    _keep_native(reading, [(place, row.record) for place, row in enumerate(rows) if row.part == "test"], folder)
    write_json(folder / DATASET, _describe(reading.dataset, config, reading.notes))
    images: dict[str, int] = {part: len({row.record for row in rows if row.part == part}) for part in PARTS}
    return {"cases": len({record.case for record in records}), **images}


def _refuse_leaks(pairs: Sequence[DuplicatePair], split: Split, config: DataConfig) -> None:
    sides: Mapping[str, str] = split.sides()
    across = [p for p in pairs if {"train", "val"} & {sides.get(p.first), sides.get(p.second)} and
              "test" in {sides.get(p.first), sides.get(p.second)}]  # fmt: skip
    exact = [pair for pair in across if pair.exact]
    if exact and not config.allow_duplicates:
        listed = "".join(f"\n  {pair.first} = {pair.second}" for pair in exact[:SHOWN])
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


def _require_room_for_tiles(config: DataConfig, rows: Sequence[_Row], folder: Path) -> None:
    """Raise RunFailed where the disk has too little room for tiles; warn where there are none, or enlarged ones."""
    if config.tile is None:
        return
    needed = len(rows) * 4 * config.image_size**2
    require_room(folder, needed, what=f"{len(rows)} tiles", remedy=f"raise data.tile ({config.tile} px)")
    if not any(row.corner for row in rows):
        warn(
            f"no image is larger than data.tile={config.tile}: all are seen as a whole, and only larger ones that the "
            "model answers later will be cut"
        )
    elif config.tile < config.image_size:
        warn(f"tiles of {config.tile} px are enlarged to {config.image_size} px, which makes nothing sharper")


class _Row(NamedTuple):
    """What a row of the arrays holds."""

    record: int
    """Its place in the data set."""
    part: Part
    corner: Corner | None
    """Of its tile; None: the whole image."""


def _rows(reading: Reading, split: Split, tile: int | None) -> Iterator[_Row]:
    """Yield the rows in their order: images, and tiles of the larger ones where there is a side for tiles.

    Of images with labels all tiles with a labelled pixel are there, those that train overlapping by half; of each
    without labels so many, evenly spaced; of test images, which are scored as a whole, the one in the middle.
    """
    index_of = {record.id: index for index, record in enumerate(reading.records)}
    for part in PARTS:
        for index in (index_of[name] for name in getattr(split, part)):
            shape = reading.shapes[index]
            if tile is None or fits(shape, tile):
                yield _Row(index, part, None)
                continue
            corners = list(tile_corners(shape, tile))
            if part == "test":
                corners = [middle_corner(shape, tile)]
            elif part == "val":
                corners = list(tile_corners(shape, tile, overlap=0))
            elif part == "unlabelled":
                corners = [corners[place] for place in spaced(range(len(corners)), MOST_TILES)]
            if part in ("train", "val"):
                corners = _with_labels(reading, index, corners, tile)
            yield from (_Row(index, part, corner) for corner in corners)


def _without_lost_labels(rows: Sequence[_Row], reading: Reading) -> list[_Row]:
    """Return the rows but for whole images whose few labelled pixels are all gone at the size that networks see.

    Raises UserError where none is left to train on.
    """
    lost = {
        row: None
        for row in rows
        if row.part in ("train", "val") and row.corner is None and (reading.masks[row.record] == UNLABELLED).all()
    }
    if not lost:
        return list(rows)
    first = reading.records[next(iter(lost)).record].id
    told = f"no labelled pixel of {counted(len(lost), 'image')} (first: {first}) is left at {reading.side} px"
    kept = [row for row in rows if row not in lost]
    if not any(row.part == "train" for row in kept):
        raise UserError(f"{told}, and no other image trains. Label more of each image, or raise data.image_size.")
    unchosen = any(row.part == "val" for row in rows) and not any(row.part == "val" for row in kept)
    more = ", and no weights are chosen: nothing is left to validate on" if unchosen else ""
    warn(f"{told}: nothing is learned from them{more}. Label more of each, or raise data.image_size")
    return kept


def _with_labels(reading: Reading, index: int, corners: list[Corner], tile: int) -> list[Corner]:
    """Return the tiles that show a labelled pixel where the networks see them: nothing is learned from others."""
    if not (reading.masks[index] == UNLABELLED).any():
        return corners
    _, mask = reading.native(index)
    assert mask is not None
    mask, _ = fill_up(mask, tile, UNLABELLED)
    shown = ((corner, squeeze_mask(cut_tile(mask, corner, tile), reading.side)) for corner in corners)
    return [corner for corner, part in shown if (part != UNLABELLED).any()]


def _record_of(row: _Row, reading: Reading) -> PreparedRecord:
    """Return what is kept of a row; a test image is one although its row shows a tile of it."""
    record = prepared_record(reading.records[row.record], row.part, reading.shapes[row.record])
    if row.corner is None:
        return record
    known = replace(record, content=content_of(reading.images[row.record]))
    return known if row.part == "test" else as_tile(known, row.corner)


def _write_rows(reading: Reading, rows: Sequence[_Row], tile: int | None, folder: Path) -> None:
    side, labelled = reading.side, sum(row.part in ("train", "val") for row in rows)
    images = open_array(folder / IMAGES, (len(rows), side, side, 3))
    masks = open_array(folder / MASKS, (labelled, side, side))
    cut: dict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if row.corner is not None:
            cut[row.record].append(place)
            continue
        images[place] = reading.images[row.record]
        if place < labelled:
            masks[place] = reading.masks[row.record]

    def write_tiles(index: int) -> None:
        image, mask = reading.native(index)
        assert tile is not None
        image, mask = fill_up(image, tile)[0], None if mask is None else fill_up(mask, tile, UNLABELLED)[0]
        for place in cut[index]:
            corner = rows[place].corner
            assert corner is not None
            images[place] = squeeze_image(cut_tile(image, corner, tile), side)
            if place < labelled and mask is not None:
                masks[place] = squeeze_mask(cut_tile(mask, corner, tile), side)

    if cut:
        with ThreadPoolExecutor(cores()) as pool, progress("prepare: tiles", len(cut)) as advance:
            for done, _ in enumerate(pool.map(write_tiles, cut), start=1):
                advance(done)
    images.flush()
    masks.flush()


def _keep_native(reading: Reading, rows: Sequence[tuple[int, int]], folder: Path) -> None:
    (folder / NATIVE).mkdir(exist_ok=True)

    def keep(place: tuple[int, int]) -> None:
        row, index = place
        image, mask = reading.native_files(index)
        native_path(folder, row, "image").write_bytes(image)
        native_path(folder, row, "mask").write_bytes(mask)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(keep, rows))
    reading.forget_decoded()


def _describe(dataset: Dataset, config: DataConfig, notes: Sequence[str]) -> dict[str, Any]:
    codes = {name: code._asdict() for name, code in dataset.codes.items()}
    return {
        "name": dataset.name,
        "layout": dataset.layout,
        "classes": list(dataset.classes),
        "image_size": config.image_size,
        **({} if config.tile is None else {"tile": config.tile}),
        "window": dataset.options.window,
        "notes": [*dataset.notes, *notes],
        **({"codes": codes} if codes else {}),
    }
