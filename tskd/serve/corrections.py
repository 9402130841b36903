"""Corrected masks as a data folder: what `tskd check` accepts and the next `tskd run --data` learns from."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from filelock import FileLock
from PIL import Image

from tskd.data.files import find_files, id_of
from tskd.data.layouts.dataset_yaml import DATASET_YAML, read_dataset_yaml
from tskd.deploy.label_files import write_file
from tskd.errors import UserError, require_folder
from tskd.machine.disk import write_atomic

SPLIT = "split.csv"
_LOCK = ".tskd-corrections.lock"  # hidden names are no data
_EARLIER = "earlier_masks"
_DIGITS = 16


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
        ``source`` lies in the folder only the mask is added.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / _LOCK):
            own = self._own_id(source)
            name = own or name_of(image)
            if own is None:
                self._add_new(self.root / "images" / f"{name}.png", image)
            replaced = self._add_mask(name, mask)
            self._describe()
            if own is None:
                self._list(name, case)
        return Saved(name, replaced)

    def has(self, image: np.ndarray, source: Path | None = None) -> bool:
        """Tell whether an image has a mask in the folder."""
        name = self._own_id(source) or name_of(image)
        return any((self.root / "masks").glob(f"{_literal(name)}.*")) if (self.root / "masks").is_dir() else False

    def _own_id(self, source: Path | None) -> str | None:
        images = (self.root / "images").resolve()
        if source is None or not source.resolve().is_relative_to(images):
            return None
        return id_of(source.resolve(), images)

    def _add_new(self, path: Path, image: np.ndarray) -> None:
        if not path.exists():
            write_file(path, _png(image))

    def _add_mask(self, name: str, mask: np.ndarray) -> bool:
        values = mask * np.uint8(255) if len(self.classes) == 1 else mask
        path, content = self.root / "masks" / f"{name}.png", _png(values)
        if path.exists() and path.read_bytes() == content:
            return False
        replaced = path.exists()
        if replaced:
            self._keep(path, name)
        write_file(path, content)
        return replaced

    def _keep(self, path: Path, name: str) -> None:
        """Copy an earlier mask to where it is no data, under a number that is free."""
        number = 1
        while (kept := self.root / _EARLIER / f"{name}.{number}.png").exists():
            number += 1
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f".{kept.name}")
        shutil.copyfile(path, partial)
        partial.replace(kept)

    def _describe(self) -> None:
        path = self.root / DATASET_YAML
        if not path.exists():
            text = yaml.safe_dump({"name": "corrections", "classes": list(self.classes)}, allow_unicode=True)
            write_atomic(path, text.encode())

    def _list(self, name: str, case: str) -> None:
        """Add a line to split.csv, whose other lines stay as they are."""
        path = self.root / SPLIT
        text = path.read_text(encoding="utf-8-sig") if path.exists() else "id,split,case\n"
        rows = csv.DictReader(io.StringIO(text, newline=""))
        columns = list(rows.fieldnames or [])
        if any(row.get("id") == name for row in rows):
            return
        line = io.StringIO(newline="")
        csv.DictWriter(line, columns, restval="", extrasaction="ignore", lineterminator="\n").writerow(
            {"id": name, "split": "", "case": case, "subject": case}
        )
        write_atomic(path, (text if text.endswith("\n") else f"{text}\n").encode() + line.getvalue().encode())

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
        split = self.root / SPLIT
        if split.exists():
            columns = set(next(csv.reader(split.read_text(encoding="utf-8-sig").splitlines()), []))
            if not {"id", "split"} <= columns or not columns & {"case", "subject"}:
                raise UserError(f"{split}: lacks a column id, split or case, which corrections need. Add it.")


def name_of(image: np.ndarray) -> str:
    """Return a name that tells nothing of a patient: a digest of the pixels."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:_DIGITS]


def _literal(name: str) -> str:
    return "".join(f"[{mark}]" if mark in "*?[" else mark for mark in name)


def _png(pixels: np.ndarray) -> bytes:
    grey = pixels.ndim == 3 and bool((pixels == pixels[..., :1]).all())
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0]) if grey else pixels).save(content, "PNG")
    return content.getvalue()
