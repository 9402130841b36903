"""DICOM frames as images and as masks; how files, pixels, series and grey levels are read is in the modules beside it.

No tag value ever reaches a message or a record, except sizes and spacings.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.pixels import apply_color_lut

from tskd.data.dicom_files import Head, is_dicom, kind_of, read_head, reading_dicom
from tskd.data.dicom_grey import GreyRule, grey_rule, rescaled, to_grey
from tskd.data.dicom_pixels import read_values
from tskd.data.dicom_series import Listing, Slice, grid_affines, list_series, plane_affine
from tskd.data.intensity import IntensityWindow

__all__ = [
    "GreyRule", "Head", "Listing", "Slice", "grey_rule", "grid_affines", "is_dicom", "kind_of",
    "list_series", "plane_affine", "read_frame", "read_head", "read_rescaled", "read_stored",
]  # fmt: skip


def read_stored(path: Path, *, index: int | None = None) -> np.ndarray:
    """Return one frame's stored values, (H, W) integers or (H, W, 3) uint8, without rescaling: for masks."""
    return _read(read_head(path), index)


def read_rescaled(path: Path, *, index: int | None = None) -> np.ndarray:
    """Return one frame's values in the unit that windows are stated in, (H, W), or (H, W, 3) uint8 in colour."""
    head = read_head(path)
    values = _read(head, index)
    return values if values.ndim == 3 else rescaled(head, values, index)


def read_frame(path: Path, *, index: int | None = None, window: IntensityWindow | None = None) -> np.ndarray:
    """Read one frame as 8-bit grey (H, W), or RGB (H, W, 3) where the file is in colour.

    Grey values are rescaled (slope and intercept or modality LUT), windowed as :mod:`tskd.data.dicom_grey` says, and
    inverted for MONOCHROME1, so that high is always bright. Raises :class:`UserError` naming the file.
    """
    head = read_head(path)
    values = _read(head, index)
    return values if values.ndim == 3 else to_grey(head, values, index, window)


def _read(head: Head, index: int | None) -> np.ndarray:
    values = read_values(head, index)
    with reading_dicom(head.path):
        if head.data.get("PhotometricInterpretation") == "PALETTE COLOR":
            whole = apply_color_lut(np.arange(1 << int(head.data.BitsStored), dtype=np.uint16), head.data)
            # tables of 16 bits that hold 8 are common, though PS3.3 C.7.6.3.1.5 has their values scaled
            return _in_8_bits(apply_color_lut(values, head.data), 16 if whole.max() > 255 else 8)
        return _in_8_bits(values, int(head.data.BitsStored)) if values.ndim == 3 else values


def _in_8_bits(colours: np.ndarray, bits: int) -> np.ndarray:
    return (colours >> max(bits - 8, 0)).astype(np.uint8)
