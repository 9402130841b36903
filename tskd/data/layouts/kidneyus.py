"""KidneyUS, the Open Kidney Ultrasound Data Set (Singla et al., 2022): reviewed masks, else the polygons.

Twenty of the 534 files repeat ten images under other patient numbers: the part of the name after the first underscore
is equal. The file with the lowest number is kept, and the number is the case.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tskd.data.files import is_beside, plain, shown
from tskd.data.images import image_size, map_labels, read_image
from tskd.data.layouts.base import (
    Description,
    Layout,
    LayoutOptions,
    Search,
    is_image,
    missing,
    require_mask,
    window_notes,
    with_classes,
)
from tskd.data.layouts.pairs import read_paired_mask
from tskd.data.reading import reading
from tskd.errors import UserError
from tskd.types import Record

REGIONS = ("central complex", "medulla", "cortex")
CLASSES = {"capsule": ("capsule",), "regions": REGIONS}
DESCRIPTION = """\
  images/<number>_IM-..._anon.png                                      (by registration)
  labels/reviewed_masks_{1,2}/{capsule,regions}/<the same name>.png    (regions: 1 central complex, 2 medulla, 3 cortex)
  labels/reviewed_labels_{1,2}.csv                                     (VIA polygons, used where a mask is missing)"""

_ANATOMY = {
    "capsule": {"Capsule": 1},
    "regions": {"Central Echo Complex": 1, "Medulla": 2, "Cortex": 3},
}
Polygons = dict[str, list[tuple[str, list[tuple[float, float]]]]]


def find(root: Path, options: LayoutOptions, search: Search) -> list[Record]:
    """Return one record per image without its repeats; images that the annotator's files do not name are unlabelled."""
    _require_options(options)
    found = _images(root, search)
    images, repeats = _unique(found)
    named = _named(_csv(root, options), search)
    masks = search.by_id(_mask_folder(root, options), is_image, deep=False, claims=[plain(one.stem) for one in found])
    if not named and not masks and not search.faults:
        labels = f"labels/reviewed_labels_{options.annotator}.csv or labels/reviewed_masks_{options.annotator}/"
        raise missing(root, labels, DESCRIPTION)
    records = []
    for image in images:
        source = masks.get(plain(image.stem), _csv(root, options) if _csv_name(image) in named else None)
        records.append(Record(plain(image.stem), plain(image.stem.split("_")[0]), image, source))
    of_repeats = {masks.get(plain(image.stem)) for image in repeats}
    search.name_unclaimed(masks, {record.mask for record in records} | of_repeats, [record.id for record in records])
    if nowhere := sorted(named - {_csv_name(image) for image in found}):
        text = f"{len(nowhere)} of its rows name images that are not there (first: {shown(nowhere[0])})."
        search.fault(_csv(root, options), f"{text} Put them into images/, or take the rows out.", "warning")
    return records


def describe(root: Path, options: LayoutOptions, records: Sequence[Record]) -> Description:
    """Tell of repeats left out, rows without a polygon and other shapes than polygons."""
    repeats = len(_unique(_images(root, Search()))[1])
    notes = [f"annotator {options.annotator}, {options.structure}", f"{repeats} repeated files left out"]
    polygons = _csv(root, options)
    if polygons.is_file():
        named, other_shapes = read_polygons(polygons)
        empty = sum(not shapes for shapes in named.values())
        notes.append(
            f"{polygons.name}: {empty} images without a polygon (empty masks), {other_shapes} other shapes ignored"
        )
    return Description("KidneyUS", with_classes(options, CLASSES[options.structure]), (*notes, *window_notes(options)))


