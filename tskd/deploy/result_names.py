"""What results are called, and that none replaces an input, another's result or, unasked, what is there already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tskd.deploy.dicom_out import SUFFIX
from tskd.deploy.inputs import Failure, Item
from tskd.errors import UserError

if TYPE_CHECKING:
    from tskd.deploy.predict import PredictOptions

TABLE = "predictions.csv"


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


def apart(items: Sequence[Item], options: PredictOptions) -> tuple[list[Item], list[Failure]]:
    """Return the items whose results have names of their own, and a failure for each of those that share one."""
    claims: dict[Path, list[int]] = {}
    for number, item in enumerate(items):
        for path in results(item, options):
            claims.setdefault(path, []).append(number)
    alike: dict[int, Failure] = {}
    for path, numbers in claims.items():
        for number in numbers if len(numbers) > 1 else ():
            other = items[next(one for one in numbers if one != number)].source
            text = f"would be answered in {path}, and so would {other}. Rename one, or predict them into two folders."
            alike.setdefault(number, Failure(items[number].source, f"{items[number].source}: {text}"))
    return [item for number, item in enumerate(items) if number not in alike], list(alike.values())


def refuse_replacing(items: Sequence[Item], out: Path, options: PredictOptions) -> None:
    """Raise UserError where results would replace an input, or what is there already."""
    written = [path for item in items for path in results(item, options)]
    sources = {frame.path.resolve() for item in items for frame in item.frames}
    if hit := next((path for path in written if (out / path).resolve() in sources), None):
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
