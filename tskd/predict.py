"""Files in, masks out: a bundle's network on images, NIfTI volumes and DICOM series."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
from nibabel.orientations import io_orientation, ornt_transform
from PIL import Image

from tskd.artifacts import write_atomic
from tskd.bundle import Bundle
from tskd.cells import ENCODING_ERRORS, harmless
from tskd.console import Advance, duration, progress, warn
from tskd.data import nifti
from tskd.data.images import IMAGE_SUFFIXES, IntensityWindow, read_image
from tskd.errors import UserError, require_folder
from tskd.network_file import Answer, ask
from tskd.overlays import draw_overlay, enlargement
from tskd.predict_inputs import Failure, Frame, Item, find_items, series_affine

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TABLE = "predictions.csv"
_COLUMNS = ("file", "slice", "output", "height", "width", "class", "name", "pixels", "mm2")


@dataclass(frozen=True)
class PredictOptions:
    """What to write besides the labels, and how to work."""

    probabilities: bool = False
    """Also ``<name>.probabilities.npz``: float32 (K + 1, H, W) an image or slice."""
    overlays: bool = False
    """Also ``<name>.overlay.png``: the labels as colours on the image."""
    overwrite: bool = False
    threads: int | None = None
    """CPU threads of the network; None: as onnxruntime chooses."""


@dataclass(frozen=True)
class Prediction:
    """What was found in one image or slice."""

    source: Path
    slice: int | None
    """Place in the volume of labels; None: the labels are one image."""
    output: Path
    height: int
    width: int
    pixels: tuple[int, ...]
    """Of each foreground class."""
    pixel_mm2: float | None
    """Area of a pixel where the file states a spacing."""

    def lines(self, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the lines of the table: one a class."""
        for label, (name, count) in enumerate(zip(classes, self.pixels, strict=True), start=1):
            area = None if self.pixel_mm2 is None else round(count * self.pixel_mm2, 3)
            place = (str(self.source), self.slice, str(self.output), self.height, self.width)
            yield dict(zip(_COLUMNS, (*place, label, name, count, area), strict=True))


