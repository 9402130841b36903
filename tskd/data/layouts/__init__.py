"""Every known way of keeping a data set on disk: adding one is one file here and one line in ``LAYOUTS``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tskd.data.codes import ClassCode
from tskd.data.files import find_files, plain
from tskd.data.layouts.autooral import AUTOORAL
from tskd.data.layouts.base import (
    Description,
    Fault,
    Layout,
    LayoutOptions,
    Search,
    UnclearClasses,
    fault_of,
    refuse_faults,
    window_notes,
    with_classes,
)
from tskd.data.layouts.chaos import CHAOS_CT, CHAOS_MR
from tskd.data.layouts.dicom import DICOM
from tskd.data.layouts.drive import DRIVE
from tskd.data.layouts.folder import FOLDER
from tskd.data.layouts.kidneyus import KIDNEYUS
from tskd.data.layouts.nifti import NIFTI
from tskd.data.layouts.ph2 import PH2
from tskd.data.reading import reading
from tskd.errors import UserError
from tskd.types import UNLABELLED, Record

__all__ = ["LAYOUTS", "Dataset", "Fault", "Layout", "LayoutOptions", "detect", "open_dataset", "survey"]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (FOLDER, DRIVE, PH2, CHAOS_CT, CHAOS_MR, KIDNEYUS, AUTOORAL, NIFTI, DICOM)
}


@dataclass(frozen=True)
class Dataset:
    """The records of one data set and how to read them."""

    name: str
    layout: str
    root: Path
    classes: tuple[str, ...]
    """Foreground class names; class index = position + 1."""
    records: tuple[Record, ...]
    options: LayoutOptions
    notes: tuple[str, ...] = ()
    """What the user should know, such as the intensity scaling in use."""
    incomplete: bool = False
    """Whether cases are left out because of faults, which only :func:`survey` lets pass."""
    codes: Mapping[str, ClassCode] = field(default_factory=dict)
    """What classes are in a terminology, of those of which dataset.yaml states it."""
    warnings: tuple[str, ...] = ()
    """Those of the notes that the user should act on."""

    def read_image(self, record: Record) -> np.ndarray:
        """Read one image, (H, W, 3) uint8 RGB; raises :class:`UserError` naming file and remedy."""
        with reading(record.image):
            return LAYOUTS[self.layout].read_image(record, self.options)

    def read_mask(self, record: Record) -> np.ndarray:
        """Read one mask, (H, W) uint8: 0 background, 1..K, ``UNLABELLED``; raises :class:`UserError`."""
        with reading(record.mask or record.image):
            mask = LAYOUTS[self.layout].read_mask(record, self.options)
        if (mask == UNLABELLED).all():
            raise UserError(f"{record.mask}: no pixel of this mask is labelled. Correct it, or take the file away.")
        return mask


def detect(root: Path) -> str:
    """Return the one layout whose evidence is in ``root``; raises :class:`UserError` where none or several fit."""
    require_folder(root)
    fitting = [layout.name for layout in LAYOUTS.values() if layout is not FOLDER and layout.fits(root)]
    if not fitting and FOLDER.fits(root):  # the plainest evidence, a folder images/, is also part of other layouts
        return FOLDER.name
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(f"{root}: fits the layouts {', '.join(fitting)}. Say which one with --layout (data.layout).")
    if problems := find_files(root).problems:  # which may be why
        raise UserError("\n".join(f"{path}: {problem}" for path, problem in problems))
    names = ", ".join(layout.name for layout in LAYOUTS.values())
    raise UserError(
        f"{root}: no known layout was recognised. The simplest:\n{FOLDER.description}\nPut images and masks so, or say "
        f"which other one it is with --set data.layout=NAME: {names} (docs/how-to/other-layouts.md shows their trees)."
    )


def open_dataset(root: Path, layout: str = "auto", options: LayoutOptions | None = None) -> Dataset:
    """Find the records of a data set.

    ``layout`` is a name in ``LAYOUTS`` or ``auto``, which goes by the folder names. Raises :class:`UserError` where the
    root or the layout is unknown, or where the data set has structural problems.
    """
    dataset, faults = survey(root, layout, options)
    refuse_faults(faults, Path(root), LAYOUTS[dataset.layout].description)
    warnings = tuple(f"{fault.path.name}: {fault.message}" for fault in faults)
    return replace(dataset, notes=(*dataset.notes, *warnings), warnings=warnings)


def survey(root: Path, layout: str = "auto", options: LayoutOptions | None = None) -> tuple[Dataset, tuple[Fault, ...]]:
    """Return what is sound of a data set, and every fault of its structure.

    Raises :class:`UserError` only where there is nothing to look at: no such folder, layout, or tree in it.
    """
    root = Path(root)
    try:
        require_folder(root)
        name = detect(root) if layout == "auto" else layout
        if name not in LAYOUTS:
            raise UserError(f"layout {name!r} is unknown. Allowed: auto, {', '.join(LAYOUTS)}.")
        return _survey(root, LAYOUTS[name], options or LayoutOptions())
    except OSError as error:  # of folders that are named, not found: found ones are faults
        raise UserError(
            f"{error.filename or root}: cannot be looked at ({error.strerror}). Allow it or remove it."
        ) from None


def _survey(root: Path, layout: Layout, options: LayoutOptions) -> tuple[Dataset, tuple[Fault, ...]]:
    search = Search()
    records = layout.find(root, options, search)
    _require_own_names(records, search)
    described = _describe(layout, root, options, records, search)
    notes = (*described.notes, *search.notes, *([search.left_out] if search.left_out else []))
    classes = described.options.classes or layout.classes
    dataset = Dataset(
        described.name, layout.name, root, classes, tuple(records), described.options, notes, search.incomplete,
        described.codes,
    )  # fmt: skip
    return dataset, tuple(search.faults)


def _require_own_names(records: Sequence[Record], search: Search) -> None:
    """Note a fault where two images have one id: one would take the mask of the other."""
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(record.id, record)
        if other is not record:
            search.fault(record.image, f"is called {record.id} here, and so is {other.image}. Rename one.")


def require_folder(root: Path) -> None:
    """Raise :class:`UserError` where ``root`` is not a folder."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "there is no such folder"
        raise UserError(f"{root}: {what}. Give the folder that holds the data set.")


def _describe(layout: Layout, root: Path, options: LayoutOptions, records: list[Record], search: Search) -> Description:
    try:
        if layout.describe is not None:
            return layout.describe(root, options, records)
        return Description(plain(root.resolve().name), with_classes(options, layout.classes), window_notes(options))
    except UserError as error:
        fault = fault_of(error, root)
        if all(fault.path != other.path for other in search.faults):
            search.faults.append(fault)
        likely = error.likely if isinstance(error, UnclearClasses) else layout.classes
        return Description(plain(root.resolve().name), replace(options, classes=options.classes or likely or None))
