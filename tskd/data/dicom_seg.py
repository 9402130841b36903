"""DICOM segmentations (SEG): binary, fractional and label maps, PS3.3 A.51 and C.8.20.

What they are is read by highdicom, which is imported when the first is met; frames are decoded as those of scans are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tskd.data.dicom_drawn import References, View
from tskd.data.dicom_files import Head, read_head
from tskd.data.dicom_pixels import stored_values
from tskd.data.dicom_series import Slice, functional_group, plane_of, slices_of
from tskd.data.reading import reading
from tskd.errors import UserError, name_of

if TYPE_CHECKING:
    from highdicom.seg import Segmentation

KIND = "segmentation (SEG)"
FRACTION = 0.5
"""A fractional segment holds the pixels of at least this fraction of its greatest value."""

_OFF_PIXEL = 0.1
_LABEL_MAP = "LABELMAP"


@dataclass(frozen=True)
class Segments:
    """One SEG object; see :class:`tskd.data.dicom_drawn.Drawn`."""

    path: Path
    names: dict[int, str]
    references: References
    notes: tuple[str, ...]
    numbers: tuple[int, ...]
    """Segment of each frame; of a label map 0, since its pixels say it."""
    planes: np.ndarray
    """(frames, 3, 3), from (column, row, 1) to millimetres in LPS."""
    size: tuple[int, int]
    """Rows and columns of a frame."""
    threshold: float
    background: int
    """Of a label map."""
    kind: str = KIND

    def lying_on(self, view: View) -> np.ndarray:
        """Return which frames lie on a slice and hold its pixels, (frames,) bool."""
        found = np.zeros(len(self.planes), bool)
        for index in np.flatnonzero(self._near(view)):
            found[index] = self._indices(int(index), view, _corners(view.size)) is not None
        return found

    def masks(self, view: View) -> dict[int, np.ndarray]:
        """Return the segments of a slice, number to (H, W) bool."""
        masks: dict[int, np.ndarray] = {}
        for index in np.flatnonzero(self.lying_on(view)):
            pixels = np.indices(view.size)[::-1].reshape(2, -1).T
            places = self._indices(int(index), view, pixels)
            assert places is not None, "the corners lie on it"
            values = stored_values(read_head(self.path), int(index))[places[:, 1], places[:, 0]].reshape(view.size)
            for number, mask in self._parts(self.numbers[index], values):
                masks[number] = masks[number] | mask if number in masks else mask
        return masks

    def _near(self, view: View) -> np.ndarray:
        return view.distances(self.planes[:, :, 2]) <= view.tolerance

    def _indices(self, index: int, view: View, pixels: np.ndarray) -> np.ndarray | None:
        """Return the frame's (column, row) for (N, 2) pixels of a slice; None where its grid is another."""
        points = np.column_stack([pixels, np.ones(len(pixels))]) @ view.plane.T
        frame = View(self.planes[index], self.size, view.tolerance)
        if frame.distances(points).max() > view.tolerance:
            return None
        places = frame.pixels_of(points)
        nearest = np.rint(places).astype(np.intp)
        outside = (nearest < 0).any() or (nearest >= frame.size[::-1]).any()
        return None if outside or np.abs(places - nearest).max() > _OFF_PIXEL else nearest

    def _parts(self, number: int, values: np.ndarray) -> list[tuple[int, np.ndarray]]:
        if number:
            return [(number, values >= self.threshold)]
        found = [int(value) for value in np.unique(values) if value != self.background]
        if unknown := [value for value in found if value not in self.names]:
            raise UserError(
                f"{self.path}: holds the label {unknown[0]}, which is none of its segments ({_listed(self.names)}). "
                "Save the segmentation again."
            )
        return [(value, values == value) for value in found]


def read_segments(path: Path) -> Segments:
    """Read a SEG object without its pixels; raises :class:`UserError` where it is none that can be read."""
    from highdicom.seg import segread

    head = read_head(path)
    with reading(path, _explain):
        return _segments(head, segread(path, lazy_frame_retrieval=True))


def _explain(error: BaseException) -> str:
    return (
        f"is a segmentation (SEG) that lacks what the standard demands ({name_of(error)}): not used as a label "
        "here. Save it again, for example with 3D Slicer, or take it out."
    )


def _segments(head: Head, seg: Segmentation) -> Segments:
    """Return what matters of it; the object of highdicom holds a database bound to its thread, and is let go."""
    kind = str(seg.segmentation_type.value)
    fractional = kind == "FRACTIONAL"
    threshold = FRACTION * int(seg.MaximumFractionalValue) if fractional else 1
    note = f"fractional segments: {FRACTION:.0%} and more of the greatest value count"
    named = {number: seg.get_segment_description(number).segment_label for number in seg.segment_numbers}
    uids = seg.get_source_image_uids()
    stated = (str(series.SeriesInstanceUID) for series in seg.get("ReferencedSeriesSequence") or ())
    return Segments(
        head.path,
        named,
        References(
            frozenset(str(series) for _, series, _ in uids) | frozenset(stated),
            frozenset(str(instance) for *_, instance in uids),
            frozenset({str(seg.get("FrameOfReferenceUID") or "")} - {""}),
        ),
        (note,) if fractional else (),
        tuple(0 if kind == _LABEL_MAP else _segment_of(head, index) for index in range(head.frames)),
        np.stack([_plane(item) for item in slices_of(head)]),
        head.size,
        threshold,
        int(seg.get("PixelPaddingValue") or 0),
    )


def _segment_of(head: Head, index: int) -> int:
    return int(functional_group(head.data, index, "SegmentIdentificationSequence").ReferencedSegmentNumber)


def _plane(item: Slice) -> np.ndarray:
    """Return the plane of a frame, not a number throughout where it states none: it lies on no slice."""
    stated = item.orientation is not None and item.origin is not None and item.spacing is not None
    return plane_of(item) if stated else np.full((3, 3), np.nan)


def _corners(size: tuple[int, int]) -> np.ndarray:
    rows, columns = size[0] - 1, size[1] - 1
    return np.array([(0, 0), (columns, 0), (0, rows), (columns, rows)])


def _listed(names: dict[int, str]) -> str:
    return ", ".join(map(str, sorted(names)))
