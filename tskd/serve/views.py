"""Files that stay open for the page: pixels of their slices, labels and the answer, until nobody looks at them."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from tskd.data import dicom, nifti
from tskd.data.grey_levels import read_stored
from tskd.data.intensity import IntensityWindow
from tskd.errors import UserError
from tskd.machine.memory import give_back_freed_memory
from tskd.serve.limits import Limits, Refused, without_paths
from tskd.serve.pool import Candidate
from tskd.serve.segment import Segmented, Segmenter

Made = TypeVar("Made")
_LOOKED_AT = 5  # slices from which the range of a volume's values is taken


@dataclass
class View:
    """One open file."""

    done: Segmented
    name: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    """Which only the page that opened it knows."""
    candidate: Candidate | None = None
    """Which image of the pool it is; None: it was sent."""
    used: float = field(default_factory=time.monotonic)

    @property
    def bytes(self) -> int:
        """What it keeps in memory: the files, unpacked, and a byte of label for each pixel."""
        return sum(map(len, self.done.folder.contents.values())) + sum(plane.nbytes for plane in self.done.planes)

    def image(self, number: int, window: IntensityWindow | None, segmenter: Segmenter) -> np.ndarray:
        """Return a slice as it is shown, (H, W, 3) uint8: by a window, else as the network saw it."""
        frame = self.done.item.frames[self.place(number)]
        shown = window or self.done.window
        try:
            return segmenter.read_by(shown, frame)
        except UserError as error:
            raise Refused(422, without_paths(str(error), self.done.folder)) from error

    def place(self, number: int) -> int:
        """Return the number of a slice; raises Refused (404) where there is none."""
        if not 0 <= number < len(self.done.planes):
            raise Refused(404, f"There is no slice {number}; there are {len(self.done.planes)}, counted from 0.")
        return number

    def window(self) -> IntensityWindow | None:
        """Return the window that the network saw the first slice by; None where it was no window of stored values."""
        frame = self.done.item.frames[0]
        if self.done.window is not None:
            return self.done.window
        if self.done.item.kind == "nifti":
            return nifti.volume_window(frame.path)
        if self.done.item.slices:
            rule = dicom.grey_rule(dicom.read_head(frame.path), None, frame.index)
            return None if rule.table else rule.window
        return None

    def value_range(self, axis: int) -> tuple[float, float] | None:
        """Return the least and the largest stored value of some slices; None of 8-bit pictures: they have no window."""
        frames = self.done.item.frames
        chosen = {round(place) for place in np.linspace(0, len(frames) - 1, min(_LOOKED_AT, len(frames)))}
        values = [read_stored(frames[n].path, index=frames[n].index, axis=axis) for n in sorted(chosen)]
        if any(one.dtype in (np.uint8, bool) or one.ndim > 2 for one in values):
            return None
        low, high = min(float(one.min()) for one in values), max(float(one.max()) for one in values)
        return (low, high) if low < high else None


class Views:
    """The open files of a server: the one that was not looked at for longest is forgotten first."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.lock = threading.Lock()
        self.open: OrderedDict[str, View] = OrderedDict()

    def add(self, view: View) -> None:
        """Keep a file open."""
        with self.lock:
            self.open[view.name] = view
            self._forget()

    def find(self, name: str) -> View:
        """Return an open file; raises Refused (404) for one that is not, or not any more."""
        with self.lock:
            self._forget()
            if name not in self.open:
                raise Refused(404, "The file is not open any more; open it again.")
            self.open.move_to_end(name)
            self.open[name].used = time.monotonic()
            return self.open[name]

    def of(self, name: str, work: Callable[[View], Made]) -> Made:
        """Return what ``work`` makes of an open file; raises Refused (404) where it was closed meanwhile."""
        view = self.find(name)
        try:
            return work(view)
        except Exception:
            self.find(name)  # what went wrong with a file that is gone says nothing about the file
            raise

    def close(self, name: str) -> None:
        """Forget an open file; raises Refused (404) for one that is not open."""
        view = self.find(name)
        with self.lock:
            self.open.pop(name, None)
            view.done.folder.close()

    def _forget(self) -> None:
        oldest, before = time.monotonic() - 60 * self.limits.view_minutes, len(self.open)
        while self.open and (self._are_too_many() or next(iter(self.open.values())).used < oldest):
            self.open.popitem(last=False)[1].done.folder.close()
        if len(self.open) < before:
            give_back_freed_memory()  # the C library would keep the labels of many slices for itself

    def _are_too_many(self) -> bool:
        """Tell whether the oldest must go: also few may, as a few packed bytes can unpack to all that is allowed."""
        total = sum(view.bytes for view in self.open.values())
        return len(self.open) > self.limits.views or (len(self.open) > 1 and total > self.limits.open_bytes)
