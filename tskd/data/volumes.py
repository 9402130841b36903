"""Which slices make a volume, and how they are stacked: (H, W, D), the slices along the last axis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tskd.data.prepared import PreparedRecord, rows_by_image


@dataclass(frozen=True)
class Stack:
    """The slices of one volume that can be scored."""

    name: str
    case: str
    rows: tuple[int, ...]
    """Rows of the prepared data in the order of the slices."""
    places: tuple[int, ...]
    """The place of each along the volume's axis, from 0, increasing; a gap is a slice without a mask."""
    spacing: tuple[float, ...] | None
    """Millimetres along (row, column, slice); None where one of the three is not known, or not the same throughout."""

    @property
    def gaps(self) -> int:
        """Slices between the first and the last that have no mask."""
        return self.places[-1] + 1 - len(self.places)

    def assemble(self, slices: Iterable[np.ndarray], *, missing: int) -> np.ndarray:
        """Return the (H, W) ``slices``, one a row, as (H, W, D); slices in a gap hold ``missing`` throughout."""
        planes = list(slices)
        volume = np.full((*planes[0].shape, self.places[-1] + 1), missing, planes[0].dtype)
        for place, plane in zip(self.places, planes, strict=True):
            volume[..., place] = plane
        return volume


def find_stacks(
    records: Sequence[PreparedRecord], rows: Sequence[int] | np.ndarray
) -> tuple[tuple[Stack, ...], tuple[str, ...]]:
    """Return the volumes that the rows of a set make, and remarks; no volume where they are scored as single images.

    They are a set of volumes where each belongs to one, a volume has more than one slice and all slices of a volume
    are of one size. Remarks say why a set with some volumes is none, and how many slices have no mask.
    """
    groups: dict[str | None, list[int]] = defaultdict(list)
    for row in rows:
        groups[records[row].volume].append(int(row))
    single = len(groups.pop(None, ()))
    if not any(len(members) > 1 for members in groups.values()):
        return (), ()
    if single:
        return (), (f"{single} of {len(rows)} images belong to no volume: all are scored as single images",)
    if uneven := sum(not _same_size([records[row] for row in members]) for members in groups.values()):
        return (), (
            f"the slices of {uneven} of {len(groups)} volumes differ in size and cannot be stacked: all are scored "
            "as single images",
        )
    stacks = tuple(_stack(str(name), members, records) for name, members in groups.items())
    gaps = sum(stack.gaps for stack in stacks)
    return stacks, (f"{gaps} slices inside of volumes have no mask and are not scored",) if gaps else ()


def scored_together(records: Sequence[PreparedRecord], rows: Sequence[int] | np.ndarray) -> list[tuple[str, list[int]]]:
    """Return which rows have one score together, and of what scores are averaged first: (case, rows of a volume) for a
    set of volumes, else (image, its row or the rows of its tiles)."""
    shown = rows_by_image(records, rows)
    stacks, _ = find_stacks(records, [of_image[0] for of_image in shown.values()])
    if not stacks:
        return list(shown.items())
    return [(stack.case, [row for first in stack.rows for row in shown[records[first].image]]) for stack in stacks]


def _same_size(records: Sequence[PreparedRecord]) -> bool:
    return len({(record.height, record.width) for record in records}) == 1


def _stack(name: str, members: Sequence[int], records: Sequence[PreparedRecord]) -> Stack:
    ordered = sorted(members, key=lambda row: _place(records[row]))
    places = [_place(records[row]) for row in ordered]
    (spacing, *others) = {records[row].spacing for row in ordered}
    known = spacing is not None and len(spacing) == 3 and not others
    return Stack(
        name,
        records[ordered[0]].case,
        tuple(ordered),
        tuple(place - places[0] for place in places),
        spacing if known else None,
    )


def _place(record: PreparedRecord) -> int:
    assert record.place is not None, "every slice of a volume has a place"
    return record.place
