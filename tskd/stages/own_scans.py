"""Own scans: score a shipped model on labelled images of whoever received it, by onnxruntime alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from tskd.console import Advance, counted, progress, warn
from tskd.data.duplicates import ImageFingerprint, find_pairs, fingerprint_image, settle_duplicates
from tskd.data.grey_levels import LevelUse, describe_losses, record_use
from tskd.data.layouts import LAYOUTS, Dataset, LayoutOptions, survey
from tskd.data.layouts.base import class_names, refuse_faults
from tskd.data.layouts.dicom import DICOM
from tskd.data.layouts.pairs import Oddity, oddities
from tskd.data.png import packed, unpacked
from tskd.data.prepared import Part, PreparedRecord, prepared_record
from tskd.data.reading import MAX_PIXELS
from tskd.data.sites import take
from tskd.deploy.bundle import Bundle
from tskd.deploy.looking import Room
from tskd.deploy.tiles import ask_by_size
from tskd.errors import UserError, require_folder, until_terminated
from tskd.machine.disk import naming, write_json
from tskd.machine.memory import cores
from tskd.metrics.intervals import interval_text
from tskd.metrics.segmentation import NOTHING_TO_FIND
from tskd.stages.evaluation_files import (
    CASES,
    OVERLAYS,
    PREDICTIONS,
    SUMMARY,
    draw_overlays,
    empty_truths,
    prediction_path,
    write_cases,
)
from tskd.stages.readings import SHOWN, tell_oddities
from tskd.stages.scoring import Scoring, Tally, summarise_levels
from tskd.types import Record

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
TITLE = "this model"
_OURS = frozenset({CASES, SUMMARY, PREDICTIONS, OVERLAYS})
"""What ``out`` gets."""


@dataclass(frozen=True)
class Answered:
    """Labelled images that the model has answered, as :class:`Scoring` takes a test set; all rows are of the test."""

    dataset: Dataset
    sources: tuple[Record, ...]
    """Of each row."""
    records: tuple[PreparedRecord, ...]
    kept: tuple[tuple[bytes, bytes], ...]
    """Mask and answer of each row as PNG files: hundredths of the arrays."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the foreground classes."""
        return self.dataset.classes

    def rows(self, *_: Part) -> np.ndarray:
        """Return all rows."""
        return np.arange(len(self.records))

    def native_image(self, row: int) -> np.ndarray:
        """Return an image, (H, W, 3) uint8, read again from its file."""
        return self.dataset.read_image(self.sources[row])

    def native_mask(self, row: int) -> np.ndarray:
        """Return a mask, (H, W) uint8."""
        return unpacked(self.kept[row][0])

    def answer(self, row: int) -> np.ndarray:
        """Return the model's class indices, (H, W) uint8."""
        return unpacked(self.kept[row][1])


