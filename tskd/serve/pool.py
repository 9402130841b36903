"""Which images to label next: those without a mask that the model doubts most, scored while nobody waits."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tskd.console import warn
from tskd.deploy.inputs import Frame, Item, find_items
from tskd.errors import UserError
from tskd.serve.corrections import Corrections
from tskd.serve.limits import Refused
from tskd.serve.segment import Segmenter

if TYPE_CHECKING:
    from onnxruntime import RunOptions

_PATIENCE = 10.0
"""Seconds that the image at hand has to end in."""


@dataclass(frozen=True)
class Candidate:
    """One image, or slice of a volume, of the pool."""

    number: int
    name: str
    """As the person who has the folder knows it: relative path, and the slice."""
    frame: Frame
    first: Frame
    """Of its volume, which tells the case: slices of one must not be parted."""
    doubt: float | None = None
    """1 minus the confidence; None: not looked at yet, or unreadable."""
    is_labelled: bool = False

    @property
    def source(self) -> Path | None:
        """The file, where the image is all of it."""
        return self.frame.path if self.frame.index is None else None


class Pool:
    """The images of a folder; :meth:`start` scores them one by one in a thread of its own."""

    def __init__(self, root: Path, segmenter: Segmenter, corrections: Corrections, quiet: threading.Event) -> None:
        if not root.is_dir():
            raise UserError(f"{root}: there is no such folder. Give one of unlabelled images with --pool.")
        self.root = root / "images" if (root / "images").is_dir() else root  # not the masks of a data folder
        self.segmenter, self.corrections, self.quiet = segmenter, corrections, quiet
        found = find_items([self.root], results=corrections.root, axis=segmenter.bundle.axis)
        if found.failures:
            warn(f"{self.root}: {len(found.failures)} files of the pool cannot be read; `tskd check` names them.")
        frames = [(item, number) for item in found.items for number in range(len(item.frames))]
        self.candidates = [self._candidate(k, item, place) for k, (item, place) in enumerate(frames)]
        self.lock = threading.Lock()
        self.is_stopped = threading.Event()
        self.left = len(self.candidates)
        self.work: threading.Thread | None = None
        self.options: RunOptions | None = None

    def start(self) -> None:
        """Score all images in the background, only while no request is in."""
        from onnxruntime import RunOptions

        self.options = RunOptions()
        self.work = threading.Thread(target=self._score_all, daemon=True, name="pool")
        self.work.start()

    def stop(self) -> None:
        """End the scoring, in the middle of an image too: Python cannot end while the network works in a thread."""
        self.is_stopped.set()
        self.quiet.set()
        if self.options is not None and self.work is not None:
            self.options.terminate = True
            self.work.join(_PATIENCE)

    def next(self, count: int) -> list[Candidate]:
        """Return the images to label next, the most doubtful first."""
        with self.lock:
            known = [one for one in self.candidates if one.doubt is not None and not one.is_labelled]
        return sorted(known, key=lambda one: (-(one.doubt or 0), one.number))[:count]

    def find(self, number: int) -> Candidate:
        """Return one image; raises Refused (404)."""
        if not 0 <= number < len(self.candidates):
            raise Refused(404, "There is no such image in the pool.")
        return self.candidates[number]

    def mark_labelled(self, candidate: Candidate) -> None:
        """Take an image that was corrected off the list."""
        self._change(candidate.number, is_labelled=True)

    def _candidate(self, number: int, item: Item, place: int) -> Candidate:
        name = item.name.as_posix() + (f", slice {place}" if len(item.frames) > 1 else "")
        return Candidate(number, name, item.frames[place], item.frames[0])

    def _score_all(self) -> None:
        for one in list(self.candidates):
            self.quiet.wait()
            if self.is_stopped.is_set():
                return
            try:
                with suppress(UserError):  # opening it says what is wrong with it
                    self._score(one)
            except Exception as error:  # noqa: BLE001 (one image never ends the list; its text may quote the file)
                warn(f"an image of the pool could not be looked at ({type(error).__name__})")
            finally:
                with self.lock:
                    self.left -= 1

    def _score(self, candidate: Candidate) -> None:
        image = self.segmenter.read(candidate.frame)
        doubt = 1 - self.segmenter.ask(image, self.options).confidence
        labelled = self.corrections.has(image, candidate.source)
        self._change(candidate.number, doubt=doubt, is_labelled=labelled)

    def _change(self, number: int, **values: Any) -> None:
        with self.lock:
            self.candidates[number] = replace(self.candidates[number], **values)
