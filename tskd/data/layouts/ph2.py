"""PH2: lesions in dermoscopy images (Mendonça et al., EMBC 2013)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tskd.data.images import map_labels, read_image, read_mask_indices
from tskd.data.layouts.base import Layout, LayoutOptions, missing, require_mask, require_same_size
from tskd.errors import UserError
from tskd.types import Record

CLASSES = ("lesion",)
DESCRIPTION = """\
  [PH2 Dataset images/]IMD003/IMD003_Dermoscopic_Image/IMD003.bmp
  [PH2 Dataset images/]IMD003/IMD003_lesion/IMD003_lesion.bmp     (1 or 24 bit, black and white)"""


def find(root: Path, options: LayoutOptions) -> list[Record]:
    """Return one record per image folder; each image is a case of its own, and there is no official split."""
    folders = _case_folders(root)
    if not folders:
        raise missing(root, "any folder IMD*/IMD*_Dermoscopic_Image", DESCRIPTION)
    return [_record(folder) for folder in folders]


def read_ph2_image(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one dermoscopy image, (H, W, 3) uint8."""
    return read_image(record.image, intensity=options.intensity)


def read_ph2_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read the lesion, (H, W) uint8: 0 and 1."""
    path = require_mask(record)
    return map_labels(require_same_size(read_mask_indices(path), record), None, classes=1, path=path)


def fits(root: Path) -> bool:
    """Tell by folders IMD*/IMD*_Dermoscopic_Image."""
    return bool(_case_folders(root))


def _case_folders(root: Path) -> list[Path]:
    inner = root / "PH2 Dataset images"
    folders = (inner if inner.is_dir() else root).glob("IMD*")
    return sorted(folder for folder in folders if (folder / f"{folder.name}_Dermoscopic_Image").is_dir())


def _record(folder: Path) -> Record:
    name = folder.name
    image = folder / f"{name}_Dermoscopic_Image" / f"{name}.bmp"
    if not image.is_file():
        raise UserError(f"{image}: there is no such file. Expected:\n{DESCRIPTION}")
    mask = folder / f"{name}_lesion" / f"{name}_lesion.bmp"
    return Record(name, name, image, mask if mask.is_file() else None)


PH2 = Layout("ph2", CLASSES, find, read_ph2_image, read_ph2_mask, fits, DESCRIPTION)
