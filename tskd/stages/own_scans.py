"""Own scans: score a shipped model on labelled images of whoever received it, by onnxruntime alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from tskd.console import Advance, progress, warn
from tskd.data.duplicates import ImageFingerprint, find_pairs, fingerprint_image, settle_duplicates
from tskd.data.layouts import Dataset, LayoutOptions, open_dataset, survey
from tskd.data.layouts.base import class_names
from tskd.data.png import packed, unpacked
from tskd.data.prepared import Part, PreparedRecord, prepared_record
from tskd.data.sites import take
from tskd.deploy.bundle import Bundle
from tskd.deploy.network_file import ask
from tskd.errors import UserError, require_folder, until_terminated
from tskd.machine.disk import replaced_folder, write_json
from tskd.machine.memory import cores
from tskd.metrics.intervals import interval_text
from tskd.metrics.segmentation import NOTHING_TO_FIND
from tskd.stages.evaluation_files import (
    CASES,
    PREDICTIONS,
    SUMMARY,
    draw_overlays,
    empty_truths,
    prediction_path,
    write_cases,
)
from tskd.stages.scoring import Scoring, Tally, summarise_levels
from tskd.types import Record

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
TITLE = "this model"
_SHOWN = 10


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


@until_terminated()
def score_scans(
    bundle: Bundle,
    root: Path,
    out: Path,
    *,
    layout: str = "auto",
    options: LayoutOptions | None = None,
    where: Mapping[str, Sequence[str]] | None = None,
    overlays: int = 12,
    overwrite: bool = False,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Answer and score the labelled images of a data folder; return the summary and what could not be read.

    ``where``: values of columns of ``split.csv``; images with others are left out. Scores, their intervals and the
    policy for empty masks are those of a run's test (volumes as volumes). ``out`` gets ``cases.csv``, ``summary.json``,
    ``predictions/`` (class indices, a PNG an image in the order of ``cases.csv``) and ``overlays/`` of the worst,
    median and best. Nothing tells whether the model has learned from these images: that is for the caller to know.
    Raises UserError where nothing is labelled or readable, the classes are not the model's, or ``out`` holds something
    and ``overwrite`` is not set.
    """
    _require_free(out, overwrite)
    dataset = _open(bundle, root, layout, options or LayoutOptions(), where or {})
    answered, failures = _answer_all(bundle, dataset)
    with replaced_folder(out) as folder:
        return _write(answered, bundle, folder, overlays), failures


def _require_free(out: Path, overwrite: bool) -> None:
    require_folder(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / SUMMARY).is_file() or not (out / CASES).is_file():
        raise UserError(f"{out} holds something other than scores. Choose another --out.")
    if not overwrite:
        raise UserError(f"{out} holds scores already. Add --overwrite to replace them, or choose another --out.")


def _open(
    bundle: Bundle, root: Path, layout: str, options: LayoutOptions, where: Mapping[str, Sequence[str]]
) -> Dataset:
    """Return the data set, read as the model wants it; UserError where its classes are others or nothing is labelled.

    Classes that nobody has named are taken for the model's, in the order of their numbers.
    """
    window = None if bundle.window is None else (bundle.window.low, bundle.window.high)
    options = replace(options, window=window or options.window, axis=bundle.axis)
    if options.classes is None:
        found, _ = survey(root, layout, options)
        if found.classes == class_names(len(found.classes)):
            options = replace(options, classes=bundle.classes)
    dataset = take(open_dataset(root, layout, options), where) if where else open_dataset(root, layout, options)
    if dataset.classes != bundle.classes:
        raise UserError(
            f"{root} has the classes {', '.join(dataset.classes)}, the model {', '.join(bundle.classes)}: they must be "
            "the same, in one order. Say which mask value is which with classes and labels in dataset.yaml."
        )
    if not any(record.mask for record in dataset.records):
        raise UserError(f"{root}: no image has a mask, so nothing can be scored. `tskd predict` segments them.")
    return dataset


class _Read(NamedTuple):
    """What is kept of a labelled image that was answered."""

    record: Record
    shape: tuple[int, ...]
    fingerprint: ImageFingerprint
    files: tuple[bytes, bytes]
    """Mask and answer as PNG."""


def _answer_all(bundle: Bundle, dataset: Dataset) -> tuple[Answered, tuple[str, ...]]:
    sources = [record for record in dataset.records if record.mask]
    session = bundle.session(1)

    def answer(record: Record) -> _Read | UserError:
        try:
            image, mask = dataset.read_image(record), dataset.read_mask(record)
            files = packed(mask), packed(ask(session, image).classes)
            return _Read(record, mask.shape, fingerprint_image(image), files)
        except UserError as error:
            return error

    with ThreadPoolExecutor(cores()) as pool, progress("score", len(sources)) as advance:
        found = list(_counted(pool.map(answer, sources), advance))
    failures = tuple(dict.fromkeys(str(one) for one in found if isinstance(one, UserError)))  # once a volume
    for failure in failures[:_SHOWN]:
        warn(failure)
    read = [one for one in found if not isinstance(one, UserError)]
    if not read:
        raise UserError(f"none of {len(sources)} labelled images could be read. `tskd check` shows the whole data set.")
    return _answered(dataset, read), failures


def _answered(dataset: Dataset, read: Sequence[_Read]) -> Answered:
    """Return what was read; images that show the same are one case, as in a run's test."""
    records = [one.record for one in read]
    cases = {record.id: record.case for record in records}
    pairs = find_pairs({one.record.id: one.fingerprint for one in read}, groups=cases)
    settled = settle_duplicates(records, pairs)
    prepared = tuple(prepared_record(record, "test", one.shape) for record, one in zip(settled, read, strict=True))
    return Answered(dataset, settled, prepared, tuple(one.files for one in read))


def _counted(found: Iterator[T], advance: Advance) -> Iterator[T]:
    for done, one in enumerate(found, start=1):
        advance(done)
        yield one


def _write(answered: Answered, bundle: Bundle, folder: Path, overlays: int) -> dict[str, Any]:
    tally = Tally(Scoring.of(answered))
    (folder / PREDICTIONS).mkdir()
    for row, (_, answer) in enumerate(answered.kept):
        prediction_path(folder, row).write_bytes(answer)
        tally.add(row, answered.answer(row))
    write_cases(tally.scores, folder / CASES)
    scores = summarise_levels(tally.scores)
    remarks = (*tally.scoring.remarks, *empty_truths(scores, answered.classes))
    named = {"model": bundle.digest, "trained_on": bundle.dataset, "dataset": answered.dataset.name}
    summary = {**named, **scores, **({"remark": "; ".join(remarks)} if remarks else {})}
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
    table = Table(title=f"{summary[f'n_{level}s']} {level}s of {summary['n_cases']} cases, {summary['dataset']}")
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
    own = bundle.description.get("scores", {}).get("student", {})
    if own.get("dice") is not None:
        of = f"{own['dice']:.3f} ({interval_text(own['dice_ci95'])}, {own['n_cases']} cases)"
        console.print(Text(f"On the card, of its own test ({bundle.dataset or 'data set not named'}): Dice {of}."))
    if remark := summary.get("remark"):
        console.print(Text(remark))
