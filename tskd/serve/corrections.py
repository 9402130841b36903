"""Corrected masks as a data folder: what `tskd check` accepts and the next `tskd run --data` learns from."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from filelock import FileLock

from tskd.data.files import find_files, id_of
from tskd.data.layouts.dataset_yaml import DATASET_YAML, read_dataset_yaml
from tskd.data.png import packed, without_idle_colours
from tskd.deploy.label_files import draft_all
from tskd.errors import UserError, refused_by_system, require_folder
from tskd.serve.limits import Refused

SPLIT = "split.csv"
_LOCK = ".tskd-corrections.lock"  # hidden names are no data
_EARLIER = "earlier_masks"
_DIGITS = 16

File = tuple[Path, bytes]
"""A place and what is to lie there."""


@dataclass(frozen=True)
class Saved:
    """Where a correction is."""

    id: str
    replaced: bool
    """Whether an earlier mask of the same image was moved to ``earlier_masks``."""


class Corrections:
    """A data folder in the ``folder`` layout that corrections are added to; nothing in it is overwritten."""

    def __init__(self, root: Path, classes: tuple[str, ...]) -> None:
        """Open the folder, which may be missing; raises UserError where corrections would not fit what is there."""
        self.root, self.classes = root, classes
        require_folder(root)
        self._require_fitting()

    def save(self, image: np.ndarray, mask: np.ndarray, *, case: str, source: Path | None = None) -> Saved:
        """Add an image (H, W, 3) uint8 and its mask (H, W) of class indices.

        Its name is a digest of its pixels; ``case`` holds together what a split must not part. Of an image whose
        ``source`` lies in the folder only the mask is added. Raises OSError where the disk refuses, UserError where
        split.csv takes no line; then nothing is changed.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / _LOCK):
            own = self._own_id(source)
            name = own or name_of(image)
            masks = list(self._masks(name, mask))
            added = [] if own else self._image(name, image)
            listed = [] if own else self._listing(name, case)
            self._write([*added, *masks, *self._description(), *listed])
        return Saved(name, replaced=len(masks) > 1)

    def has(self, image: np.ndarray, source: Path | None = None) -> bool:
        """Tell whether an image has a mask in the folder."""
        name = self._own_id(source) or name_of(image)
        return any((self.root / "masks").glob(f"{_literal(name)}.*")) if (self.root / "masks").is_dir() else False

    def _own_id(self, source: Path | None) -> str | None:
        images = (self.root / "images").resolve()
        if source is None or not source.resolve().is_relative_to(images):
            return None
        return id_of(source.resolve(), images)

    def _write(self, files: Sequence[File]) -> None:
        """Write all files or, where the disk refuses one, none: half a correction would be an image without a mask."""
        drafts = draft_all(files)
        with ExitStack() as undo:
            for one in drafts:
                undo.callback(one.discard)
            for one in drafts:
                is_new = not one.path.exists()
                one.publish()
                if is_new and not one.path.is_relative_to(self.root / _EARLIER):  # the only copy of what was replaced
                    undo.callback(one.path.unlink)
            undo.pop_all()

    def _image(self, name: str, image: np.ndarray) -> list[File]:
        path = self.root / "images" / f"{name}.png"
        return [] if path.exists() else [(path, packed(without_idle_colours(image)))]

    def _masks(self, name: str, mask: np.ndarray) -> Iterator[File]:
        """Yield a mask, after a copy of the one that it replaces; nothing where it is there already."""
        values = mask * np.uint8(255) if len(self.classes) == 1 else mask
        path, content = self.root / "masks" / f"{name}.png", packed(values)
        if path.exists():
            if (before := path.read_bytes()) == content:
                return
            yield self._earlier(name), before
        yield path, content

    def _earlier(self, name: str) -> Path:
        """Return where an earlier mask is no data, under a number that is free."""
        number = 1
        while (kept := self.root / _EARLIER / f"{name}.{number}.png").exists():
            number += 1
        return kept

    def _description(self) -> list[File]:
        path = self.root / DATASET_YAML
        text = yaml.safe_dump({"name": "corrections", "classes": list(self.classes)}, allow_unicode=True)
        return [] if path.exists() else [(path, text.encode())]

    def _listing(self, name: str, case: str) -> list[File]:
        """Return split.csv with a line more; its other lines stay as they are."""
        path = self.root / SPLIT
        text = _split_text(path)
        rows = csv.DictReader(io.StringIO(text, newline=""))
        columns = list(rows.fieldnames or [])
        if any(row.get("id") == name for row in rows):
            return []
        line = io.StringIO(newline="")
        csv.DictWriter(line, columns, restval="", extrasaction="ignore", lineterminator="\n").writerow(
            {"id": name, "split": "", "case": case, "subject": case}
        )
        return [(path, (text if text.endswith("\n") else f"{text}\n").encode() + line.getvalue().encode())]

    def _require_fitting(self) -> None:
        stated = read_dataset_yaml(self.root)
        path = self.root / DATASET_YAML
        if stated.classes is None and find_files(self.root / "images").files:
            raise UserError(f"{path}: names no classes. Write `classes: [{', '.join(self.classes)}]` into it.")
        if stated.classes not in (None, self.classes):
            raise UserError(
                f"{path}: its classes are {', '.join(stated.classes or ())}, the model's {', '.join(self.classes)}. "
                "Give another folder with --corrections."
            )
        if stated.labels is not None or stated.window is not None:
            raise UserError(
                f"{path}: states labels or a window, and corrections are 8-bit images with class indices. "
                "Give another folder with --corrections."
            )
        _split_text(self.root / SPLIT)


def name_of(image: np.ndarray) -> str:
    """Return a name that tells nothing of a patient: a digest of the pixels."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:_DIGITS]


def not_saved(error: OSError | UserError, root: Path) -> Refused:
    """Return the answer to a correction that the data folder did not take: of its path only what is ours is told."""
    if isinstance(error, UserError):
        return Refused(422, f"The correction is not saved. {str(error).replace(f'{root}{os.sep}', '')}")
    if error.errno is None:
        raise error  # of a library, not of the system: a defect
    place = Path(os.fsdecode(error.filename or ""))
    below = place.relative_to(root).parts[:1] if place.is_relative_to(root) else ()
    said = refused_by_system(OSError(error.errno, error.strerror, *below))
    return Refused(507, f"The correction is not saved. {said}")


def _split_text(path: Path) -> str:
    """Return what split.csv says, its head alone where there is none; raises UserError where no line can be added."""
    if not path.exists():
        return "id,split,case\n"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a CSV file in UTF-8. Save it as CSV in UTF-8.") from error
    columns = set(next(csv.reader(text.splitlines()), []))
    if not {"id", "split"} <= columns or not columns & {"case", "subject"}:
        raise UserError(f"{path}: lacks a column id, split or case, which corrections need. Add it.")
    return text


def _literal(name: str) -> str:
    return "".join(f"[{mark}]" if mark in "*?[" else mark for mark in name)
