"""What a layout is: a way to find the records of a data set on disk and to read their images and masks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from tskd.data.codes import ClassCode
from tskd.data.files import OTHER_TYPES, Listing, find_files, id_of, shown, tally
from tskd.data.images import IMAGE_SUFFIXES, IntensityWindow, image_size
from tskd.data.labels import listed
from tskd.errors import UserError
from tskd.types import UNLABELLED, Record

_SHOWN = 5
_MAX_COUNTED_CLASSES = 32  # above this, mask values are grey levels or noise rather than labels


@dataclass(frozen=True)
class LayoutOptions:
    """What a user may say about a data set; a layout ignores what does not concern it."""

    classes: tuple[str, ...] | None = None
    """Names of the foreground classes, in the order of their indices; None: what the layout or the data set says."""
    labels: Mapping[int, int] | None = None
    """Mask value (or ``labels.COLOUR | 0xRRGGBB``) to class index."""
    window: tuple[float, float] | None = None
    """Stored values (Hounsfield units for CT) that become black and white; None: the layout's stated rule."""
    annotator: int = 1
    """``kidneyus``: whose labels, 1 or 2."""
    structure: str = "capsule"
    """``kidneyus``: ``capsule`` (one class) or ``regions`` (central complex, medulla, cortex)."""
    sequence: str = "all"
    """``chaos_mr``: ``t1_in``, ``t1_out``, ``t2`` or ``all``."""
    axis: int = 2
    """``nifti``: the axis sliced along, in canonical orientation (0 left-right, 1 back-front, 2 foot-head)."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Return what a recipe's section says about reading; its ``labels`` are a budget, not a map."""
        return cls(**{one.name: settings[one.name] for one in fields(cls) if one.name != "labels"})

    @property
    def intensity(self) -> IntensityWindow | None:
        """The window as the readers take it."""
        return None if self.window is None else IntensityWindow(*self.window)


@dataclass(frozen=True)
class Description:
    """What a layout learned about one data set beyond its records."""

    name: str
    options: LayoutOptions
    """The given options with ``classes`` (and ``labels``, ``window`` where known) filled in."""
    notes: tuple[str, ...] = ()
    """What the user should know, such as the intensity scaling in use."""
    codes: Mapping[str, ClassCode] = field(default_factory=dict)
    """What classes are in a terminology, of those of which this is stated."""


class Fault(NamedTuple):
    """One thing that is wrong with one file or folder."""

    path: Path
    message: str
    """Whole sentences; the first says what is wrong, the rest what to do."""
    severity: Literal["error", "warning"] = "error"


def fault_of(error: UserError, path: Path) -> Fault:
    """Return a reader's message as a fault of the file that it begins with, or of ``path``."""
    head, _, rest = str(error).partition(": ")
    return Fault(Path(head), rest) if os.path.lexists(head) else Fault(path, str(error))


@dataclass
class Search:
    """What a layout sees on its way through a data folder besides its records: faults, and what it leaves out."""

    faults: list[Fault] = field(default_factory=list)
    incomplete: bool = False
    """Whether cases are left out because of their faults, so that the records are not all there is."""
    notes: list[str] = field(default_factory=list)
    _left_out: dict[str, set[Path]] = field(default_factory=dict)

    def listing(self, folder: Path, known: Callable[[Path], bool] = lambda path: True, *, deep: bool = True) -> Listing:
        """Return what is in a folder (:func:`find_files`); what cannot be looked at becomes a fault."""
        found = find_files(folder, known, deep=deep)
        self.faults += [fault for path, text in found.problems if (fault := Fault(path, text)) not in self.faults]
        for reason, paths in (
            ("hidden files of systems and editors", found.hidden),
            (OTHER_TYPES, found.others),
            ("links to folders that are read already", found.linked_again),
        ):
            self._left_out.setdefault(reason, set()).update(paths)
        return found

    def by_id(
        self,
        folder: Path,
        known: Callable[[Path], bool],
        name: Callable[[Path, Path], str] = id_of,
        *,
        deep: bool = True,
        claims: Collection[str] = (),
    ) -> dict[str, Path]:
        """Return the known files of a folder by their ids, in the order of these; a second file of an id is a fault.

        So is, in a folder of labels, a file of another type whose id is one of ``claims``, the ids of the images.
        """
        listing = self.listing(folder, known, deep=deep)
        files: dict[str, Path] = {}
        for path in listing.files:
            other = files.setdefault(name(path, folder), path)
            if other is not path:
                self.fault(path, f"has the same id as {shown(other.name)}: keep one of the two.")
        for path in listing.others:
            if any(id in claims and id not in files for id in _ids_of(path, folder)):
                self.fault(path, f"has the name of an image, and a type that is not read. {_exported(path)}")
        return dict(sorted(files.items()))

    def fault(self, path: Path, message: str, severity: Literal["error", "warning"] = "error") -> None:
        """Note a fault of a file."""
        self.faults.append(Fault(path, message, severity))

    def drop(self, error: UserError, path: Path) -> None:
        """Note why a case is left out: the file that the message begins with is at fault, else ``path``."""
        self.incomplete = True
        if (fault := fault_of(error, path)) not in self.faults:
            self.faults.append(fault)

    def name_unclaimed(
        self, labels: Mapping[str, Path], claimed: Collection[Path | None], ids: Collection[str]
    ) -> None:
        """Name every label (by id) that is none of ``claimed``; ``ids`` are the images' own."""
        known, taken = set(ids), set(claimed)
        channels = {_CHANNEL.sub("", one): found[0] for one in known if (found := _CHANNEL.search(one))}
        for id, path in labels.items():
            if path not in taken:
                self.fault(path, _unclaimed(id, path, known, labels, channels))

    @property
    def left_out(self) -> str | None:
        """How much is no data, and why, in words; None where everything is."""
        counts = [tally(reason, paths) for reason, paths in self._left_out.items() if paths]
        return f"left out: {'; '.join(counts)}" if counts else None


