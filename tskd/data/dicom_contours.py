"""Radiotherapy structure sets (RTSTRUCT): closed planar contours, filled slice by slice; PS3.3 A.19 and C.8.8.6."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from tskd.data.dicom_drawn import References, View
from tskd.data.dicom_files import read_head
from tskd.data.reading import reading
from tskd.errors import name_of

KIND = "RT structure set (RTSTRUCT)"

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


@dataclass(frozen=True)
class Contours:
    """One structure set; see :class:`tskd.data.dicom_drawn.Drawn`."""

    path: Path
    names: dict[int, str]
    references: References
    notes: tuple[str, ...]
    numbers: tuple[int, ...]
    """Region of interest of each contour."""
    points: np.ndarray
    """(N, 3) of all contours, one after another, in LPS."""
    starts: np.ndarray
    """(contours,) where each begins."""
    kind: str = KIND

    def lying_on(self, view: View) -> np.ndarray:
        """Return which contours lie on a slice, (contours,) bool."""
        if not len(self.starts):
            return np.zeros(0, bool)
        return np.maximum.reduceat(view.distances(self.points), self.starts) <= view.tolerance

    def masks(self, view: View) -> dict[int, np.ndarray]:
        """Return the regions of a slice, number to (H, W) bool; a contour within another of its region is a hole."""
        ends = [*self.starts[1:], len(self.points)]
        drawn: dict[int, list[np.ndarray]] = {}
        for index in np.flatnonzero(self.lying_on(view)):
            outline = view.pixels_of(self.points[self.starts[index] : ends[index]])
            drawn.setdefault(self.numbers[index], []).append(outline)
        return {number: fill(outlines, view.size) for number, outlines in drawn.items()}


def fill(outlines: Iterable[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Return the pixels, (H, W) bool, whose centres lie within an odd number of closed outlines.

    Outlines are (N, 2), (column, row), with the centre of the first pixel at (0, 0). A centre on an outline belongs to
    what lies towards higher columns and rows, so that of two neighbours that share an outline exactly one holds it.
    """
    rows, columns = size
    crossings = np.zeros((rows, columns + 1), np.int64)
    for outline in outlines:
        for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            lower, upper = sorted((y0, y1))
            crossed = np.arange(max(int(np.ceil(lower)), 0), min(int(np.ceil(upper)), rows))
            if crossed.size:
                at = x0 + (crossed - y0) * (x1 - x0) / (y1 - y0)
                crossings[crossed, np.clip(np.ceil(at), 0, columns).astype(np.intp)] += 1
    return (np.cumsum(crossings, axis=1)[:, :columns] % 2).astype(bool)


def read_contours(path: Path) -> Contours:
    """Read a structure set; raises :class:`UserError` where it is none that can be read."""
    head = read_head(path)
    with reading(path, _explain):
        data = head.data
        names = {int(one.ROINumber): str(one.get("ROIName") or "") for one in data.StructureSetROISequence}
        closed = list(_closed(data))
        found = [(number, points) for number, points in closed if points is not None]
        passed = len(closed) - len(found)
        counts = [len(points) for _, points in found]
        return Contours(
            path,
            names,
            _references(data),
            (f"{passed} points and open or broken contours are not filled",) if passed else (),
            tuple(number for number, _ in found),
            np.concatenate([points for _, points in found]) if found else np.zeros((0, 3)),
            np.cumsum([0, *counts[:-1]]) if found else np.zeros(0, np.intp),
        )


def _explain(error: BaseException) -> str:
    return (
        f"is a structure set (RTSTRUCT) that lacks what the standard demands ({name_of(error)}), so it is no "
        "label here. Export it again, or take it out."
    )


def _closed(data: pydicom.Dataset) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield region and points, (N, 3) in LPS, of each contour; None for one that encloses nothing."""
    for region in data.get("ROIContourSequence") or ():
        for contour in region.get("ContourSequence") or ():
            points = np.array(contour.get("ContourData") or (), float)
            closed = contour.get("ContourGeometricType") in _CLOSED
            whole = closed and len(points) >= 9 and len(points) % 3 == 0 and bool(np.isfinite(points).all())
            yield int(region.ReferencedROINumber), points.reshape(-1, 3) if whole else None


def _references(data: pydicom.Dataset) -> References:
    frames = list(data.get("ReferencedFrameOfReferenceSequence") or ())
    studies = [study for frame in frames for study in frame.get("RTReferencedStudySequence") or ()]
    series = [one for study in studies for one in study.get("RTReferencedSeriesSequence") or ()]
    images = [image for one in series for image in one.get("ContourImageSequence") or ()]
    regions = data.get("StructureSetROISequence") or ()
    return References(
        frozenset(str(one.SeriesInstanceUID) for one in series),
        frozenset(str(image.ReferencedSOPInstanceUID) for image in images),
        frozenset(str(one.FrameOfReferenceUID) for one in frames if one.get("FrameOfReferenceUID"))
        | frozenset(
            str(one.ReferencedFrameOfReferenceUID) for one in regions if "ReferencedFrameOfReferenceUID" in one
        ),
    )
