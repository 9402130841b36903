"""What results are called, and that none replaces an input, another's result or, unasked, what is there already."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tskd.deploy.dicom_out import SUFFIX
from tskd.deploy.inputs import Failure, Item
from tskd.errors import UserError

if TYPE_CHECKING:
    from tskd.deploy.predict import PredictOptions

TABLE = "predictions.csv"


Place = tuple[int, int]
"""Device and number of a file: names say little where upper and lower case are alike."""


@dataclass(frozen=True)
class Protected:
    """Files that nothing may replace, by whatever name they are reached."""

    paths: frozenset[Path]
    places: frozenset[Place]

    @classmethod
    def of(cls, paths: Collection[Path]) -> Self:
        """Take files by their resolved paths."""
        return cls(frozenset(paths), frozenset(place for place in map(place_of, paths) if place))

    def __contains__(self, path: Path) -> bool:
        return path.resolve() in self.paths or place_of(path) in self.places


def place_of(path: Path) -> Place | None:
    """Return where a file lies on the disk; None where there is none, or the disk does not say."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None


def extra(item: Item, place: int | None, ending: str) -> Path:
    """Return the relative path of what is written beside the labels of an image, or of the slice at a place."""
    name = item.name.name if place is None else f"{item.name.name}_{place:04d}"
    return item.name.with_name(f"{name}.{ending}")


def results(item: Item, options: PredictOptions) -> Iterator[Path]:
    """Yield the relative path of everything that is written for an item."""
    yield item.output
    if options.dicom_seg is not None and item.slices:
        yield segmentation_name(item)
    places = [None] if item.kind == "image" else range(len(item.frames))
    for place in places:
        if options.probabilities:
            yield extra(item, place, "probabilities.npz")
        if options.overlays:
            yield extra(item, place, "overlay.png")


def by_any_options(item: Item, options: PredictOptions) -> set[Path]:
    """Return the relative paths of all that some options write for an item."""
    return {*results(item, replace(options, probabilities=True, overlays=True, dicom_seg="binary"))}


def apart(items: Sequence[Item], options: PredictOptions) -> tuple[list[Item], list[Failure]]:
    """Return the items whose results have names of their own, and a failure for each of those that share one.

    A file and a folder share a name too: that of ``a.png`` and of ``a.png/b.jpg``.
    """
    claims: dict[Path, list[int]] = {}
    for number, item in enumerate(items):
        for path in results(item, options):
            claims.setdefault(path, []).append(number)
    alike: dict[int, Failure] = {}
    for path, numbers in claims.items():
        above = {number: folder for folder in path.parents for number in claims.get(folder, ())}
        sharing = above | dict.fromkeys(numbers, path)
        for number, own in sharing.items() if len(sharing) > 1 else ():
            other = next(one for one in sharing if one != number)
            alike.setdefault(number, _alike(items[number], own, items[other]))
        if Path(TABLE) in (path, *path.parents):
            for number in numbers:
                text = f"{items[number].source}: would be answered where the table {TABLE} goes. Rename it."
                alike.setdefault(number, Failure(items[number].source, text))
    return [item for number, item in enumerate(items) if number not in alike], list(alike.values())


def _alike(item: Item, path: Path, other: Item) -> Failure:
    text = f"would be answered in {path}, and so would {other.source}. Rename one, or predict them into two folders."
    return Failure(item.source, f"{item.source}: {text}")


def refuse_replacing(items: Sequence[Item], out: Path, options: PredictOptions, *, inputs: Protected) -> None:
    """Raise UserError where results would replace an input or what is there already."""
    written = [path for item in items for path in results(item, options)]
    if hit := next((path for path in written if out / path in inputs), None):
        raise UserError(f"{out / hit} is one of the inputs; results never replace them. Choose another --out.")
    existing = [path for path in (*written, Path(TABLE)) if _exists(out / path)]
    if existing and not options.overwrite:
        raise UserError(
            f"{out}: {len(existing)} of the results exist already, first {existing[0]}. "
            "Choose another folder with --out, or replace them with --overwrite."
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the disk is on no disk
        return False


def segmentation_name(item: Item) -> Path:
    """Return the relative path of an item's DICOM Segmentation."""
    return item.name.with_name(item.name.name + SUFFIX)