def read_kidneyus_image(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one ultrasound image, (H, W, 3) uint8."""
    return read_image(record.image, intensity=options.intensity)


def read_kidneyus_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read capsule or regions, (H, W) uint8 class index, from the reviewed mask or from the polygons."""
    path = require_mask(record)
    if path.suffix == ".csv":
        return draw_polygons(read_polygons(path)[0][_csv_name(record.image)], image_size(record.image), options)
    raw = read_paired_mask(record)
    return map_labels(raw, None, classes=len(CLASSES[options.structure]), path=path)


def fits(root: Path) -> bool:
    """Tell by labels/reviewed_labels_*.csv or labels/reviewed_masks_*."""
    return any((root / "labels").glob("reviewed_labels_*.csv")) or any((root / "labels").glob("reviewed_masks_*"))


def _require_options(options: LayoutOptions) -> None:
    if options.structure not in CLASSES:
        raise UserError(f"structure {options.structure!r} is unknown. Allowed: {', '.join(CLASSES)}.")
    if options.annotator not in (1, 2):
        raise UserError(f"annotator {options.annotator!r} is unknown. Allowed: 1, 2.")


def _images(root: Path, search: Search) -> list[Path]:
    folder = root / "images"
    if not folder.is_dir():
        raise missing(root, "the folder images/ (its content is given out on registration)", DESCRIPTION)
    images = list(search.by_id(folder, is_image, deep=False).values())
    if not images and not search.faults:
        raise missing(root, "any image in images/", DESCRIPTION)
    return images


def _unique(images: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return (first of each image by patient number, its repeats)."""
    kept: dict[str, Path] = {}
    repeats = []
    for image in sorted(images, key=_patient_order):
        if kept.setdefault(image.stem.partition("_")[2] or image.stem, image) is not image:
            repeats.append(image)
    return sorted(kept.values(), key=lambda path: path.stem), repeats


def _patient_order(image: Path) -> tuple[int, str]:
    number = image.stem.split("_")[0]
    return (int(number) if number.isdecimal() else 0, image.stem)


def _named(polygons: Path, search: Search) -> set[str]:
    """Return the images that the polygons' file names; one that cannot be read is a fault."""
    try:
        return set(read_polygons(polygons)[0]) if is_beside(polygons) else set()
    except UserError as error:
        search.drop(error, polygons)
        return set()


def _csv_name(image: Path) -> str:
    return f"{plain(image.stem)}.png"


def _csv(root: Path, options: LayoutOptions) -> Path:
    return root / "labels" / f"reviewed_labels_{options.annotator}.csv"


def _mask_folder(root: Path, options: LayoutOptions) -> Path:
    return root / "labels" / f"reviewed_masks_{options.annotator}" / options.structure


def read_polygons(path: Path) -> tuple[Polygons, int]:
    """Return the polygons (anatomy, points) of every file in a VIA CSV, and how many other shapes were ignored."""
    with reading(path, what="CSV file"):
        return _parsed(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # every mask without a PNG asks for the whole file again
def _parsed(path: Path, modified_ns: int) -> tuple[Polygons, int]:
    polygons: Polygons = {}
    other_shapes = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                shapes = polygons.setdefault(plain(row["filename"]), [])
                shape = json.loads(row["region_shape_attributes"])
                if shape.get("name") == "polygon":
                    anatomy = json.loads(row["region_attributes"]).get("Anatomy", "")
                    shapes.append((anatomy, list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))))
                elif shape:
                    other_shapes += 1
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: is not a CSV file as the VGG Image Annotator writes it. Copy it again.") from error
    return polygons, other_shapes


def draw_polygons(
    shapes: Sequence[tuple[str, list[tuple[float, float]]]], size: tuple[int, int], options: LayoutOptions
) -> np.ndarray:
    """Fill the polygons with their outline, as in the published masks; a higher region lies over a lower one."""
    mask = Image.new("L", (size[1], size[0]))
    canvas = ImageDraw.Draw(mask)
    wanted = _ANATOMY[options.structure]
    drawn = [(wanted[anatomy], points) for anatomy, points in shapes if anatomy in wanted and len(points) > 1]
    for index, points in sorted(drawn, key=lambda shape: shape[0]):
        canvas.polygon(points, fill=index, outline=index)
    return np.array(mask)


KIDNEYUS = Layout(
    "kidneyus", CLASSES["capsule"], find, read_kidneyus_image, read_kidneyus_mask, fits, DESCRIPTION, describe
)