_OF_VOLUMES = (".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh")


def _ids_of(path: Path, folder: Path) -> Iterator[str]:
    """Yield the id of a file with one ending cut off, with two and so on: 3D Slicer writes ``<id>.seg.nrrd``."""
    while path.suffix:
        path = path.with_suffix("")
        yield id_of(path.with_name(f"{path.name}.cut"), folder)


def _exported(path: Path) -> str:
    if path.suffix.lower() not in _OF_VOLUMES:
        return "Save the label in one that is."
    return (
        "Save the label as NIfTI (.nii.gz), or its slices as PNG. In 3D Slicer export the segmentation to a labelmap "
        "on the geometry of the scan, and save that."
    )


_CHANNEL = re.compile(r"_\d{4}$")


def _unclaimed(id: str, path: Path, ids: Collection[str], labels: Collection[str], channels: Mapping[str, str]) -> str:
    """Return what is wrong with a label that no image claims, with its right name where the cause can be guessed.

    nnU-Net's images end in ``_0000``, their labels do not; other masks are called pat01_mask or pat01_segmentation.
    ``channels`` has the ending of each image that has a channel number, by the id without it.
    """
    channel = _CHANNEL.search(id)
    if channel and _CHANNEL.sub("", id) in ids:
        ending = path.name[len(Path(id).name) :]
        right = shown(_CHANNEL.sub("", Path(id).name) + ending)
        return f"a label without an image: it ends in the channel number {channel[0]}. Rename it to {right}."
    if id in ids:
        return "a label that is not used, though an image has its name: that has another one, or a fault of its own."
    if id in channels:
        return f"a label without an image: the image's name ends in {channels[id]}. Give both the same name."
    beginnings = (id[: found.start()] for found in re.finditer(r"[ _.-]", id))
    if meant := max((one for one in beginnings if one in ids and one not in labels), key=len, default=None):
        image = Path(meant).name
        right = shown(image + path.name[len(Path(id).name) :])
        return f"a mask without an image. If it belongs to image {shown(image)}, rename it to {right}; else remove it."
    return "a mask without an image: no image has its name and sub-folder. Rename it as its image, or remove it."


def is_image(path: Path) -> bool:
    """Tell by the ending, in any case, whether a file is an image that is read."""
    return path.suffix.lower() in IMAGE_SUFFIXES


@dataclass(frozen=True)
class Layout:
    """One way of keeping a data set on disk."""

    name: str
    classes: tuple[str, ...]
    """Default names of the foreground classes; empty where only the data set can say."""
    find: Callable[[Path, LayoutOptions, Search], list[Record]]
    """All sound records below a root, sorted by id; every structural fault goes to the search.

    Raises UserError naming the expected tree where there is nothing of it."""
    read_image: Callable[[Record, LayoutOptions], np.ndarray]
    """(H, W, 3) uint8 RGB."""
    read_mask: Callable[[Record, LayoutOptions], np.ndarray]
    """(H, W) uint8 class index 0..K at the image's size, ``UNLABELLED`` where nothing is stated."""
    fits: Callable[[Path], bool]
    """Tells by folder and file names whether a root is in this layout."""
    description: str
    """The expected tree, for messages and the documentation."""
    describe: Callable[[Path, LayoutOptions, Sequence[Record]], Description] | None = None
    """What this data set says about itself; None: the defaults above and no notes."""
    beside: Callable[[Record], Path | None] = lambda _: None
    """The file that a record's labels are read from as well."""


def require_mask(record: Record) -> Path:
    """Return the mask's path; raises :class:`UserError` for an unlabelled record."""
    if record.mask is None:
        raise UserError(f"{record.id}: has no mask (the image is unlabelled).")
    return record.mask


