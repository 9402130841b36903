"""How many of an image's grey levels reach the network: a window that does not fit leaves a handful, and no error."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path

import numpy as np
from PIL import Image

from tskd.data.images import read_stored
from tskd.data.intensity import IntensityWindow
from tskd.data.layouts import Dataset
from tskd.types import Record

LEAST_LEVELS = 64
"""Fewer grey levels are worth a warning, where the file holds far more."""
_SPARSE = 8  # every so many pixels of a row and column show enough levels of most images
_FAR_MORE = 4  # stored values to a grey level: a drawing of few levels has lost none of them


@dataclass(frozen=True)
class LevelUse:
    """Grey levels of one image, or of several that belong together, and the stored values that they stand for."""

    levels: frozenset[int] = frozenset()
    """Of 0 to 255; where they are enough, perhaps not all."""
    stored: int = 0
    """How many values the file holds; 0 where enough levels are left, and nobody looked."""
    low: float = np.inf
    high: float = -np.inf
    """The lowest and the highest of them."""
    full: str = field(default="", compare=False)
    """What becomes black to white, in words."""

    def __or__(self, other: LevelUse) -> LevelUse:
        """Return what both together use; stored values are counted in the one that has more."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return LevelUse(self.levels | other.levels, max(self.stored, other.stored), low, high, self.full or other.full)

    @property
    def is_lossy(self) -> bool:
        """Whether so few levels are left that a warning is due."""
        return len(self.levels) < LEAST_LEVELS and self.stored >= _FAR_MORE * len(self.levels)

    def describe(self) -> str:
        """Return in words what is lost."""
        return (
            f"only {len(self.levels)} grey levels reach the network: the values {self.low:g} to {self.high:g} are in "
            f"use, of {self.full}"
        )

    def advise(self) -> str:
        """Return the setting that would keep them."""
        return f"data.window=[{self.low:g},{self.high:g}]"


def level_use(
    image: np.ndarray, path: Path, *, index: int | None, axis: int, window: IntensityWindow | None
) -> LevelUse:
    """Return what a read image (H, W, 3) uint8 uses; its file is read again only where few levels are left."""
    for seen in (image[::_SPARSE, ::_SPARSE], image):
        levels = _levels(seen)
        if len(levels) >= LEAST_LEVELS:
            return LevelUse(levels)
    values = read_stored(path, index=index, axis=axis)
    return LevelUse(levels, len(np.unique(values)), float(values.min()), float(values.max()), _full(values, window))


def _levels(image: np.ndarray) -> frozenset[int]:
    counts = np.array(Image.fromarray(image).histogram()).reshape(3, 256)
    return frozenset(np.flatnonzero(counts.any(axis=0)).tolist())


def record_use(dataset: Dataset, record: Record, image: np.ndarray) -> LevelUse:
    """Return what a record's image uses, as the data set's layout read it."""
    options = dataset.options
    return level_use(image, record.image, index=record.index, axis=options.axis, window=options.intensity)


def describe_losses(records: Sequence[Record], uses: Mapping[str, LevelUse]) -> tuple[str, str] | None:
    """Return in words what a data set loses, and what to do; None where it keeps its grey levels.

    ``uses`` are those of record ids. The slices of a volume are judged together: some may show little.
    """
    together: dict[tuple[str | None, Path], LevelUse] = defaultdict(LevelUse)
    for record in records:
        if record.id in uses:
            together[record.volume, record.image if record.volume is None else Path()] |= uses[record.id]
    lossy = [use for use in together.values() if use.is_lossy]
    if not lossy:
        return None
    all_of_them = reduce(or_, lossy)
    return (
        f"in {len(lossy)} of {len(together)} images or volumes {all_of_them.describe()}.",
        f"Say which values become black and white, such as --set {all_of_them.advise()}; a model takes it along.",
    )


def _full(values: np.ndarray, window: IntensityWindow | None) -> str:
    if window is not None:
        return f"the window {window.low:g} to {window.high:g}"
    return f"{np.iinfo(values.dtype).max}" if values.dtype.kind == "u" else "the range that becomes black to white"
