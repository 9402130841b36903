"""The rule by which stored DICOM values become 8-bit grey levels: one for all slices of a series.

Sources: DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT, windows). The rules, the first that applies: the given
window; what the files state (window, else VOI LUT); at most 8 bits: their full range; CT: :data:`CT_WINDOW`; floating
point from 0 to 1: that range; else the percentiles of the series, which are the files beside this one that have its
series UID. So one value has one grey level in the whole series, whichever of its files are read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi

from tskd.data.dicom_files import Head, is_dicom, kind_of, number, read_head, reading_dicom
from tskd.data.dicom_pixels import read_values
from tskd.data.dicom_series import functional_group, names_of
from tskd.data.files import find_files, is_hidden
from tskd.data.intensity import UNIT_RANGE, IntensityWindow, apply_window, require_finite
from tskd.data.memory_files import MemoryFolder
from tskd.data.nifti import PERCENTILES
from tskd.errors import UserError

CT_WINDOW = IntensityWindow(-160, 240)
"""Hounsfield units for CT files without a window of their own: abdominal soft tissue (width 400, level 40)."""

AT_ONCE = 2**22
"""Pixels that are windowed at once: the largest image is 22 times as many."""

_REMEMBERED = 256  # folders
_SAMPLED_FRAMES = 2048
_SAMPLED = 2**22  # values of a series that its percentiles are taken from: all of them up to 16 slices of 512 x 512


@dataclass(frozen=True)
class GreyRule:
    """How one frame's values become grey."""

    window: IntensityWindow
    """In rescaled units, or in those of the VOI LUT."""
    told: str
    """The rule in words."""
    table: bool = False
    """Whether the VOI LUT is applied before the window."""


def to_grey(head: Head, values: np.ndarray, index: int | None, window: IntensityWindow | None) -> np.ndarray:
    """Return stored values (H, W) as uint8, high always bright; raises :class:`UserError` naming the file."""
    rule = grey_rule(head, window, index)
    shown = np.empty(values.shape, np.uint8)
    rows = max(AT_ONCE // values.shape[1], 1)
    with reading_dicom(head.path):
        for start in range(0, len(values), rows):
            part = slice(start, start + rows)
            shown[part] = _windowed(head, values[part], index, rule)
    return shown


def _windowed(head: Head, values: np.ndarray, index: int | None, rule: GreyRule) -> np.ndarray:
    known = rescaled(head, values, index)
    if rule.table:
        known = apply_voi(np.rint(known).astype(np.int32), head.data)
    # low is taken off here: 32-bit values would lose their last digits in single precision
    window = IntensityWindow(0, rule.window.high - rule.window.low)
    shown = apply_window(known.astype(np.float64) - rule.window.low, window)
    return 255 - shown if head.data.get("PhotometricInterpretation") == "MONOCHROME1" else shown


def grey_rule(head: Head, window: IntensityWindow | None, index: int | None = None) -> GreyRule:
    """Return the rule for a frame: see the module."""
    if window is not None:
        return GreyRule(window, "the given window")
    with reading_dicom(head.path):
        return _stated_rule(head, index) or _usual_rule(head, index)


def _stated_rule(head: Head, index: int | None) -> GreyRule | None:
    own = _own_window(head.data, index)
    if own is not None:
        return GreyRule(_agreed(head, own, index), "the window that the files state (WindowCenter, WindowWidth)")
    table = _own_table(head.data)
    return None if table is None else GreyRule(table, "the table that the files state (VOI LUT)", table=True)


def _usual_rule(head: Head, index: int | None) -> GreyRule:
    slope, intercept = _rescale(head, index)
    plain = (slope, intercept) == (1, 0) and "ModalityLUTSequence" not in head.data
    if plain and (full := _full_range(head)) is not None:
        return GreyRule(full, "at most 8 bits: their full range")
    if head.data.get("Modality") == "CT":
        return GreyRule(CT_WINDOW, "HU, the default for CT without a window of its own")
    return _by_series(head)


def _by_series(head: Head) -> GreyRule:
    found = _known_of(head).statistics(head)
    if found.floating and found.least >= 0 and found.most <= 1:
        return GreyRule(UNIT_RANGE, "floating point from 0 to 1")
    low, high = found.low, found.high
    if not low < high:  # nearly all of one value, such as zero around a small object
        low, high = found.least, found.most
    told = f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g} of each series"
    return GreyRule(IntensityWindow(low, high if high > low else low + 1), told)


