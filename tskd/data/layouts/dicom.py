"""DICOM series, a folder a case, with masks as PNG files, as one NIfTI label volume a case, or as SEG or RTSTRUCT."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from tskd.data import dicom, dicom_labels, nifti
from tskd.data.files import find_files, plain, shown
from tskd.data.images import IntensityWindow, map_labels, read_image, read_mask_indices
from tskd.data.layouts.base import (
    Description,
    Layout,
    LayoutOptions,
    Search,
    classes_by_map,
    is_image,
    missing,
    require_mask,
    require_same_size,
)
from tskd.data.layouts.cases import with_stated_cases
from tskd.data.layouts.dataset_yaml import DATASET_YAML, codes_of, read_volumes_yaml, with_file, with_stated
from tskd.errors import UserError
from tskd.types import Record

DESCRIPTION = """\
  images/<case>/**/*.dcm            one folder a case (one or more series, single or multi-frame, with or without .dcm)
  images/*.dcm                      files without a folder: cases patient001, ... in the order of files
  masks/<case>/<dicom name>.png     label index, 0/255 for one class; multi-frame: <dicom name>_<frame, 4 digits>.png
  masks/<case>.nii[.gz]             or one label volume a case, laid over the slices by its coordinates
  SEG or RTSTRUCT                   or DICOM objects anywhere in images/ or masks/ that refer to the series
  dataset.yaml                      optional: name, classes, codes, labels, window, case_pattern
  split.csv                         optional: id,split[,case|subject], the id being the case folder
  (without masks/: unlabelled; a folder of DICOM files alone will do too)"""

_SHOWN = 20  # remarks on series
_GRID_TOLERANCE = 0.1  # voxels; a label volume further off the slices' grid belongs to another series


def find(root: Path, options: LayoutOptions, search: Search) -> list[Record]:
    """Return one record per frame, each series in the order of its positions."""
    folder = root / "images" if (root / "images").is_dir() else root
    files = search.listing(folder, _is_dicom).files
    if not files and not search.faults:
        raise missing(root, "any DICOM file", DESCRIPTION)
    masks = search.by_id(root / "masks", _is_mask, _mask_id)
    objects = [path for path in masks.values() if _is_label_object(path)]
    masks = {id: path for id, path in masks.items() if path not in objects}
    parts = _parts(folder, files)
    records = [record for part in parts for record in part.records(masks)]
    records = _with_objects(records, parts, objects, with_file(options, root), search)
    if not records and not search.faults:
        raise missing(root, "any DICOM file that is an image", DESCRIPTION)
    claimed = {record.mask for record in records} | {
        mask for part in parts for mask in part.masks_of_copies(masks, search)
    }
    claimed |= {mask for part in parts for mask in _name_shared(part, masks, claimed, search)}
    search.name_unclaimed(masks, claimed, {record.case for record in records})
    records = with_stated_cases(
        records,
        {record.case: record.image for record in records},
        root,
        search,
        unknown="of a series it is the name of its case folder",
        kind="case folders",
        by_folder=False,
    )
    return sorted(records, key=lambda record: record.id)


def describe(root: Path, options: LayoutOptions, records: Sequence[Record]) -> Description:
    """Name the classes by options or dataset.yaml; tell the rule and range of grey levels, and odd series."""
    stated = read_volumes_yaml(root)
    options = with_stated(options, stated)
    objects = sorted({record.mask for record in records if record.mask is not None and _is_label_object(record.mask)})
    notes = [*grey_notes(records, options), *_series_notes(root, objects)]
    if options.classes is None:
        classes, note = _classes(options, objects)
        options = replace(options, classes=classes)
        notes.append(note)
    codes = codes_of(options.classes, stated, root)
    return Description(stated.name or plain(root.resolve().name), options, tuple(notes), codes)


def _classes(options: LayoutOptions, objects: Sequence[Path]) -> tuple[tuple[str, ...], str]:
    """Return class names and a note where nobody stated them: by the label map, by what objects name, else one."""
    if options.labels is not None:
        return classes_by_map(options.labels)
    if names := dicom_labels.names_in(objects):
        return names, f"classes as {len(objects)} SEG or RTSTRUCT name them, in the order of their numbers"
    return ("foreground",), "classes not named: one is assumed"


def grey_notes(records: Sequence[Record], options: LayoutOptions) -> list[str]:
    """Return what is told of the grey levels of DICOM images, by the middle image of each series."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.volume or record.id.rpartition("/")[0], []).append(record)
    ranges: dict[str, list[IntensityWindow]] = {}
    for members in groups.values():
        middle = members[len(members) // 2]
        try:
            head = dicom.read_head(middle.image)
            rule = dicom.grey_rule(head, options.intensity, middle.index)
            ranges.setdefault(rule.told, []).append(rule.window)
        except UserError:  # its own reading names the file
            continue
    return [f"intensities: {told}, {_range(windows)}" for told, windows in sorted(ranges.items())]


def _range(windows: Sequence[IntensityWindow]) -> str:
    """Return the limits in words, of several windows the span of each limit."""
    ends = [sorted({getattr(window, end) for window in windows}) for end in ("low", "high")]
    low, high = (f"{each[0]:g}" if len(each) == 1 else f"({each[0]:g} to {each[-1]:g})" for each in ends)
    return f"{low} becomes black, {high} white"


def _series_notes(root: Path, labels: Sequence[Path]) -> list[str]:
    """Return why series are not regular grids, and which files are not scans, nor one of the ``labels``."""
    folder = root / "images" if (root / "images").is_dir() else root
    listings = [part.listing for part in _parts(folder, find_files(folder, _is_dicom).files)]
    remarks = [remark for listing in listings for remark in listing.remarks]
    notes = [
        f"series: {remark.replace(f'{folder}{os.sep}', '').replace(str(folder), folder.name)}" for remark in remarks
    ]
    if len(notes) > _SHOWN:
        notes = [*notes[:_SHOWN], f"series: {len(notes) - _SHOWN} more remarks of this kind"]
    others = Counter(kind for listing in listings for path, kind in listing.others if path not in labels)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    return [*notes, f"passed over, since they are not scans: {told}"] if others else notes


def read_dicom_image(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one frame, (H, W, 3) uint8."""
    return read_image(record.image, index=record.index, intensity=options.intensity)


def read_dicom_mask(record: Record, options: LayoutOptions) -> np.ndarray:
    """Read one mask, (H, W) uint8 class index, from its PNG file, the case's label volume, a SEG or an RTSTRUCT."""
    path = require_mask(record)
    classes = options.classes or ("foreground",)
    if _is_label_object(path):
        return dicom_labels.read_classes(record, classes, options.labels)
    size = dicom.read_head(record.image).size
    raw = _overlaid(path, record, size) if nifti.is_nifti(path) else read_mask_indices(path)
    raw = require_same_size(raw, record, size)
    return map_labels(raw, options.labels, classes=len(classes), path=path)


def overlaps(record: Record, options: LayoutOptions) -> bool:
    """Tell whether classes lie over one another in a mask of a SEG or RTSTRUCT."""
    if record.mask is None or not _is_label_object(record.mask):
        return False
    return dicom_labels.overlap(record, options.classes or (), options.labels)


def fits(root: Path) -> bool:
    """Tell by a DICOM file that is the first in images/, or in the root itself, or in a folder there."""
    if any(root.glob("*/DICOM_anon")) or any(root.glob("*/T2SPIR")):
        return False
    folder = root / "images" if (root / "images").is_dir() else root
    return any(_is_dicom(path) for path in _first_files(folder))


