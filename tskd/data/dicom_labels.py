"""Which DICOM objects (SEG, RTSTRUCT) label which slices, and the classes that they draw on them.

An object labels the series that it refers to; where none of these is there, any series of its frame of reference on
whose slices everything of it lies. There it labels the images that it refers to (all of them, where it names none) and
those it draws on; what it leaves out of them is background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from tskd.data import dicom_contours, dicom_seg
from tskd.data.dicom_drawn import Drawn, View
from tskd.data.dicom_files import is_dicom, kind_of, read_head
from tskd.data.dicom_series import Names, Slice, names_of, slice_at
from tskd.data.files import plain, shown
from tskd.errors import UserError
from tskd.types import UNLABELLED, Record

READERS: dict[str, Callable[[Path], Drawn]] = {
    dicom_seg.KIND: dicom_seg.read_segments,
    dicom_contours.KIND: dicom_contours.read_contours,
}
"""By kind (:func:`tskd.data.dicom_files.kind_of`)."""
_SHOWN = 5


@dataclass
class Matches:
    """What objects label."""

    labels: dict[tuple[Path, int | None], Path] = field(default_factory=dict)
    """File and frame of a slice to the object that labels it."""
    faults: list[tuple[Path, str, bool]] = field(default_factory=list)
    """File, message, and whether it is an error: else it is a warning."""
    notes: list[str] = field(default_factory=list)


def is_label_object(path: Path) -> bool:
    """Tell whether a file is a SEG or RTSTRUCT; raises :class:`UserError` where it is DICOM and damaged."""
    return is_dicom(path) and kind_of(read_head(path)) in READERS


def read_drawn(path: Path) -> Drawn:
    """Read a SEG or RTSTRUCT; raises :class:`UserError` naming the file."""
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)  # every slice of a series asks for the same one
def _read(path: Path, modified_ns: int) -> Drawn:
    return READERS[kind_of(read_head(path)) or ""](path)


def match(objects: Iterable[Path], slices: Sequence[Slice], wanted: Container[tuple[Path, int | None]]) -> Matches:
    """Lay every object over the series that it was drawn on; what does not fit, or fits twice, is told.

    Slices (by file and frame) that are not ``wanted`` have a label already.
    """
    matches = Matches()
    series = _series(slices)
    claims: dict[tuple[Path, int | None], list[Path]] = {}
    for path in objects:
        try:
            drawn = read_drawn(path)
        except UserError as error:
            matches.faults.append((path, str(error).removeprefix(f"{path}: "), False))
            continue
        for members in _drawn_on(drawn, series, matches):
            for item in members:
                if (item.path, item.index) in wanted:
                    claims.setdefault((item.path, item.index), []).append(path)
    _settle(claims, matches)
    return matches


@dataclass(frozen=True)
class _Series:
    """The slices of one series with what an object may refer to."""

    name: object
    slices: tuple[Slice, ...]
    names: tuple[Names, ...]

    def referred(self, drawn: Drawn) -> frozenset[str]:
        """Return the images of the series that an object refers to."""
        return drawn.references.instances & {names.instance for names in self.names}


def _series(slices: Sequence[Slice]) -> list[_Series]:
    names = {path: names_of(read_head(path)) for path in {item.path for item in slices}}
    groups: dict[object, list[Slice]] = {}
    for item in slices:
        groups.setdefault(names[item.path].series, []).append(item)
    return [_Series(name, tuple(items), tuple(names[item.path] for item in items)) for name, items in groups.items()]


def _drawn_on(drawn: Drawn, series: Sequence[_Series], matches: Matches) -> list[list[Slice]]:
    """Return the slices that an object labels, series by series."""
    stated = [one for one in series if one.name in drawn.references.series]
    stated = [one for one in stated if one.referred(drawn)] or stated  # copies of scans may share the series' UID
    shared = [one for one in series if {names.frame for names in one.names} & drawn.references.frame]
    found = []
    for one in stated or shared:
        views = [View.of(item) for item in one.slices]
        hits = [None if view is None else drawn.lying_on(view) for view in views]
        lying = [hit for hit in hits if hit is not None]
        placed = np.logical_or.reduce(lying) if lying else np.zeros(1, bool)
        if placed.any() and (stated or placed.all()):
            found.append(_labelled(drawn, one, hits))
        if stated and not (placed.any() and placed.all()):
            matches.faults.append((drawn.path, _off(placed), False))
    if found:
        matches.notes += [f"{shown(drawn.path.name)}: {note}" for note in drawn.notes]
    return found


def _labelled(drawn: Drawn, series: _Series, hits: Sequence[np.ndarray | None]) -> list[Slice]:
    """Return the slices that it refers to, all where it names none of a series, else those that it draws on."""
    referred = series.referred(drawn)
    whole = series.name in drawn.references.series and not drawn.references.instances
    return [
        item
        for item, names, hit in zip(series.slices, series.names, hits, strict=True)
        if hit is not None and (names.instance in referred if referred else whole or hit.any())
    ]


def _off(placed: np.ndarray) -> str:
    """Return what is wrong with an object that does not lie on the series that it refers to, wholly or in part."""
    if not placed.size:
        return "draws nothing, so it labels nothing. Take it out, or draw it again."
    if placed.any():
        return (
            f"{np.count_nonzero(~placed)} of its {placed.size} frames or contours lie on no slice of the series that "
            "it refers to, and are left out. Add the slices that are missing, or draw it again on these."
        )
    return (
        "refers to a series here and lies on none of its slices: place, orientation, pixel spacing or size are others. "
        "It is not used as a label. Resample it to the series (nearest neighbour), or take it out."
    )


def _settle(claims: Mapping[tuple[Path, int | None], Sequence[Path]], matches: Matches) -> None:
    """Give each slice its one label; where there are several, name them and take none."""
    several: Counter[tuple[Path, ...]] = Counter()
    for place, paths in claims.items():
        if len(paths) == 1:
            matches.labels[place] = paths[0]
        else:
            several[tuple(paths)] += 1
    for (first, *others), count in several.items():
        named = ", ".join(shown(path.name) for path in others[:_SHOWN])
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        text = f"labels {count} slices that are labelled by {named}{more} as well. Keep one of them, or merge them."
        matches.faults.append((first, text, True))


def names_in(objects: Iterable[Path]) -> tuple[str, ...]:
    """Return the names of all parts of objects in the order of their numbers, each once."""
    names: dict[str, str] = {}
    for _, name in sorted(part for path in objects for part in read_drawn(path).names.items()):
        names.setdefault(_same(name), plain(name).strip())
    return tuple(names.values())


def indices_of(drawn: Drawn, classes: Sequence[str], label_map: Mapping[int, int] | None) -> dict[int, int]:
    """Return the class index of each part that is one: by the map of its number, else by its name, in any case."""
    if label_map is not None:
        return {number: label_map[number] for number in drawn.names if number in label_map}
    known = {_same(name): index for index, name in enumerate(classes, 1)}
    return {number: known[_same(name)] for number, name in drawn.names.items() if _same(name) in known}


def unknown_parts(path: Path, classes: Sequence[str], label_map: Mapping[int, int] | None) -> str | None:
    """Return what is wrong where parts of an object are no classes; None where each is one."""
    drawn = read_drawn(path)
    indices = indices_of(drawn, classes, label_map)
    unknown = [f"{shown(name.strip())} ({number})" for number, name in drawn.names.items() if number not in indices]
    if not unknown:
        return None
    more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    return (
        f"holds what is none of the classes ({', '.join(map(shown, classes))}) and counts as background: "
        f"{', '.join(unknown[:_SHOWN])}{more}. State it in dataset.yaml, in `classes` by its name or in "
        "`labels: {number: class}` (class 0: background)."
    )


def read_classes(record: Record, classes: Sequence[str], label_map: Mapping[int, int] | None) -> np.ndarray:
    """Return the class index of each pixel of a slice, (H, W) uint8, from the object that labels it.

    Where classes lie over one another, that with the higher index is kept. Raises :class:`UserError`.
    """
    size, parts = _parts(record, classes, label_map)
    mask = np.zeros(size, np.uint8)
    for index, part in sorted(parts, key=lambda one: one[0]):
        mask[part] = index
    return mask


def overlap(record: Record, classes: Sequence[str], label_map: Mapping[int, int] | None) -> bool:
    """Tell whether classes lie over one another on a slice."""
    _, parts = _parts(record, classes, label_map)
    merged: dict[int, np.ndarray] = {}
    for index, part in parts:
        merged[index] = merged[index] | part if index in merged else part
    return len(merged) > 1 and int(np.sum(list(merged.values()), axis=0).max()) > 1


def _parts(
    record: Record, classes: Sequence[str], label_map: Mapping[int, int] | None
) -> tuple[tuple[int, int], list[tuple[int, np.ndarray]]]:
    """Return the size of a slice, and class index and (H, W) bool of each part drawn on it."""
    assert record.mask is not None, "matched by its object"
    view = View.of(slice_at(record.image, record.index), record.spacing)
    if view is None:
        raise UserError(f"{record.image}: states no place, so {shown(record.mask.name)} cannot be laid over it.")
    drawn = read_drawn(record.mask)
    indices = indices_of(drawn, classes, label_map)
    if wrong := [index for index in indices.values() if not (0 <= index <= len(classes) or index == UNLABELLED)]:
        raise UserError(f"label map: class {wrong[0]} is not one of 0 to {len(classes)} (or {UNLABELLED}, unlabelled).")
    found = drawn.masks(view)
    return view.size, [(indices[number], part) for number, part in found.items() if indices.get(number)]


def _same(name: str) -> str:
    """Return a name as it is compared: case and spaces at its ends do not count."""
    return plain(name).strip().casefold()
