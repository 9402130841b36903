"""One pass over a data set before anything trains: what is in it, and every file that will not work, by name."""

from __future__ import annotations

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from PIL import Image

from tskd.console import console_html
from tskd.data.duplicates import DuplicatePair, ImageFingerprint, find_pairs, fingerprint_image, settle_duplicates
from tskd.data.grey_levels import LevelUse, describe_losses, record_use
from tskd.data.images import IMAGE_SUFFIXES, read_mask_indices
from tskd.data.intensity import PLAIN_RULE
from tskd.data.label_sense import doubts
from tskd.data.labels import COLOUR, count_bytes, map_labels, values_in
from tskd.data.layouts import Dataset, LayoutOptions, dicom, folder, survey
from tskd.data.layouts.base import require_mask
from tskd.data.layouts.pairs import Oddity, notes_on, oddities, read_paired_mask, unclear_turn
from tskd.data.nifti import is_nifti
from tskd.data.reading import reading
from tskd.data.splits import make_split
from tskd.errors import UserError, not_allowed
from tskd.machine.memory import cores
from tskd.types import UNLABELLED, Record

if TYPE_CHECKING:
    from rich.console import Console

_Read = TypeVar("_Read")
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one file."""

    path: Path
    """Relative to the root."""
    message: str
    remedy: str
    """Empty where the message says it all."""
    severity: Severity = "error"


@dataclass(frozen=True)
class ClassStatistics:
    """How often one class occurs; index 0 is the background."""

    index: int
    name: str
    images: int
    """Masks in which the class is present."""
    share: float
    """Of all labelled pixels, 0..1."""


@dataclass(frozen=True)
class CheckReport:
    """What :func:`inspect` found, and what the next stage would otherwise have to decode again."""

    name: str
    layout: str
    root: Path
    records: tuple[Record, ...]
    notes: tuple[str, ...]
    classes: tuple[ClassStatistics, ...]
    sizes: Counter[tuple[int, int]]
    """(height, width) of the readable images."""
    file_kinds: Counter[str]
    """File format and pixel mode of the readable images, such as ``JPEG L``."""
    mask_values: Counter[int]
    """Raw value (``labels.COLOUR | 0xRRGGBB`` for colours) to the number of masks; empty where the layout fixes it."""
    label_map: Mapping[int, int]
    """Raw value to class index, for each of ``mask_values`` that means something."""
    empty_masks: tuple[str, ...]
    """Ids whose mask holds no foreground."""
    duplicates: tuple[DuplicatePair, ...]
    """Across cases only: neighbouring slices of one patient look alike and are never split."""
    problems: tuple[Problem, ...]
    presence: Mapping[str, frozenset[int]] = field(repr=False)
    """Id of each readable mask to the classes in it."""
    fingerprints: Mapping[str, ImageFingerprint] = field(repr=False)
    """Id of each readable image to its fingerprint."""

    @property
    def usable(self) -> bool:
        """Whether a run on this data set can start."""
        return not any(problem.severity == "error" for problem in self.problems)

    @property
    def splits(self) -> Counter[str | None]:
        """Images by the part that the data set itself states; None: not stated."""
        return Counter(record.split for record in self.records)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values; paths are relative to the root."""
        from tskd.data.check_text import report_to_json

        return report_to_json(self)

    def _repr_html_(self) -> str:
        return console_html(self.render)

    def render(self, console: Console) -> None:
        """Print the report: tables without frames, plain text where the console is no terminal."""
        from tskd.data.check_text import render_report

        render_report(self, console)


@dataclass(frozen=True)
class _Finding:
    """What one record's files hold; None where they could not be read."""

    size: tuple[int, int] | None = None
    file_kind: str | None = None
    fingerprint: ImageFingerprint | None = None
    class_pixels: np.ndarray | None = None
    """(256,) pixels of each class index."""
    mask_values: tuple[int, ...] = ()
    oddities: tuple[Oddity, ...] = ()
    problems: tuple[Problem, ...] = ()
    grey: LevelUse | None = None