def _first_files(folder: Path) -> list[Path]:
    """Return the first file of the folder and of each folder in it: enough evidence, without opening every file.

    A dataset.yaml is no evidence either way.
    """
    found = find_files(folder, deep=False)
    listed = [found.files, *(find_files(each, deep=False).files for each in found.folders)]
    files = [next((path for path in each if path.name != DATASET_YAML), None) for each in listed]
    return [path for path in files if path is not None]


def _is_dicom(path: Path) -> bool:
    return path.name != "DICOMDIR" and dicom.is_dicom(path)


def _is_mask(path: Path) -> bool:
    return is_image(path) or nifti.is_nifti(path) or _is_dicom(path)


def _is_label_object(path: Path) -> bool:
    """Tell whether a mask is a SEG or RTSTRUCT; a damaged file is none, and reading it says what is wrong."""
    if is_image(path) or nifti.is_nifti(path):
        return False
    try:
        return dicom_labels.is_label_object(path)
    except UserError:
        return False


def _with_objects(
    records: Sequence[Record], parts: Sequence[_Part], given: Sequence[Path], options: LayoutOptions, search: Search
) -> list[Record]:
    """Return the records, those without a mask labelled by the SEG or RTSTRUCT that was drawn on their series.

    ``given`` are those in masks/, which must fit; others lie beside the scans, and are passed over where they do not.
    """
    beside = [path for part in parts for path, kind in part.listing.others if kind in dicom_labels.READERS]
    if not beside and not given:
        return list(records)
    slices = [item for part in parts for item in part.listing.slices]
    unlabelled = {(record.image, record.index) for record in records if record.mask is None}
    matches = dicom_labels.match([*beside, *given], slices, unlabelled)
    for path, message, wrong in matches.faults:
        search.fault(path, message, "error" if wrong or path in given else "warning")
    used = Counter(matches.labels.values())
    for path in given:
        if path not in used and all(path != fault.path for fault in search.faults):
            search.fault(
                path, "was drawn on no series here that lacks a mask. Put its series into images/, or remove it."
            )
    for path in used:
        if options.classes and (text := dicom_labels.unknown_parts(path, options.classes, options.labels)):
            search.fault(path, text, "warning")
    search.notes += [*_counted(used), *matches.notes]
    return [
        record if record.mask else replace(record, mask=matches.labels.get((record.image, record.index)))
        for record in records
    ]


