"""PH2: lesions in dermoscopy images (Mendonça et al., EMBC 2013)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tskd.data.files import plain
from tskd.data.images import map_labels, read_image
from tskd.data.layouts.base import (
    Layout,
    LayoutOptions,
    Search,
    is_image,
    missing,
    require_mask,
)
from tskd.data.layouts.pairs import read_paired_mask
from tskd.errors import UserError
from tskd.types import Record

CLASSES = ("lesion",)
DESCRIPTION = """\
  [PH2 Dataset images/]IMD003/IMD003_Dermoscopic_Image/IMD003.bmp
  [PH2 Dataset images/]IMD003/IMD003_lesion/IMD003_lesion.bmp     (1 or 24 bit, black and white)"""


def find(root: Path, options: LayoutOptions, search: Search) -> list[Record]:
    """Return one record per image folder; each image is a case of its own, and there is no official split."""
    folders = _case_folders(root, search)
    if not folders and not search.faults:
        raise missing(root, "any folder IMD*/IMD*_Dermoscopic_Image", DESCRIPTION)
    return [record for folder in folders if (record := _record(folder, search)) is not None]


def read_ph2_image(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one dermoscopy image, (H, W, 3) uint8."""
    return read_image(record.image, intensity=options.intensity)


def read_ph2_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read the lesion, (H, W) uint8: 0 and 1."""
    path = require_mask(record)
    return map_labels(read_paired_mask(record), None, classes=1, path=path)


def fits(root: Path) -> bool:
    """Tell by folders IMD*/IMD*_Dermoscopic_Image."""
    return bool(_case_folders(root, Search()))


def _case_folders(root: Path, search: Search) -> list[Path]:
    inner = root / "PH2 Dataset images"
    folders = search.listing(inner if inner.is_dir() else root, is_image, deep=False).folders
    named = [folder for folder in folders if folder.name.startswith("IMD")]
    return [folder for folder in named if _images_of(folder) in search.listing(folder, deep=False).folders]


def _images_of(folder: Path) -> Path:
    return folder / f"{folder.name}_Dermoscopic_Image"


def _record(folder: Path, search: Search) -> Record | None:
    name = plain(folder.name)
    images = search.by_id(_images_of(folder), is_image, deep=False)
    masks = search.by_id(folder / f"{folder.name}_lesion", is_image, deep=False, claims=[f"{name}_lesion"])
    search.name_unclaimed(masks, {masks.get(f"{name}_lesion")}, [f"{name}_lesion"])
    if name not in images:
        search.drop(UserError(f"{folder}: holds no image {name}.bmp. Expected:\n{DESCRIPTION}"), folder)
        return None
    return Record(name, name, images[name], masks.get(f"{name}_lesion"))


PH2 = Layout("ph2", CLASSES, find, read_ph2_image, read_ph2_mask, fits, DESCRIPTION)