def require_same_size(mask: np.ndarray, record: Record, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return ``mask`` (H, W) where it has the image's size; raises :class:`UserError` where it does not."""
    height, width = image_size(record.image) if size is None else size
    if mask.shape[:2] != (height, width):
        raise UserError(
            f"{record.mask}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, its image {record.image.name} is "
            f"{width}x{height}. Both must be equal; resize masks with nearest neighbour only, or correct the pair."
        )
    return mask


def refuse_faults(faults: Sequence[Fault], root: Path, description: str) -> None:
    """Raise one :class:`UserError` naming the first errors, if there are any."""
    errors = [fault for fault in faults if fault.severity == "error"]
    if not errors:
        return
    listed_ = "\n".join(f"  {shown(str(fault.path))}: {fault.message}" for fault in errors[:_SHOWN])
    more = f"\n  and {len(errors) - _SHOWN} more: `tskd check` lists them all" if len(errors) > _SHOWN else ""
    raise UserError(
        f"{root}: {len(errors)} problem(s) in the data folder (`tskd check` looks into its files too):\n"
        f"{listed_}{more}\nExpected:\n{description}"
    )


def missing(root: Path, what: str, description: str) -> UserError:
    """Return the error for a root in which ``what`` was not found."""
    return UserError(f"{root}: {what} not found. Expected:\n{description}")


BLIND_TEST_NOTE = "the official test part has no labels here: no official split is used, its images count as unlabelled"


def without_blind_test(records: Sequence[Record]) -> list[Record]:
    """Return the records, without any split where the official test part has no labels and so cannot score anything."""
    tested = [record for record in records if record.split == "test"]
    if any(record.mask is not None for record in tested):
        return list(records)
    return [replace(record, split=None) for record in records]


def with_classes(options: LayoutOptions, defaults: tuple[str, ...]) -> LayoutOptions:
    """Fill in a layout's fixed classes; the user may rename them, not change their number (:class:`UserError`)."""
    names = options.classes or defaults
    if len(names) != len(defaults):
        raise UserError(
            f"classes: {len(names)} given ({', '.join(names)}), this data set has {len(defaults)} "
            f"({', '.join(defaults)}). Give one name for each, or leave them out."
        )
    return replace(options, classes=names)


def class_names(count: int) -> tuple[str, ...]:
    """Return stand-in names for ``count`` foreground classes, at least one."""
    return ("foreground",) if count <= 1 else tuple(f"class{index}" for index in range(1, count + 1))


def window_note(window: tuple[float, float]) -> str:
    """Return what is told of a stated window."""
    return f"intensities: {window[0]:g} becomes black, {window[1]:g} white"


def window_notes(options: LayoutOptions) -> tuple[str, ...]:
    """Return what is told where a window is stated; without one 8-bit images stay as they are."""
    return () if options.window is None else (window_note(options.window),)


def classes_by_map(labels: Mapping[int, int]) -> tuple[tuple[str, ...], str]:
    """Return class names and a note from a map of mask values to class indices."""
    count = max((index for index in labels.values() if index != UNLABELLED), default=0)
    return class_names(count), f"classes not named: {count} by the label map of dataset.yaml"


class UnclearClasses(UserError):
    """The masks' values do not say which classes there are; ``likely`` is what most masks agree on."""

    def __init__(self, message: str, likely: tuple[str, ...]) -> None:
        super().__init__(message)
        self.likely = likely


def classes_by_values(masks: Sequence[Collection[int]], source: Path) -> tuple[tuple[str, ...], str]:
    """Return class names and a note from the values that each mask holds.

    0/1 and 0/255 (one mask this, another that) are one class, 0..K without a gap are K classes.
    Raises :class:`UnclearClasses` for anything else.
    """
    found = sorted({value for values in masks for value in values})
    if set(found) <= {0, 1, 255}:
        return class_names(1), f"classes not named: one, by the values of {len(masks)} masks"
    if found[-1] <= _MAX_COUNTED_CLASSES and set(range(1, found[-1] + 1)) <= set(found):
        return class_names(found[-1]), f"classes not named: {found[-1]}, by the values of {len(masks)} masks"
    raise UnclearClasses(
        f"{source}: the masks hold the values {listed(found)}, which do not say how many classes there are. "
        "Write dataset.yaml with `classes: [name, ...]` and, where the values are not 0 to K (or 0 and 255 for one "
        "class), `labels: {value: class}`. Values smeared around 0 and 255 come from JPEG: save masks as PNG.",
        _likely_classes(masks),
    )


def _likely_classes(masks: Sequence[Collection[int]]) -> tuple[str, ...]:
    """Return the classes that most masks agree on, so that the odd ones can be named; empty where none do."""
    labelled = [values for found in masks if (values := set(found)) - {0}]
    binary = sum(values <= {0, 255} or values <= {0, 1} for values in labelled)
    if 2 * binary > len(labelled):
        return ("foreground",)
    small = set().union(*(values for values in labelled if max(values) <= _MAX_COUNTED_CLASSES))
    count = next(index for index in range(len(small) + 1) if index + 1 not in small)
    return tuple(f"class{index}" for index in range(1, count + 1))


def single_subfolder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the first folder of ``root`` that has one of ``names``, whatever its case; None where there is none."""
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if path.is_dir() and path.name.lower() in names:
            return path
    return None