def _counted(used: Counter[Path]) -> list[str]:
    """Return in words how many masks come from objects of each kind."""
    files, masks = Counter[str](), Counter[str]()
    for path, count in used.items():
        kind = dicom_labels.read_drawn(path).kind
        files[kind] += 1
        masks[kind] += count
    return [f"masks: {masks[kind]} from {files[kind]} {kind}" for kind in sorted(files)]


def _name_shared(
    part: _Part, masks: Mapping[str, Path], claimed: Collection[Path | None], search: Search
) -> Iterator[Path]:
    """Yield the masks that are named as several scans are, and name each as a fault: one would label all of them."""
    for mask, scans in part.shared(masks).items():
        if mask not in claimed:
            first, second = (shown(scan.relative_to(part.folder).as_posix()) for scan in scans[:2])
            search.fault(
                mask,
                f"is named as {first} and as {second} are. Put it into the sub-folder of its scan, such as "
                f"masks/{shown(plain(scans[0].parent.relative_to(part.folder.parent).as_posix()))}/.",
            )
            yield mask


def _mask_id(path: Path, folder: Path) -> str:
    """Return the path below masks/ without the ending, as names are compared; names of series may hold dots."""
    name = nifti.volume_id(path) if nifti.is_nifti(path) else path.stem
    return plain(path.relative_to(folder).with_name(name).as_posix())


@dataclass(frozen=True)
class _Part:
    """The files of one case folder, or those that lie in none."""

    case: str | None
    """None: the files lie in no case folder, and each patient is a case."""
    listing: dicom.Listing
    folder: Path
    """Where the case's files lie, in sub-folders too."""
    _shared: dict[int, dict[Path, list[Path]]] = field(default_factory=dict)

    def records(self, masks: Mapping[str, Path]) -> list[Record]:
        several = len({item.series for item in self.listing.slices}) > 1
        counts: Counter[int] = Counter()
        records = []
        for item in self.listing.slices:
            case = self.case or f"patient{item.patient:03d}"
            series = f"{case}/series{item.series:02d}" if several or self.case is None else case
            records.append(_record(f"{series}/{counts[item.series]:04d}", series, case, item, self._mask(masks, item)))
            counts[item.series] += 1
        return records + [self._unreadable(path, masks) for path, _ in self.listing.failures]

    def _mask(self, masks: Mapping[str, Path], item: dicom.Slice) -> Path | None:
        volume = masks.get(self.case or "")
        labelled = volume is not None and nifti.is_nifti(volume) and not self._lies_apart(item, volume)
        return volume if labelled else self._png(masks, item.path, item.index)

    def _lies_apart(self, item: dicom.Slice, volume: Path) -> bool:
        """Tell whether a frame beside the grids of a case, as a localizer is, is none of what a label volume is of."""
        if item.grid is not None or all(other.grid is None for other in self.listing.slices):
            return False
        try:
            size = dicom.read_head(item.path).size
            return _voxels(volume, dicom.plane_affine(item.path, index=item.index), size) is None
        except UserError:  # its own reading names the file
            return False

    def _png(self, masks: Mapping[str, Path], image: Path, index: int | None) -> Path | None:
        """Return the mask of an image: by its path below the case folder, else by a name that no other scan has."""
        inside = image.parent.relative_to(self.folder).as_posix()
        if inside != "." and (mask := self._named(masks, f"{inside}/", image, index)):
            return mask
        mask = self._named(masks, "", image, index)
        return None if inside != "." and mask in self.shared(masks) else mask

    def _named(self, masks: Mapping[str, Path], inside: str, image: Path, index: int | None) -> Path | None:
        frame = "" if index is None else f"_{index:04d}"
        folder = "" if self.case is None else f"{self.case}/"
        names = (image.stem, image.name)  # names without an extension may hold dots
        found = (masks.get(plain(f"{folder}{inside}{name}{frame}")) for name in names)
        return next((path for path in found if path is not None and not nifti.is_nifti(path)), None)

    def shared(self, masks: Mapping[str, Path]) -> dict[Path, list[Path]]:
        """Return the masks without a sub-folder that several scans of the case have the name of, with these scans."""
        if id(masks) not in self._shared:
            scans: dict[Path, dict[Path, None]] = {}
            for item in self.listing.slices:
                if mask := self._named(masks, "", item.path, item.index):
                    scans.setdefault(mask, {})[item.path] = None
            self._shared[id(masks)] = {mask: list(paths) for mask, paths in scans.items() if len(paths) > 1}
        return self._shared[id(masks)]

    def masks_of_copies(self, masks: Mapping[str, Path], search: Search) -> Iterator[Path]:
        """Yield the masks of files that are left out as copies of others, and name each as a fault."""
        for copy, kept in self.listing.copies.items():
            frames = dicom.read_head(copy).frames
            for index in [None] if frames == 1 else range(frames):
                if (mask := self._png(masks, copy, index)) is None:
                    continue
                own = self._png(masks, kept, index)
                text = f"is the mask of {shown(copy.name)}, which is left out as a copy of {shown(kept.name)}"
                if own is None:
                    search.fault(mask, f"{text}. Remove that scan, or name the mask as the other.")
                else:
                    search.fault(mask, f"{text}, whose own mask is used. Remove that scan and its mask.", "warning")
                yield mask

    def _unreadable(self, path: Path, masks: Mapping[str, Path]) -> Record:
        """Return the record of a file that reading then names, so that it neither is lost nor stops the others."""
        case = self.case or f"unreadable {path.name}"
        return Record(f"{case}/unreadable/{plain(path.name)}", case, path, self._png(masks, path, None))