def rescaled(head: Head, values: np.ndarray, index: int | None) -> np.ndarray:
    """Return stored values after the modality LUT or slope and intercept; UserError where they are not finite."""
    if "ModalityLUTSequence" in head.data:
        return apply_modality_lut(values, head.data)
    slope, intercept = _rescale(head, index)
    kind = np.float64 if values.dtype.itemsize > 2 else np.float32
    known = np.add(np.multiply(values, slope, dtype=kind), intercept, dtype=kind)
    require_finite(known, head.path)
    return known


def _rescale(head: Head, index: int | None) -> tuple[float, float]:
    source = functional_group(head.data, index, "PixelValueTransformationSequence")
    slope, intercept = number(source, "RescaleSlope"), number(source, "RescaleIntercept")
    for keyword, found in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        if (found is None and source.get(keyword) not in (None, "")) or (keyword == "RescaleSlope" and found == 0):
            raise UserError(
                f"{head.path}: {keyword} is not a number to rescale values by. Copy the file again, or remove it."
            )
    return 1.0 if slope is None else slope, intercept or 0.0


def _own_window(data: pydicom.Dataset, index: int | None) -> IntensityWindow | None:
    """The first window of the file, PS3.3 C.11.2.1.2.1: LINEAR maps c - 0.5 -+ (w - 1) / 2, LINEAR_EXACT c -+ w / 2."""
    source = functional_group(data, index, "FrameVOILUTSequence")
    centre, width = number(source, "WindowCenter"), number(source, "WindowWidth")
    if centre is None or width is None or not width > 0:
        return None
    if source.get("VOILUTFunction") == "LINEAR_EXACT" or width <= 1:
        return IntensityWindow(centre - width / 2, centre + width / 2)
    return IntensityWindow(centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _own_table(data: pydicom.Dataset) -> IntensityWindow | None:
    """Return the range of the VOI LUT's output where the file has one (C.11.2.1.1)."""
    tables = data.get("VOILUTSequence")
    if not tables:
        return None
    return IntensityWindow(0, (1 << int(tables[0].LUTDescriptor[2])) - 1)


def _full_range(head: Head) -> IntensityWindow | None:
    bits = head.number("BitsStored")
    if bits is None or not 1 <= bits <= 8:
        return None
    levels = 1 << int(bits)
    return (
        IntensityWindow(-levels // 2, levels // 2 - 1)
        if head.number("PixelRepresentation")
        else IntensityWindow(0, levels - 1)
    )


def _agreed(head: Head, own: IntensityWindow, index: int | None) -> IntensityWindow:
    """Return one window for all slices of a series: the medians of theirs where they differ.

    Only slices that state their plane are compared; radiographs of one series have windows of their own.
    """
    source = functional_group(head.data, index, "PlaneOrientationSequence")
    if not source.get("ImageOrientationPatient"):
        return own
    windows = _known_of(head).windows(head)
    if not windows:
        return own
    low, high = (float(np.median([getattr(one, end) for one in windows])) for end in ("low", "high"))
    return IntensityWindow(low, high) if low < high else own


@dataclass(frozen=True)
class _Statistics:
    """Of all rescaled values of a series."""

    least: float
    low: float
    """The lower of :data:`PERCENTILES`."""
    high: float
    most: float
    floating: bool


@dataclass(frozen=True)
class _Member:
    """One file of a series."""

    path: Path
    stamp: tuple[int, int]
    """Time of change and size."""


@dataclass
class _Folder:
    """What a folder held when it was looked through."""

    changed: int
    """Time of the last change in its list of files."""
    stamps: dict[str, tuple[int, int]]
    """Of all of its files, by name."""
    series: dict[object, list[_Member]]
    """Its DICOM images, by series."""

    def holds(self, folder: Path, changed: int) -> bool:
        """Tell whether its series are still those; masks that are written beside them, one a slice, change nothing."""
        if self.changed == changed:
            return True
        now = _stamps(folder)
        differing = {name for name, _ in self.stamps.items() ^ now.items()}
        members = {one.path.name for series in self.series.values() for one in series}
        if any(name in members or (name in now and _series_in(folder / name)) for name in differing):
            return False
        self.changed, self.stamps = changed, now
        return True


class _Series:
    """What is known of the series in the folders that were read, so that each is looked through once."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.folders: dict[Path, _Folder] = {}
        self.known: dict[tuple[object, ...], _Statistics | tuple[IntensityWindow, ...]] = {}

    def statistics(self, head: Head) -> _Statistics:
        with self.lock:
            members = self._members(head)
            key = ("statistics", *members)
            if key not in self.known:
                self.known[key] = _statistics(head, [one.path for one in members])
            found = self.known[key]
        assert isinstance(found, _Statistics)
        return found

    def windows(self, head: Head) -> tuple[IntensityWindow, ...]:
        with self.lock:
            members = self._members(head)
            key = ("windows", *members)
            if key not in self.known:
                self.known[key] = tuple(_windows([one.path for one in members]))
            found = self.known[key]
        assert isinstance(found, tuple)
        return found

    def _members(self, head: Head) -> tuple[_Member, ...]:
        """Return the files of a file's series in its folder, anew where the folder or the file has changed."""
        folder, own = head.path.parent, _Member(head.path, _stamp(head.path))
        changed = folder.stat().st_mtime_ns
        for _ in range(2):
            if folder not in self.folders or not self.folders[folder].holds(folder, changed):
                if len(self.folders) >= _REMEMBERED:
                    self.folders.clear()
                    self.known.clear()
                self.folders[folder] = _Folder(changed, _stamps(folder), _look_through(folder))
            members = self.folders[folder].series.get(names_of(head).series, [])
            if own in members:
                return tuple(members)
            del self.folders[folder]
        return (own,)


_SERIES = _Series()


def _known_of(head: Head) -> _Series:
    """Return what is known of the series in a file's folder; a folder in memory keeps it itself, until it is closed."""
    folder = head.path.parent
    if isinstance(folder, MemoryFolder):
        known: _Series = folder.kept.setdefault(_Series, _Series())
        return known
    return _SERIES


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every file's stamp by its name; none of a folder in memory, which never changes."""
    if isinstance(folder, MemoryFolder):
        return {}
    stamps = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if not is_hidden(entry.name) and entry.is_file():
                    status = entry.stat()
                    stamps[entry.name] = status.st_mtime_ns, status.st_size
            except OSError:  # gone by now, or not to be looked at: whoever reads it is told
                continue
    return stamps


def _look_through(folder: Path) -> dict[object, list[_Member]]:
    found: dict[object, list[_Member]] = {}
    for path in find_files(folder, deep=False).files:
        try:
            if series := _series_in(path):
                found.setdefault(series[0], []).append(_Member(path, _stamp(path)))
        except OSError:  # as below
            continue
    return found


def _series_in(path: Path) -> tuple[object] | None:
    """Return the series that a DICOM image belongs to; None for any other file."""
    try:
        if not is_dicom(path):
            return None
        head = read_head(path)
        return (names_of(head).series,) if kind_of(head) is None and head.pixels is not None else None
    except (UserError, OSError):  # whoever reads the file itself is told
        return None


def _indices(head: Head) -> list[int | None]:
    return [None] if head.frames == 1 else list(range(head.frames))


def _windows(paths: list[Path]) -> Iterator[IntensityWindow]:
    for path in paths:
        head = read_head(path)
        found = [_own_window(head.data, index) for index in _indices(head)]
        yield from (window for window in found if window is not None)


def _statistics(head: Head, paths: list[Path]) -> _Statistics:
    """Return the percentiles of a series, of evenly drawn pixels where it is large; unreadable files do not count."""
    heads = [one for path in paths if (one := _readable(path)) is not None]
    frames = [(one, index) for one in heads for index in _indices(one)]
    frames = frames[:: len(frames) // _SAMPLED_FRAMES + 1]
    each = max(_SAMPLED // max(len(frames), 1), 1024)
    parts = [part for one, index in frames if (part := _sample(one, index, each)) is not None]
    values = np.concatenate(parts) if parts else np.empty(0)
    if values.size == 0:
        raise UserError(
            f"{head.path}: its series holds no pixel that counts for its grey levels. State a window (data.window)."
        )
    low, high = np.percentile(values, PERCENTILES)
    floating = head.pixels is not None and head.pixels.keyword != "PixelData"
    return _Statistics(float(values.min()), float(low), float(high), float(values.max()), floating)


def _readable(path: Path) -> Head | None:
    try:
        return read_head(path)
    except UserError:
        return None


def _sample(head: Head, index: int | None, count: int) -> np.ndarray | None:
    """Return at most ``count`` rescaled values of a frame, without its padding; None where it is unreadable."""
    try:
        values = read_values(head, index)
        if values.ndim == 3:
            return None
        drawn = values.ravel()[:: values.size // count | 1]
        return rescaled(head, drawn[_counts(head, drawn)], index)
    except UserError:  # whoever reads the frame itself is told
        return None


def _counts(head: Head, values: np.ndarray) -> np.ndarray:
    """Tell which stored values are no padding (PS3.3 C.7.5.1.1.2)."""
    padding, limit = head.number("PixelPaddingValue"), head.number("PixelPaddingRangeLimit")
    if padding is None:
        return np.isfinite(values)
    low, high = sorted((padding, padding if limit is None else limit))
    return (values < low) | (values > high)
