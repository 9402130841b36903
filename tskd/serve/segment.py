"""One upload through the network: labels, areas, confidence, and the forms in which they are answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, Field

from tskd.data import dicom, nifti
from tskd.data.grey_levels import LevelUse, level_use
from tskd.data.images import read_image
from tskd.data.intensity import IntensityWindow
from tskd.data.labels import count_bytes
from tskd.data.memory_files import MemoryFolder
from tskd.deploy import dicom_out
from tskd.deploy.bundle import Bundle
from tskd.deploy.doubt import MEANING, of_volume, remark
from tskd.deploy.inputs import Frame, Item
from tskd.deploy.label_files import label_file
from tskd.deploy.network_file import Answer
from tskd.deploy.tiles import ask_by_size
from tskd.errors import UserError
from tskd.serve.limits import Limits, Refused, without_paths
from tskd.serve.uploads import find_item

if TYPE_CHECKING:
    from onnxruntime import RunOptions

JSON, PNG, NIFTI, SEG = "application/json", "image/png", "application/x-nifti", "application/dicom"
FORMS = {JSON: ".json", PNG: ".png", NIFTI: ".nii.gz", SEG: dicom_out.SUFFIX}
"""Media type of an answer -> how its file ends."""


class ClassArea(BaseModel):
    """What was found of one class."""

    index: int
    name: str
    pixels: int
    mm2: float | None = Field(description="Area in square millimetres, of a single image that states its spacing.")
    ml: float | None = Field(description="Volume in millilitres, of a volume that states its spacing.")


class SliceFound(BaseModel):
    """What was found in one slice; an image has one."""

    pixels: list[int] = Field(description="Of each class, in the order of classes.")
    confidence: float
    unfamiliarity: float | None = Field(description="Distance from the training images; above 1 it is unlike them.")
    look: str = Field(description="Why somebody should look at it; empty where nothing speaks for it.")


class Found(BaseModel):
    """What was found in an upload."""

    kind: str = Field(description="image, nifti or series (DICOM)")
    height: int
    width: int
    spacing_mm: list[float] | None = Field(description="Along row, column and, of a volume, from slice to slice.")
    classes: list[ClassArea]
    confidence: float
    confidence_is_calibrated: bool
    confidence_means: str
    slices: list[SliceFound]
    remarks: list[str] = Field(description="What to know of the file, such as missing slices or lost grey levels.")
    model_sha256: str
    seconds: float


@dataclass(frozen=True)
class Segmented:
    """An upload with its labels."""

    folder: MemoryFolder
    item: Item
    planes: Sequence[np.ndarray]
    """(H, W) uint8, one a slice."""
    found: Found
    window: IntensityWindow | None
    """The network's, by which stored values are read; None: each format's own rule, or it was applied already."""


class Segmenter:
    """A bundle that answers uploads; several threads may ask at once."""

    def __init__(self, bundle: Bundle, limits: Limits, threads: int | None = None) -> None:
        self.bundle, self.limits = bundle, limits
        self.session = bundle.session(threads)
        self.digest = bundle.digest

    def segment(self, folder: MemoryFolder) -> Segmented:
        """Find the labels of the one image or volume in a folder in memory; raises Refused."""
        return self._segment(folder, self.bundle.window)

    def segment_seen(self, folder: MemoryFolder, spacing: tuple[float, ...] | None) -> Segmented:
        """Do the same for an image that :meth:`read` returned: no window is applied to it again; ``spacing`` in mm."""
        return self._segment(folder, None, spacing)

    def _segment(
        self, folder: MemoryFolder, window: IntensityWindow | None, spacing: tuple[float, ...] | None = None
    ) -> Segmented:
        began = time.monotonic()
        try:
            item, remarks = find_item(folder, self.bundle.axis, self.limits)
            if spacing is not None:
                item = replace(item, frames=tuple(replace(frame, spacing=spacing) for frame in item.frames))
            planes, slices, grey = self._slices(item, window)
        except UserError as error:
            raise Refused(422, without_paths(str(error), folder)) from error
        if len({plane.shape for plane in planes}) > 1:
            raise Refused(422, "The slices differ in size; send them one by one.")
        if grey.is_lossy:
            remarks.append(f"{grey.describe()}.".capitalize())
        if (frames := _frames(item)) > 1:
            remarks.append(f"The file holds {frames} volumes (4-D). They are not one: no millilitres are stated.")
        found = self._found(item, planes, slices, remarks, time.monotonic() - began)
        return Segmented(folder, item, planes, found, window)

    def ask(self, image: np.ndarray, options: RunOptions | None = None) -> Answer:
        """Return the network's answer for one image (H, W, 3) uint8."""
        return ask_by_size(self.session, image, self.bundle.tile, options)

    def read(self, frame: Frame) -> np.ndarray:
        """Return a frame as the network sees it, (H, W, 3) uint8."""
        return self.read_by(self.bundle.window, frame)

    def read_by(self, window: IntensityWindow | None, frame: Frame) -> np.ndarray:
        """Return a frame read by that window instead of the network's."""
        return read_image(frame.path, index=frame.index, intensity=window, axis=self.bundle.axis)

    def _slices(
        self, item: Item, window: IntensityWindow | None
    ) -> tuple[list[np.ndarray], list[SliceFound], LevelUse]:
        planes, slices, grey = [], [], LevelUse()
        with _within(self.limits.seconds) as clock:
            for frame in item.frames:
                image = self.read_by(window, frame)
                clock.check()
                try:
                    answer = self.ask(image, clock.options)
                except UserError:
                    clock.check()
                    raise
                grey |= level_use(image, frame.path, index=frame.index, axis=self.bundle.axis, window=window)
                counts = count_bytes(answer.classes)[1 : len(self.bundle.classes) + 1].tolist()
                slices.append(_slice_found(counts, answer, self.bundle.look_below))
                planes.append(answer.classes)
        return planes, slices, grey

    def _found(
        self, item: Item, planes: Sequence[np.ndarray], slices: list[SliceFound], remarks: list[str], seconds: float
    ) -> Found:
        spacing = item.frames[0].spacing
        totals = np.sum([one.pixels for one in slices], axis=0).tolist()
        height, width = planes[0].shape
        return Found(
            kind=item.kind,
            height=height,
            width=width,
            spacing_mm=None if spacing is None else list(spacing),
            classes=[
                ClassArea(index=index, name=name, pixels=count, **_size(item, count, spacing))
                for index, (name, count) in enumerate(zip(self.bundle.classes, totals, strict=True), 1)
            ],
            confidence=of_volume([one.confidence for one in slices], [sum(one.pixels) for one in slices]),
            confidence_is_calibrated=self.bundle.is_calibrated,
            confidence_means=MEANING,
            slices=slices,
            remarks=remarks,
            model_sha256=self.digest,
            seconds=round(seconds, 3),
        )