def _parts(folder: Path, files: Sequence[Path]) -> list[_Part]:
    """Return the files by case, their heads read once for finding and describing."""
    cases: dict[str | None, list[Path]] = {}
    for path in files:
        inside = path.relative_to(folder).parts
        cases.setdefault(plain(inside[0]) if len(inside) > 1 else None, []).append(path)
    return [
        _Part(case, _listed(tuple(paths), _stamps(paths)), folder if case is None else _top(paths[0], folder))
        for case, paths in cases.items()
    ]


def _top(path: Path, folder: Path) -> Path:
    return folder / path.relative_to(folder).parts[0]


def _stamps(paths: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    return tuple((status.st_mtime_ns, status.st_size) for status in (path.stat() for path in paths))


@lru_cache(maxsize=4096)
def _listed(paths: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> dicom.Listing:
    return dicom.list_series(paths)


def _record(id: str, series: str, case: str, item: dicom.Slice, mask: Path | None) -> Record:
    volume = None if item.volume is None else f"{series}/{item.volume}"
    return Record(id, case, item.path, mask, item.spacing, item.index, volume=volume, place=item.place)


def _overlaid(path: Path, record: Record, size: tuple[int, int]) -> np.ndarray:
    """Sample a label volume at the centres of one slice's pixels: orientation and slice order do not matter."""
    if nifti.frame_count(path) > 1:
        raise UserError(f"{path}: holds several frames; a DICOM series is labelled by a volume. Save one frame.")
    nearest = _voxels(path, dicom.plane_affine(record.image, index=record.index), size)
    if nearest is None:
        raise UserError(
            f"{path}: the label volume does not lie on the grid of {record.image.name}. Resample it to the DICOM "
            "series (nearest neighbour), or give PNG masks."
        )
    return _labels_at(path, nearest).reshape(size)


def _labels_at(path: Path, voxels: np.ndarray) -> np.ndarray:
    """Return the labels of voxels, (3, N) in canonical order, from the few slices of the volume that they lie in.

    The whole volume for each slice of its series would take minutes.
    """
    shape, _ = nifti.canonical_grid(path)
    axis = min(range(3), key=lambda one: np.ptp(voxels[one]))
    columns, rows = (other for other in range(3) if other != axis)
    labels = np.empty(voxels.shape[1], np.int32)
    for place in np.unique(voxels[axis]):
        here = voxels[axis] == place
        shown_plane = nifti.read_label_slice(path, int(place), axis=axis)  # its rows and columns run backwards
        labels[here] = shown_plane[shape[rows] - 1 - voxels[rows, here], shape[columns] - 1 - voxels[columns, here]]
    return labels


def _voxels(volume: Path, plane: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Return the voxel of each pixel of a plane, (3, H * W) in canonical order; None where it is none of the volume's.

    The head of the file says it.
    """
    shape, affine = nifti.canonical_grid(volume)
    rows, columns = np.indices(size)
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    voxels = (np.linalg.inv(affine) @ plane @ pixels)[:3]
    nearest = np.rint(voxels).astype(np.intp)
    outside = (nearest < 0).any() or (nearest >= np.array(shape)[:, None]).any()
    return None if outside or np.abs(voxels - nearest).max() > _GRID_TOLERANCE else nearest


DICOM = Layout("dicom", ("foreground",), find, read_dicom_image, read_dicom_mask, fits, DESCRIPTION, describe)
