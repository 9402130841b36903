"""Phantoms by number, and a data folder of them in the ``folder`` layout."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from tskd.data.phantoms import abdomen, dermoscopy, fundus, kidney_us, oral_ulcer
from tskd.data.phantoms.family import Family
from tskd.data.phantoms.scanner import scan
from tskd.errors import UserError
from tskd.recipe.schema import ScannerConfig
from tskd.seeding import numpy_generator

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (kidney_us, oral_ulcer, abdomen, dermoscopy, fundus)
}
"""All families by name. A new one: its file, and its module in the line above."""

SMALLEST_SIZE = 32
SITE = "site"
"""The column of split.csv that says which scanner an image is from."""
CASE_SIZES = (1, 2, 3, 4)
"""Images of a case: every block of ten consecutive numbers holds one case of each size, in random order."""
BLOCK = sum(CASE_SIZES)


@dataclass(frozen=True)
class Phantom:
    """One synthetic image with its exact mask."""

    id: str
    case: str
    image: NDArray[np.uint8]
    """(S, S, 3)"""
    mask: NDArray[np.uint8]
    """(S, S) class index, 0 background."""


def locate(number: int, seed: int) -> tuple[int, int]:
    """Return the index of the case that image ``number`` belongs to, and the image's position within the case."""
    block, position = divmod(number, BLOCK)
    for place, length in enumerate(numpy_generator(seed, "phantom cases", block).permutation(CASE_SIZES)):
        if position < length:
            return block * len(CASE_SIZES) + place, position
        position -= int(length)
    raise AssertionError("a block's cases hold all of its numbers")


def draw_phantom(family: str, number: int, *, size: int, seed: int) -> Phantom:
    """Return image ``number`` of a family: the same for equal arguments, whatever else is drawn, and where.

    Raises ``UserError`` for an unknown family, a negative number or a size below 32 pixels.
    """
    _check(family, number, size)
    case, position = locate(number, seed)
    image, mask = FAMILIES[family].draw(
        numpy_generator(seed, family, "case", case), numpy_generator(seed, family, "image", number), size
    )
    name = f"case{case:05d}"
    return Phantom(f"{name}-{position}", name, image, mask)


def write_phantoms(
    family: str,
    out: Path,
    *,
    count: int,
    size: int,
    seed: int,
    test: int,
    scanners: Mapping[str, ScannerConfig] | None = None,
) -> Path:
    """Write ``count`` phantoms to the new folder ``out`` in the ``folder`` layout and return it.

    The first ``test`` images, and what completes their last case, are the test split: it stays the same when ``count``
    grows. All masks are written; how many of them training sees is the label budget's affair. With ``scanners`` the
    cases are dealt out to them in turn, and split.csv names each image's in a column ``site``. The folder appears under
    its name only when it is whole. Raises ``UserError`` where ``out`` exists or no training image would be left.
    """
    _check(family, count, size)
    if out.exists():
        raise UserError(f"{out} exists already: phantoms are written to a new folder. Remove it or name another.")
    test = _whole_cases(test, seed)
    if test >= count:
        raise UserError(f"{count} phantoms with {test} of them (whole cases) for the test leave none to train on.")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _fill(partial, family, range(count), size=size, seed=seed, test=test, scanners=scanners or {})
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _check(family: str, number: int, size: int) -> None:
    if family not in FAMILIES:
        raise UserError(f"There is no phantom family {family!r}: choose one of {', '.join(FAMILIES)}.")
    if number < 0:
        raise UserError(f"A phantom's number is 0 or more, not {number}.")
    if size < SMALLEST_SIZE:
        raise UserError(f"A phantom of {size} pixels is too small: ask for {SMALLEST_SIZE} or more.")


def _whole_cases(count: int, seed: int) -> int:
    """Return the smallest number of images, ``count`` or more, that ends with a whole case."""
    while count > 0 and locate(count, seed)[1] != 0:
        count += 1
    return count


def _fill(
    folder: Path, family: str, numbers: range, *, size: int, seed: int, test: int, scanners: Mapping[str, ScannerConfig]
) -> None:
    for part in ("images", "masks"):
        (folder / part).mkdir()
    rows, sites = [], list(scanners)
    for number in numbers:
        phantom = draw_phantom(family, number, size=size, seed=seed)
        image, site = phantom.image, list[str]()
        if sites:
            name = sites[locate(number, seed)[0] % len(sites)]
            image, site = scan(image, scanners[name], numpy_generator(seed, family, "scanner", number)), [name]
        Image.fromarray(image).save(folder / "images" / f"{phantom.id}.png")
        Image.fromarray(phantom.mask).save(folder / "masks" / f"{phantom.id}.png")
        rows.append((phantom.id, "test" if number < test else "train", phantom.case, *site))
    header = ("id", "split", "case", *([SITE] if sites else ()))
    with (folder / "split.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    description = {"name": f"phantoms/{family}", "classes": list(FAMILIES[family].classes)}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