def _slice_found(pixels: list[int], answer: Answer, look_below: float) -> SliceFound:
    look = remark(answer, look_below=look_below)
    return SliceFound(pixels=pixels, confidence=answer.confidence, unfamiliarity=answer.unfamiliarity, look=look)


def in_form(done: Segmented, form: str, segmenter: Segmenter) -> bytes:
    """Return an answer as the content of a file of one of :data:`FORMS`; raises Refused (406) where there is none."""
    bundle = segmenter.bundle
    if form == JSON:
        return done.found.model_dump_json().encode()
    if form == SEG:
        return _segmentation(done, segmenter)
    if (form == PNG) != (done.item.kind == "image"):
        raise Refused(406, "An image is answered as PNG, a volume as NIfTI; both as JSON, DICOM also as DICOM SEG.")
    try:
        return label_file(done.item, done.planes, bundle.axis)
    except UserError as error:
        raise Refused(422, without_paths(str(error), done.folder)) from error


def _segmentation(done: Segmented, segmenter: Segmenter) -> bytes:
    slices = done.item.slices
    if not slices:
        raise Refused(406, "A DICOM segmentation refers to DICOM images, and this is none; ask for PNG or NIfTI.")
    model = dicom_out.model_of(segmenter.bundle)
    try:
        sources = [dicom_out.Source(dicom.read_head(one.path).data, one.index) for one in slices]
        return dicom_out.as_bytes(dicom_out.segmentation(sources, np.stack(done.planes), model))
    except dicom_out.NoSegmentation as error:
        raise Refused(406, f"The file {error}") from error
    except UserError as error:
        raise Refused(422, without_paths(str(error), done.folder)) from error


def _frames(item: Item) -> int:
    return nifti.frame_count(item.source) if item.kind == "nifti" else 1


def _size(item: Item, count: int, spacing: Sequence[float] | None) -> dict[str, float | None]:
    """Return area or volume where the spacing is known: what a single pixel cannot be is left out."""
    single = item.kind == "image"
    if spacing is None or (not single and len(spacing) < 3) or _frames(item) > 1:
        return {"mm2": None, "ml": None}
    measure = float(f"{count * float(np.prod(spacing[:2] if single else spacing)) * (1 if single else 1e-3):.6g}")
    return {"mm2": measure if single else None, "ml": None if single else measure}


@dataclass
class _Clock:
    """The time that one upload may take."""

    options: RunOptions
    seconds: float
    is_over: bool = False

    def end(self) -> None:
        self.is_over = self.options.terminate = True

    def check(self) -> None:
        if self.is_over:
            raise Refused(
                504,
                f"The work took longer than {self.seconds:g} s and was ended; send fewer slices, smaller images (large "
                "ones may be answered in many tiles), or let the server have more time (--max-seconds).",
            )


@contextmanager
def _within(seconds: float) -> Iterator[_Clock]:
    """End the network's work after a time, also in the middle of an image."""
    from onnxruntime import RunOptions

    clock = _Clock(RunOptions(), seconds)
    timer = threading.Timer(seconds, clock.end)
    timer.daemon = True
    timer.start()
    try:
        yield clock
    finally:
        timer.cancel()