@dataclass
class Outcome:
    """What became of all inputs."""

    classes: tuple[str, ...]
    predictions: list[Prediction] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    """From the first file read to the last one written."""

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of ``predictions.csv``."""
        return [line for prediction in self.predictions for line in prediction.lines(self.classes)]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        failures = [{"file": str(failure.source), "problem": failure.problem} for failure in self.failures]
        return {"classes": list(self.classes), "predictions": self.lines(), "failures": failures}

    def summary(self, out: Path) -> str:
        """Return what was done in one line; ``out`` is where :func:`predict_paths` was told to write."""
        found: Counter[Path] = Counter()
        for prediction in self.predictions:
            found[prediction.output] += sum(prediction.pixels)
        images, masks, empty = len(self.predictions), len(found), sum(count == 0 for count in found.values())
        pace = self.seconds / max(images, 1)
        return (
            f"{images} image{'' if images == 1 else 's'} in {duration(self.seconds)} ({pace:.2f} s each); "
            f"{masks} mask{'' if masks == 1 else 's'} in {out}, {empty} of them empty; areas in {out / TABLE}"
        )

    def require_complete(self) -> None:
        """Raise UserError naming the files that could not be predicted, if there are any."""
        if self.failures:
            named = "".join(f"\n  {failure.source}" for failure in self.failures)
            raise UserError(f"{len(self.failures)} inputs could not be predicted; all others are done:{named}")


def predict_paths(
    bundle: Bundle, inputs: Sequence[Path], out: Path, *, options: PredictOptions | None = None
) -> Outcome:
    """Predict files and folders into the folder ``out``; return what was found and what could not be read.

    An image gives ``<name>.png`` with class indices at the same relative path, a NIfTI volume a label volume on its
    grid, a DICOM series a NIfTI label volume where its slices form one grid, else an image a slice. ``predictions.csv``
    lists areas. A file that cannot be read is named on stderr and does not stop the others. Raises UserError where
    there is nothing to predict, two results would have one name, or results exist and ``overwrite`` is not set.
    """
    options = options or PredictOptions()
    require_folder(out)
    items, failures = find_items(inputs, results=out, axis=bundle.axis)
    if not items and not failures:
        raise UserError(
            f"{', '.join(map(str, inputs))}: no image found. Allowed: {', '.join(IMAGE_SUFFIXES)}, DICOM, NIfTI."
        )
    _refuse_conflicts(items, out, options)
    outcome = Outcome(bundle.classes, failures=failures)
    for failure in failures:
        warn(failure.problem)
    work = _Work(bundle.session(options.threads), bundle.window, bundle.axis, len(bundle.classes), out, options)
    began = time.monotonic()
    try:
        _predict_all(items, work, outcome)
    finally:  # stopped by hand or by a full disk: what was written is in the table all the same
        outcome.seconds = time.monotonic() - began
        _write_table(outcome, out)
    return outcome


def _predict_all(items: Sequence[Item], work: _Work, outcome: Outcome) -> None:
    done = 0
    with progress("predict", sum(len(item.frames) for item in items)) as advance:
        for item in items:
            try:
                outcome.predictions += work.predict(item, partial(_advance, advance, done))
            except UserError as error:
                outcome.failures.append(Failure(item.source, str(error)))
                warn(str(error))
            done += len(item.frames)
            advance(done)


def _advance(advance: Advance, before: int, frames: int) -> None:
    advance(before + frames)


@dataclass(frozen=True)
class _Work:
    """What is the same for all items."""

    session: InferenceSession
    window: IntensityWindow | None
    axis: int
    """Along which NIfTI volumes are sliced."""
    classes: int
    out: Path
    options: PredictOptions

    def predict(self, item: Item, advance: Callable[[int], None]) -> list[Prediction]:
        """Predict the frames of an item one by one, then write its labels: a volume appears whole or not at all."""
        planes: list[np.ndarray] = []
        predictions = []
        for number, frame in enumerate(item.frames):
            image = read_image(frame.path, index=frame.index, intensity=self.window, axis=self.axis)
            answer = ask(self.session, image)
            place = None if item.kind == "image" else number
            predictions.append(self._found(item, frame, place, answer.classes))
            self._write_extras(item, place, image, answer)
            planes.append(answer.classes)
            advance(number + 1)
        write_file(self.out / item.output, _label_file(item, planes, self.axis))
        return predictions

    def _found(self, item: Item, frame: Frame, place: int | None, labels: np.ndarray) -> Prediction:
        counts = np.bincount(labels.ravel(), minlength=self.classes + 1)[1:]
        area = None if frame.spacing is None else frame.spacing[0] * frame.spacing[1]
        height, width = labels.shape
        return Prediction(frame.path, place, item.output, height, width, tuple(counts.tolist()), area)

    def _write_extras(self, item: Item, place: int | None, image: np.ndarray, answer: Answer) -> None:
        if self.options.probabilities:
            content = io.BytesIO()
            np.savez_compressed(content, probabilities=answer.probabilities)
            write_file(self.out / _extra(item, place, "probabilities.npz"), content.getvalue())
        if self.options.overlays:
            drawn = draw_overlay(image, None, answer.classes, classes=self.classes, enlarge=enlargement(image))
            write_file(self.out / _extra(item, place, "overlay.png"), _png(drawn))


def volume_like(path: Path, planes: np.ndarray, *, axis: int = 2) -> nibabel.Nifti1Image:
    """Return labels (N, H, W), a NIfTI file's slices along ``axis`` as ``nifti.read_slice`` numbers and shows them.

    Shape, affine and orientation are those of the file; N is the number of slices times that of frames.
    """
    _, affine = nifti.canonical_grid(path)
    frames = nifti.frame_count(path)
    framed = planes.reshape(frames, -1, *planes.shape[1:])[..., ::-1, ::-1].transpose(3, 2, 1, 0)
    voxels = np.moveaxis(framed if frames > 1 else framed[..., 0], 2, axis)
    canonical = nibabel.Nifti1Image(voxels, affine)
    stored_affine = nibabel.load(path).affine
    moved = canonical.as_reoriented(ornt_transform(io_orientation(affine), io_orientation(stored_affine)))
    return _labels(np.asarray(moved.dataobj), stored_affine)


def _label_file(item: Item, planes: Sequence[np.ndarray], axis: int) -> bytes:
    if item.kind == "image":
        return _png(planes[0])
    if len({plane.shape for plane in planes}) > 1:
        raise UserError(f"{item.source}: the slices differ in size. Give them as single files.")
    if item.kind == "nifti":
        volume = volume_like(item.source, np.stack(planes), axis=axis)
    else:
        volume = _labels(np.stack(planes, axis=2), series_affine(item.frames))
    return gzip.compress(volume.to_bytes(), compresslevel=6, mtime=0)


def _labels(voxels: np.ndarray, affine: np.ndarray | None) -> nibabel.Nifti1Image:
    volume = nibabel.Nifti1Image(voxels, affine, dtype=np.uint8)
    volume.header.set_xyzt_units("mm")
    return volume


def _png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write_file(path: Path, content: bytes) -> None:
    """Write a file in one step, its folder made where it is missing; UserError where the disk takes no such name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"{path}: the name of this result is too long for the disk. Shorten the input's."
            ) from error
        raise


def _extra(item: Item, place: int | None, ending: str) -> Path:
    name = item.name.name if place is None else f"{item.name.name}_{place:04d}"
    return item.name.with_name(f"{name}.{ending}")


def _results(item: Item, options: PredictOptions) -> Iterator[Path]:
    yield item.output
    places = [None] if item.kind == "image" else range(len(item.frames))
    for place in places:
        if options.probabilities:
            yield _extra(item, place, "probabilities.npz")
        if options.overlays:
            yield _extra(item, place, "overlay.png")


def _refuse_conflicts(items: Sequence[Item], out: Path, options: PredictOptions) -> None:
    origin: dict[Path, Item] = {}
    for item in items:
        for path in _results(item, options):
            other = origin.setdefault(path, item)
            if other is not item:
                raise UserError(
                    f"{other.source} and {item.source} would both be answered in {path}. "
                    "Rename one, or predict them into two folders."
                )
    sources = {frame.path.resolve() for item in items for frame in item.frames}
    if hit := next((path for path in origin if (out / path).resolve() in sources), None):
        raise UserError(f"{out / hit} is one of the inputs; results never replace them. Choose another --out.")
    existing = [path for path in (*origin, Path(TABLE)) if _exists(out / path)]
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


def _write_table(outcome: Outcome, out: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(map(harmless, outcome.lines()))
    write_file(out / TABLE, text.getvalue().encode(errors=ENCODING_ERRORS))