def inspect(
    root: Path,
    layout: str = "auto",
    *,
    options: LayoutOptions | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every image and mask of a data set once and report what is there and what is wrong.

    A broken file becomes a :class:`Problem` and never ends the pass. ``progress(done, total)`` is called in the
    calling thread. Raises UserError only where there is nothing to look at: no such folder, or an unknown layout.
    """
    root = Path(root)
    dataset, faults = survey(root, layout, options)
    findings = dict(_examine_all(dataset, workers or min(cores(), 8), progress))
    fingerprints = {id_: one.fingerprint for id_, one in findings.items() if one.fingerprint is not None}
    pixels = {id_: one.class_pixels for id_, one in findings.items() if one.class_pixels is not None}
    presence = {id_: _indices_present(counts) - {0} for id_, counts in pixels.items()}
    duplicates = find_pairs(fingerprints, groups={record.id: record.case for record in dataset.records})
    settled = settle_duplicates(dataset.records, duplicates)
    values = Counter(value for one in findings.values() for value in one.mask_values)
    structural = [_problem(root, path, message, severity) for path, message, severity in faults]
    named = {(problem.path, problem.message) for problem in structural}
    found = [problem for one in findings.values() for problem in one.problems]
    problems = [
        *structural,
        *_one_a_file([problem for problem in found if (problem.path, problem.message) not in named]),
        *_unclear_turns(dataset, findings),
        *_duplicate_problems(dataset, duplicates, settled),
        *_volume_problems(dataset, {id_: one.size for id_, one in findings.items() if one.size is not None}),
        *_split_problems(dataset, settled, presence, {id_: _indices_present(counts) for id_, counts in pixels.items()}),
        *_level_problems(dataset.records, findings),
    ]
    return CheckReport(
        name=dataset.name,
        layout=dataset.layout,
        root=root,
        records=dataset.records,
        notes=(
            *dataset.notes,
            *_intensity_notes(dataset),
            *notes_on(oddity for one in findings.values() for oddity in one.oddities),
        ),
        classes=_class_statistics(dataset.classes, pixels),
        sizes=Counter(one.size for one in findings.values() if one.size is not None),
        file_kinds=Counter(one.file_kind for one in findings.values() if one.file_kind is not None),
        mask_values=values,
        label_map=_label_map(dataset, values),
        empty_masks=tuple(id_ for id_, classes in presence.items() if not classes),
        duplicates=tuple(duplicates),
        problems=tuple(problems),
        presence=presence,
        fingerprints=fingerprints,
    )


def _examine_all(
    dataset: Dataset, workers: int, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, _Finding]]:
    records = dataset.records
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:  # Pillow decodes without the interpreter lock
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what it warns of becomes a problem with a file name
        for done, (record, finding) in enumerate(
            zip(records, pool.map(lambda one: _examine(dataset, one), records)), 1
        ):
            if progress is not None:
                progress(done, len(records))
            yield record.id, finding


def _examine(dataset: Dataset, record: Record) -> _Finding:
    problems: list[Problem] = []
    image = _attempt(dataset, record.image, lambda: dataset.read_image(record), problems)
    fingerprint = None
    if image is not None:
        fingerprint = _attempt(dataset, record.image, partial(fingerprint_image, image), problems)
    if fingerprint is not None and fingerprint.phash is None:
        path = _relative(dataset.root, record.image)
        problems.append(
            Problem(path, "the image is one tone.", "Look at it; remove it if it shows nothing.", "warning")
        )
    size = None if image is None else (image.shape[0], image.shape[1])
    grey = None
    if image is not None and record.image.is_file():
        grey = _attempt(dataset, record.image, lambda: record_use(dataset, record, image), problems)
    mask = None
    if record.mask is not None:
        mask = _attempt(dataset, record.mask, lambda: _read_mask(dataset, record, size), problems)
    classes, values = mask if mask is not None else (None, ())
    odd = None
    if mask is not None and record.mask is not None:
        odd = _attempt(dataset, record.mask, lambda: _oddities(dataset, record), problems)
    return _Finding(
        size=size,
        file_kind=None if image is None else _file_kind(record.image),
        fingerprint=fingerprint,
        class_pixels=None if classes is None else count_bytes(classes),
        mask_values=values,
        oddities=odd or (),
        problems=tuple(problems),
        grey=grey,
    )


def _attempt(dataset: Dataset, path: Path, read: Callable[[], _Read], problems: list[Problem]) -> _Read | None:
    """Return what ``read`` answers, or note why it cannot."""
    try:
        with reading(path):
            if path.exists() and not os.access(path, os.R_OK):
                raise not_allowed(path)
            return read()
    except UserError as error:
        problems.append(_problem(dataset.root, path, str(error)))
        return None


def _read_mask(
    dataset: Dataset, record: Record, size: tuple[int, int] | None
) -> tuple[np.ndarray | None, tuple[int, ...]]:
    """Return the mask's class indices (None where the classes are unknown) and its raw values."""
    if dataset.layout != folder.FOLDER.name:
        return dataset.read_mask(record), ()
    path = require_mask(record)
    raw = read_paired_mask(record, size) if size else read_mask_indices(path)  # an unreadable image is named already
    values = tuple(values_in(raw).tolist())
    if not dataset.classes:
        return None, values
    return map_labels(raw, dataset.options.labels, classes=len(dataset.classes), path=path), values


def _oddities(dataset: Dataset, record: Record) -> tuple[Oddity, ...]:
    over = dataset.layout == dicom.DICOM.name and dicom.overlaps(record, dataset.options)
    return (*oddities(record), *(("overlap",) if over else ()))


def _file_kind(path: Path) -> str:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return "NIfTI" if is_nifti(path) else "DICOM"
    try:
        with reading(path), Image.open(path) as image:
            return f"{image.format} {image.mode}"
    except UserError:  # a TIFF beyond Pillow, read by tifffile
        return path.suffix.lstrip(".").upper()


def _problem(root: Path, path: Path, text: str, severity: Severity = "error") -> Problem:
    """Build a problem from a reader's message.

    Absolute paths are cut: folder names above the root may tell who the patient is, and a report travels.
    """
    for prefix in {f"{root.resolve()}{os.sep}", f"{root}{os.sep}"}:
        text = text.replace(prefix, "")
    relative = _relative(root, path)
    return Problem(relative, *_message_and_remedy(text.removeprefix(f"{relative}: ")), severity)


def _message_and_remedy(text: str) -> tuple[str, str]:
    """Split a message of ours: its first sentence says what is wrong, the rest what to do."""
    message, _, remedy = text.partition(". ")
    return f"{message.rstrip('.')}.", remedy


def _one_a_file(problems: Sequence[Problem]) -> Iterator[Problem]:
    """Name each file once: a broken volume fails in each of its slices."""
    by_file: dict[tuple[Path, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        by_file[problem.path, problem.severity].append(problem)
    for first, *others in by_file.values():
        more = f" {len(others)} more images of this file fail as well." if others else ""
        yield replace(first, message=first.message + more)


def _relative(root: Path, path: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else Path(path.name)


def _indices_present(class_pixels: np.ndarray) -> frozenset[int]:
    return frozenset(np.flatnonzero(class_pixels[:UNLABELLED]).tolist())


def _class_statistics(names: Sequence[str], pixels: Mapping[str, np.ndarray]) -> tuple[ClassStatistics, ...]:
    if not pixels:
        return ()
    table = np.stack(list(pixels.values()))[:, : len(names) + 1]
    total = max(int(table.sum()), 1)
    return tuple(
        ClassStatistics(index, name, int(np.count_nonzero(table[:, index])), float(table[:, index].sum() / total))
        for index, name in enumerate(("background", *names))
    )


def _label_map(dataset: Dataset, values: Counter[int]) -> dict[int, int]:
    stated = dataset.options.labels
    if stated is not None:
        return {value: stated.get(value, 0) for value in sorted(values) if value in stated or value in (0, COLOUR)}
    one_class = len(dataset.classes) == 1
    known = {value: value for value in range(len(dataset.classes) + 1)} | ({255: 1} if one_class else {})
    return {value: known[value] for value in sorted(values) if value in known}


def _duplicate_problems(
    dataset: Dataset, pairs: Sequence[DuplicatePair], settled: Sequence[Record]
) -> Iterator[Problem]:
    """Name exact duplicates one by one, near ones together: near ones are a suspicion, and may be hundreds.

    An image lies in the part that any of its case is stated to lie in.
    """
    by_id = {record.id: record for record in dataset.records}
    of_case = {record.case: record.split for record in settled if record.split is not None}
    part = {record.id: record.split or of_case.get(record.case) for record in settled}
    for pair in pairs:
        if pair.exact:
            first, second = by_id[pair.first], by_id[pair.second]
            parts = {part[first.id], part[second.id]}
            parted = None not in parts and len(parts) > 1
            where = f" ({part[first.id]} and {part[second.id]})" if parted else ""
            yield Problem(
                _relative(dataset.root, first.image),
                f"shows exactly what {_relative(dataset.root, second.image)} shows{where}.",
                "Remove one of the two, or give both the same case.",
                "error" if parted and "test" in parts else "warning",
            )
    if near := [pair for pair in pairs if not pair.exact]:
        yield _near_problem(near, {id_: _relative(dataset.root, record.image) for id_, record in by_id.items()})


def _near_problem(pairs: Sequence[DuplicatePair], paths: Mapping[str, Path]) -> Problem:
    """Name the nearest pair, and how many there are."""
    images = {id_ for pair in pairs for id_ in (pair.first, pair.second)}
    count = f"; there are {len(pairs)} such pairs among {len(images)} images" if len(pairs) > 1 else ""
    return Problem(
        paths[pairs[0].first],
        f"looks nearly the same as {paths[pairs[0].second]}, of another case{count}.",
        "Look at them (tskd check --json lists every pair): where one patient is shown, give both images the same "
        "case, else test scores are too good. Where no image has a case of its patient, a run joins them by itself.",
        "warning",
    )


def _unclear_turns(dataset: Dataset, findings: Mapping[str, _Finding]) -> Iterator[Problem]:
    for record in dataset.records:
        if record.mask is not None and "perhaps turned" in findings[record.id].oddities:
            yield _problem(dataset.root, *unclear_turn(record.mask))


def _volume_problems(dataset: Dataset, sizes: Mapping[str, tuple[int, int]]) -> Iterator[Problem]:
    """Name the volumes whose slices differ in size: they cannot be stacked."""
    first: dict[str, Record] = {}
    uneven: dict[str, Record] = {}
    for record in dataset.records:
        if record.volume is not None and record.id in sizes:
            other = first.setdefault(record.volume, record)
            if sizes[record.id] != sizes[other.id]:
                uneven.setdefault(record.volume, record)
    for volume, record in uneven.items():
        yield Problem(
            _relative(dataset.root, record.image),
            f"has another size than {first[volume].id}, a slice of the same volume ({volume}).",
            "Name volumes by what was taken together; as it is, all slices are scored as single images.",
            "warning",
        )


def _intensity_notes(dataset: Dataset) -> tuple[str, ...]:
    """Return the rule from stored values to grey levels where the layout does not tell it."""
    return () if any(note.startswith("intensities") for note in dataset.notes) else (PLAIN_RULE,)


def _level_problems(records: Sequence[Record], findings: Mapping[str, _Finding]) -> Iterator[Problem]:
    """Name in one warning what is lost of grey levels, and the window that keeps them."""
    uses = {id_: one.grey for id_, one in findings.items() if one.grey is not None}
    if loss := describe_losses(records, uses):
        yield Problem(Path(), *loss, "warning")


def _split_problems(
    dataset: Dataset,
    settled: Sequence[Record],
    presence: Mapping[str, frozenset[int]],
    found: Mapping[str, frozenset[int]],
) -> Iterator[Problem]:
    """Report what would stop a run or make it worthless: the split, and labels that say nothing.

    A mask that cannot be used counts as labelled: it is named itself, and is to be mended.
    """
    anything = frozenset(range(1, len(dataset.classes) + 1))
    labelled = {record.id: presence.get(record.id, anything) for record in dataset.records if record.mask is not None}
    sides = None
    try:
        split = make_split(settled, presence=labelled)
        sides = split.sides() if any(record.split for record in dataset.records) else None
    except UserError as error:
        if not dataset.incomplete:  # else the cases that are left out are named, and may be enough
            yield Problem(Path(), *_message_and_remedy(str(error)))
    yield from (Problem(Path(), *doubt) for doubt in doubts(found, dataset.classes, sides))