@dataclass(frozen=True)
class ScoreOptions:
    """Which images are scored, how they are read and how the model answers them."""

    layout: str = "auto"
    reading: LayoutOptions = field(default_factory=LayoutOptions)
    """Window and axis are the model's, whatever is said here."""
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values of columns of ``split.csv``; images with others are left out."""
    tile: int | None = None
    """As in prediction: side in px of the tiles in which larger images are answered; None: as trained, 0: whole."""
    overlays: int = 12
    overwrite: bool = False


@until_terminated()
def score_scans(bundle: Bundle, root: Path, out: Path, options: ScoreOptions | None = None) -> dict[str, Any]:
    """Answer and score the labelled images of a data folder; return the summary.

    Images are read as prediction reads them. Scores, their intervals and the policy for empty masks are those of a
    run's test (volumes as volumes). ``out`` gets ``cases.csv``, ``summary.json``, ``predictions/`` (class indices, a
    PNG an image in the order of ``cases.csv``) and ``overlays/`` of the worst, median and best. ``failures`` of the
    summary are the files that could not be read. Nothing tells whether the model has learned from these images: that
    is for the caller to know. Raises UserError where nothing is labelled or readable, the classes are not the model's,
    or ``out`` holds something and ``overwrite`` is not set.
    """
    options = options or ScoreOptions()
    _require_free(out, options.overwrite)
    bundle.refuse_inside(out)
    dataset = _open(bundle, root, options)
    _refuse_among(dataset, out)
    with _settled_in(out) as folder:
        answered, remarks, failures = _answer_all(bundle, dataset, bundle.tile_for(options.tile))
        return _write(answered, bundle, folder, remarks, failures, options.overlays)


def _require_free(out: Path, overwrite: bool) -> None:
    require_folder(out)
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.exists() else set()
    if others := sorted(there - _OURS):
        raise UserError(f"{out} holds {others[0]}, which is none of the scores. Choose another --out.")
    if there and not overwrite:
        raise UserError(f"{out} holds scores already. Add --overwrite to replace them, or choose another --out.")


def _refuse_among(dataset: Dataset, out: Path) -> None:
    """Raise UserError where results would lie among the images or masks, and be taken for some of them."""
    place = out.resolve()
    folders = {path.parent for record in dataset.records for path in (record.image, record.mask) if path is not None}
    for folder in folders:
        if folder.resolve() != dataset.root.resolve() and place.is_relative_to(folder.resolve()):
            raise UserError(f"{out} lies among the images or masks of {dataset.root}. Choose another --out.")


@contextmanager
def _settled_in(out: Path) -> Iterator[Path]:
    """Yield an empty folder whose content takes the place of earlier scores in ``out`` where the block ends well."""
    is_new = not out.exists()
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
        partial = out / f".new.{os.getpid()}"
        partial.mkdir()
    try:
        with naming(out):
            yield partial
        new = {one.name: one for one in partial.iterdir()}
        for name in _OURS:
            place = out / name
            if place.is_dir():
                shutil.rmtree(place)
            if name in new:
                new[name].replace(place)  # a table is the old one or the new one, never missing
            else:
                place.unlink(missing_ok=True)
        is_new = False
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new:
            out.rmdir()


def _open(bundle: Bundle, root: Path, options: ScoreOptions) -> Dataset:
    """Return the data set, read as prediction would; UserError where its classes are others or nothing is labelled.

    Classes that nobody has named are taken for the model's, in the order of their numbers; segments of DICOM by name.
    """
    window = None if bundle.window is None else (bundle.window.low, bundle.window.high)
    wanted = replace(options.reading, window=window, axis=bundle.axis)
    dataset, faults = survey(root, options.layout, wanted)
    if wanted.classes is None and _may_be(bundle.classes, dataset):
        dataset, faults = survey(root, options.layout, replace(wanted, classes=bundle.classes))
    refuse_faults(faults, root, LAYOUTS[dataset.layout].description)
    if dataset.classes != bundle.classes:
        remedy = (
            "If these are other names of the same things, in this order: --set "
            f"'data.classes=[{', '.join(bundle.classes)}]'."
            if len(dataset.classes) == len(bundle.classes)
            else "`labels` of dataset.yaml says which mask value is which class; 255 is not scored."
        )
        raise UserError(
            f"{root} has the classes {', '.join(dataset.classes)}, the model {', '.join(bundle.classes)}: they must be "
            f"the same, in one order. {remedy}"
        )
    for fault in faults:
        warn(f"{fault.path}: {fault.message}")
    if dataset.options.window != window:
        warn("the window of dataset.yaml is not used: `predict` reads images as the model wants them, and so does this")
        dataset = replace(dataset, options=replace(dataset.options, window=window))
    dataset = take(dataset, options.where) if options.where else dataset
    if not any(record.mask for record in dataset.records):
        raise UserError(f"{root}: no image has a mask, so nothing can be scored. `tskd predict` segments them.")
    return dataset


def _may_be(classes: tuple[str, ...], dataset: Dataset) -> bool:
    """Whether a data set that was read without names can be read with these."""
    if dataset.classes in ((), class_names(len(dataset.classes))):
        return len(dataset.classes) <= len(classes)
    theirs = {name.casefold() for name in dataset.classes}
    return dataset.layout == DICOM.name and {name.casefold() for name in classes} <= theirs  # segments have names


class _Read(NamedTuple):
    """What is kept of a labelled image that was answered."""

    record: Record
    shape: tuple[int, ...]
    fingerprint: ImageFingerprint
    grey: LevelUse
    oddities: tuple[Oddity, ...]
    files: tuple[bytes, bytes]
    """Mask and answer as PNG."""


def _answer_all(
    bundle: Bundle, dataset: Dataset, tile: int | None
) -> tuple[Answered, tuple[str, ...], tuple[str, ...]]:
    """Return what was read and answered, remarks on it, and what could not be read."""
    sources = [record for record in dataset.records if record.mask]
    session, room = bundle.session(1), Room(MAX_PIXELS)

    def answer(record: Record) -> _Read | UserError:
        try:
            image, mask = dataset.read_image(record), dataset.read_mask(record)
            with room.of(mask.size):
                found = ask_by_size(session, image, tile)
            files, grey = (packed(mask), packed(found.classes)), record_use(dataset, record, image)
            return _Read(record, mask.shape, fingerprint_image(image), grey, tuple(oddities(record)), files)
        except UserError as error:
            return error

    with ThreadPoolExecutor(cores()) as pool, progress("score", len(sources)) as advance:
        found = list(_telling(pool.map(answer, sources), advance))
    failures = tuple(dict.fromkeys(str(one) for one in found if isinstance(one, UserError)))  # once a volume
    for failure in failures[:SHOWN]:
        warn(failure)
    read = [one for one in found if not isinstance(one, UserError)]
    if not read:
        raise UserError(f"none of {len(sources)} labelled images could be read. `tskd check` shows the whole data set.")
    return _answered(dataset, read), tuple(_remarks(dataset, read)), failures


def _remarks(dataset: Dataset, read: Sequence[_Read]) -> Iterator[str]:
    """Yield, and say, what a reader of the scores should know of the images."""
    if unlabelled := sum(record.mask is None for record in dataset.records):
        yield f"{counted(unlabelled, 'image')} without a mask not scored"
    if loss := describe_losses([one.record for one in read], {one.record.id: one.grey for one in read}):
        warn(loss[0])
        yield loss[0].rstrip(".")
    yield from tell_oddities([one.record for one in read], [one.oddities for one in read])


def _answered(dataset: Dataset, read: Sequence[_Read]) -> Answered:
    """Return what was read; images that show the same are one case, as in a run's test."""
    records = [replace(one.record, split=None) for one in read]  # here all are of the test
    cases = {record.id: record.case for record in records}
    pairs = find_pairs({one.record.id: one.fingerprint for one in read}, groups=cases)
    settled = settle_duplicates(records, pairs)
    prepared = tuple(prepared_record(record, "test", one.shape) for record, one in zip(settled, read, strict=True))
    return Answered(dataset, settled, prepared, tuple(one.files for one in read))


def _telling(found: Iterator[T], advance: Advance) -> Iterator[T]:
    for done, one in enumerate(found, start=1):
        advance(done)
        yield one


def _write(
    answered: Answered,
    bundle: Bundle,
    folder: Path,
    remarks: Sequence[str],
    failures: Sequence[str],
    overlays: int,
) -> dict[str, Any]:
    tally = Tally(Scoring.of(answered))
    (folder / PREDICTIONS).mkdir()
    with progress("score: distances", len(answered.kept)) as advance:
        for row, (_, answer) in enumerate(answered.kept):
            prediction_path(folder, row).write_bytes(answer)
            tally.add(row, answered.answer(row))
            advance(row + 1)
    write_cases(tally.scores, folder / CASES)
    scores = summarise_levels(tally.scores)
    told = (*tally.scoring.remarks, *empty_truths(scores, answered.classes), *remarks)
    named = {"model": bundle.digest, "trained_on": bundle.dataset, "dataset": answered.dataset.name}
    remark = {"remark": "; ".join(told)} if told else {}
    summary = {**named, **scores, **remark, "failures": list(failures)}
    write_json(folder / SUMMARY, summary)
    images = [score for score in tally.scores if score.level == "image"]
    if overlays:
        draw_overlays(answered, folder, images, count=overlays, title=TITLE)
    return summary


def render(summary: Mapping[str, Any], bundle: Bundle, console: Console) -> None:
    """Print the scores of :func:`score_scans`, a line a class, and beside them what the model's card says."""
    from rich.table import Table
    from rich.text import Text

    unit = "mm" if "hd95_mm" in summary else "px"
    level = summary["level"]
    columns = ("class", "3-D Dice" if level == "volume" else "Dice", "95 %", f"HD95 {unit}", "missed", "false positive")
    table = Table(
        title=Text(
            f"{counted(summary[f'n_{level}s'], level)} of {counted(summary['n_cases'], 'case')}, {summary['dataset']}"
        )
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "class" else "right")
    named = {name: summary["classes"][str(label)] for label, name in enumerate(bundle.classes, start=1)}
    for name, scores in {"all": summary, **named}.items() if len(named) > 1 else named.items():
        dice, distance = scores["dice"], scores[f"hd95_{unit}"]
        told = ("", NOTHING_TO_FIND, "") if dice is None else (
            f"{dice:.3f}", interval_text(scores["dice_ci95"]), f"{distance:.1f}"
        )  # fmt: skip
        table.add_row(*map(Text, (name, *told, str(scores["missed"]), str(scores["false_positive"]))))
    console.print(table)
    if card := _on_the_card(bundle):
        console.print(Text(card))
    if remark := summary.get("remark"):
        console.print(Text(remark))


def _on_the_card(bundle: Bundle) -> str:
    """Return what the bundle says of its own test; empty where it says nothing that can be held beside."""
    told = bundle.description.get("scores")
    own = told.get("student") if isinstance(told, dict) else None
    if not isinstance(own, dict) or not isinstance(own.get("dice"), float):
        return ""
    where = bundle.dataset or "a data set that it does not name"
    tested = f"{own.get('level', 'image')}s of {own.get('n_cases', 'some')} cases of {where}"
    return f"The card, of {tested}: Dice {own['dice']:.3f} ({interval_text(own.get('dice_ci95'))})."
