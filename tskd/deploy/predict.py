"""Files in, masks out: a bundle's network on images, NIfTI volumes and DICOM series."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from itertools import groupby
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tskd.console import progress, warn
from tskd.data.grey_levels import LevelUse, level_use
from tskd.data.images import IntensityWindow, image_size, read_image
from tskd.data.labels import count_bytes
from tskd.data.png import packed
from tskd.data.reading import MAX_PIXELS
from tskd.data.tiles import count_looks, fits
from tskd.deploy.bundle import Bundle
from tskd.deploy.dicom_out import Kind, SegmentationFiles, model_of
from tskd.deploy.doubt import remark
from tskd.deploy.inputs import Frame, Item, dicom_name, find_items, image_item
from tskd.deploy.label_files import draft_all, label_file, placeable
from tskd.deploy.looking import FrameProgress, Look, Room, look_ahead
from tskd.deploy.network_file import Answer, ask
from tskd.deploy.outcome import Outcome, Prediction
from tskd.deploy.result_names import (
    Place,
    Protected,
    apart,
    by_any_options,
    extra,
    place_of,
    refuse_replacing,
    results,
    segmentation_name,
)
from tskd.deploy.tiles import ask_in_tiles
from tskd.errors import UserError, name_of, refused_by_system, require_folder, until_terminated
from tskd.machine.disk import Draft
from tskd.machine.memory import cores
from tskd.overlays import draw_overlay, enlargement

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_WORKERS = 2
"""Frames in work for each thread that the network has: while one is answered, another is read, drawn or written."""


@dataclass(frozen=True)
class PredictOptions:
    """What to write besides the labels, and how to work."""

    probabilities: bool = False
    """Also ``<name>.probabilities.npz``: float32 (K + 1, H, W) an image or slice."""
    overlays: bool = False
    """Also ``<name>.overlay.png``: the labels as colours on the image."""
    overwrite: bool = False
    threads: int | None = None
    """CPU threads; None: all that this process may use."""
    dicom_seg: Kind | None = "binary"
    """Of DICOM also ``<name>.seg.dcm``, a DICOM Segmentation of this kind; None: not."""
    tile: int | None = None
    """Side in px of the overlapping tiles in which larger images are answered; None: as it was trained, 0: whole."""


@until_terminated()
def predict_paths(
    bundle: Bundle,
    inputs: Sequence[Path],
    out: Path,
    *,
    options: PredictOptions | None = None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Predict files and folders into the folder ``out``; return what was found and what could not be read.

    An image gives ``<name>.png`` with class indices at the same relative path, a NIfTI volume a label volume on its
    grid, a DICOM series a NIfTI label volume where its slices form one grid, else an image a slice. ``predictions.csv``
    lists areas. A file that cannot be read is named on stderr and does not stop the others, nor do two whose results
    would have one name: neither is predicted. A given ``outcome`` is filled as the work goes, so that it tells what is
    done also where that is stopped. Raises UserError where there is nothing to predict, or results exist and
    ``overwrite`` is not set.
    """
    options = options or PredictOptions()
    outcome = outcome or Outcome(())
    outcome.classes, outcome.model = bundle.classes, bundle.digest
    require_folder(out)
    bundle.refuse_inside(out)
    found = find_items(inputs, results=out, axis=bundle.axis)
    items, alike = apart(found.items, options)
    protected = Protected.of(found.paths)
    failures = [*found.failures, *alike]
    for said in [*found.remarks, *(failure.problem for failure in failures)]:
        warn(said)
    if items:
        refuse_replacing(items, out, options, inputs=protected)
    outcome.failures += failures
    if not items:  # no table of nothing, which the corrected command would have to replace
        outcome.require_complete()
    outcome.not_done += [item.source for item in items]
    segmentations = SegmentationFiles(model_of(bundle), options.dicom_seg)
    threads = options.threads or cores()
    at_once = min(threads, sum(len(item.frames) for item in items)) or 1
    session, classes = bundle.session(threads // at_once), len(bundle.classes)
    with ThreadPoolExecutor(at_once, thread_name_prefix="tskd-network") as network:
        work = _Work(
            session, network, bundle.window, bundle.axis, classes, bundle.tile_for(options.tile), bundle.look_below,
            out, options, segmentations,
            inputs=protected, taken={path for item in items for path in results(item, options)},
        )  # fmt: skip
        _predict_and_list(items, work, at_once * _WORKERS, outcome)
    return outcome


def _predict_and_list(items: Sequence[Item], work: _Work, workers: int, outcome: Outcome) -> None:
    """Predict all items and write the table; stopped by hand, by SIGTERM or by a full disk it holds what is done."""
    began = time.monotonic()
    try:
        _predict_all(items, work, workers, outcome)
        work.segmentations.tell()
    except OSError:
        _list_where_it_can_be_written(outcome, work.out)
        raise
    except BaseException:
        outcome.seconds = time.monotonic() - began
        _list_where_it_can_be_written(outcome, work.out)
        warn(f"stopped before the end, {len(outcome.not_done)} not done: {outcome.summary(work.out)}")
        raise
    outcome.seconds = time.monotonic() - began
    outcome.write_table(work.out)


def _list_where_it_can_be_written(outcome: Outcome, out: Path) -> None:
    try:
        outcome.write_table(out)
    except OSError as error:
        if outcome.predictions:
            warn(f"the masks that are done are not listed: {refused_by_system(error)}")


class _Place(NamedTuple):
    """Where a frame is: the item's place among all, and the frame's in it."""

    order: int
    number: int


def _predict_all(items: Sequence[Item], work: _Work, workers: int, outcome: Outcome) -> None:
    done, total, given_up, far = 0, sum(len(item.frames) for item in items), set[int](), FrameProgress()
    places = (_Place(order, number) for order, item in enumerate(items) for number in range(len(item.frames)))
    looks = look_ahead(
        (place for place in places if place.order not in given_up),  # asked as late as each is begun
        lambda place: work.see(items[place.order], place.number, far),
        workers,
    )
    with progress("predict", total) as advance, closing(looks), closing(work.room):
        far.advance = advance
        for order, own in groupby(looks, key=lambda look: look.frame.order):
            item = items[order]
            try:
                with _one_of_many(item):
                    work.finish(item, own, outcome, partial(far.at_frame, done))
            except UserError as error:
                outcome.fail(item.source, f"{error}{work.of_before(item)}")
                given_up.add(order)
            outcome.not_done.pop(0)
            done += len(item.frames)
            far.at_frame(0, done)


@contextmanager
def _one_of_many(item: Item) -> Iterator[None]:
    """Turn whatever goes wrong with one item into a UserError that names it.

    What the system refuses passes: files are read behind a boundary of their own, so it is the disk that takes no more.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # of the network, of memory, a defect of ours
        raise UserError(
            f"{item.source}: could not be predicted ({name_of(error)}). The others are done; "
            "`tskd check` on its folder says whether the file can be read."
        ) from error


class _Unreadable(UserError):
    """It is the frame that cannot be read, not the network that fails on it."""


@dataclass(frozen=True)
class _Seen:
    """What was made of one frame."""

    prediction: Prediction
    grey: LevelUse
    plane: np.ndarray | None
    """(H, W) uint8 labels, where more is made of them than an image's own file."""
    drafts: list[Draft]
    """The frame's own files."""

    def discard(self) -> None:
        """Remove the files that have not appeared."""
        for one in self.drafts:
            one.discard()

    def handed_over(self, undo: ExitStack) -> _Seen:
        """Return it as what ``undo`` discards in the end, no longer whoever made it."""
        kept = replace(self, drafts=list(self.drafts))
        undo.callback(kept.discard)
        self.drafts.clear()
        return kept


@dataclass(frozen=True)
class _Work:
    """What is the same for all items."""

    session: InferenceSession
    network: ThreadPoolExecutor
    """Threads that ask it, each with its share of the processors: they never wait for a disk."""
    window: IntensityWindow | None
    axis: int
    """Along which NIfTI volumes are sliced."""
    classes: int
    tile: int | None
    """Side of the tiles in which larger images are answered."""
    look_below: float
    """Confidence below which an answer is to be looked at."""
    out: Path
    options: PredictOptions
    segmentations: SegmentationFiles
    inputs: Protected
    """All files found: none is replaced."""
    taken: set[Path]
    """Relative paths of all items' results."""
    written: set[Place | None] = field(default_factory=set)
    """Where the results that are there by now lie."""
    room: Room = field(default_factory=lambda: Room(MAX_PIXELS))
    """For what one image may have at most: a pixel takes some 35 bytes while it is answered."""

    def see(self, item: Item, number: int, far: FrameProgress) -> _Seen:
        """Return what is made of one frame, its own files as drafts; several threads may do so at once.

        Raises UserError where it cannot be read or answered, OSError where the disk takes no more.
        """
        frame, place = item.frames[number], None if item.kind == "image" else number
        with self.room.of(_pixels(frame)):
            image = self._read(frame)
            answer = self.network.submit(self._ask, image, far).result()
            self.room.require_open()
            grey = level_use(image, frame.path, index=frame.index, axis=self.axis, window=self.window)
            prediction = self._found(item, frame, place, answer)
            drafts = draft_all((self.out / path, content) for path, content in self._own(item, place, image, answer))
        plane = None if item.kind == "image" and not item.slices else answer.classes
        return _Seen(prediction, grey, plane, drafts)

    def _read(self, frame: Frame) -> np.ndarray:
        try:
            return read_image(frame.path, index=frame.index, intensity=self.window, axis=self.axis)
        except UserError as error:
            raise _Unreadable(str(error)) from error

    def _ask(self, image: np.ndarray, far: FrameProgress) -> Answer:
        """Return the network's answer, for the whole image or by tiles."""
        if self.tile is None or fits(image.shape, self.tile):
            return self._look(image)
        with far.tiles(count_looks(image.shape, self.tile)) as answered:

            def look(part: np.ndarray) -> Answer:
                found = self._look(part)
                answered()
                return found

            return ask_in_tiles(look, image, self.tile)

    def _look(self, image: np.ndarray) -> Answer:
        self.room.require_open()  # those that wait for a thread need not be asked any more
        return ask(self.session, image)

    def _own(self, item: Item, place: int | None, image: np.ndarray, answer: Answer) -> Iterator[tuple[Path, bytes]]:
        """Yield the files of one frame: the labels, of an image, come last."""
        if self.options.probabilities:
            stored = io.BytesIO()
            np.savez_compressed(stored, probabilities=answer.probabilities)
            yield extra(item, place, "probabilities.npz"), stored.getvalue()
        if self.options.overlays:
            drawn = draw_overlay(image, None, answer.classes, classes=self.classes, enlarge=enlargement(image))
            yield extra(item, place, "overlay.png"), packed(drawn)
        if place is None:
            yield item.output, packed(answer.classes)

    def finish(
        self, item: Item, looks: Iterable[Look[_Place, _Seen]], outcome: Outcome, advance: Callable[[int], None]
    ) -> None:
        """Let all files of an item appear together once all of its frames are answered, and note what was found.

        Where a slice of a DICOM series is damaged, its volume is none: the others become images of their own.
        """
        seen: dict[int, _Seen] = {}
        with ExitStack() as undo:
            for look in looks:
                number = look.frame.number
                try:
                    seen[number] = look.taken().handed_over(undo)
                except _Unreadable as error:
                    if item.kind != "series":
                        raise
                    outcome.fail(item.frames[number].path, str(error))
                advance(number + 1)
            if not seen:
                raise UserError(f"{item.source}: none of its {len(item.frames)} slices can be read.")
            if len(seen) == len(item.frames):
                self._write(item, list(seen.values()), outcome)
            else:
                self._write_apart(item, seen, outcome)
        grey = reduce(or_, (one.grey for one in seen.values()), LevelUse())
        if grey.is_lossy:
            warn(f"{item.source}: {grey.describe()}. A model for such images is trained with {grey.advise()}.")

    def _write(self, item: Item, seen: Sequence[_Seen], outcome: Outcome) -> None:
        """Let an item's files appear once all are written, and note it: no mask is there without its row."""
        planes = [one.plane for one in seen if one.plane is not None]
        with ExitStack() as undo:
            drafts = [draft for one in seen for draft in one.drafts]
            if item.kind != "image":
                drafts += draft_all([(self.out / item.output, label_file(item, planes, self.axis))])
            for one in drafts:
                undo.callback(one.discard)
            segmentation = self._segmentation(item, planes)
            for one in segmentation:
                undo.callback(one.discard)
            self._require_own([one.path for one in drafts])
            for one in drafts:
                with placeable(one.path):
                    one.publish()
                self.written.add(place_of(one.path))
            outcome.predictions += [one.prediction for one in seen]
            published = {one.path for one in drafts}
            if self._publish_segmentation(item, segmentation):
                outcome.segmentations.append(segmentation_name(item))
                published.add(self.out / segmentation_name(item))
        self._remove_stale(item, published)

    def _require_own(self, paths: Sequence[Path]) -> None:
        """Raise UserError where a path is, on a disk where upper and lower case are alike, another item's result."""
        for path in paths:
            if (place := place_of(path)) is not None and place in self.written:
                raise UserError(
                    f"{path}: is the result of another image, whose name differs in upper and lower case alone. Rename "
                    "one, or predict them into two folders."
                )

    def _segmentation(self, item: Item, planes: Sequence[np.ndarray]) -> list[Draft]:
        content = self.segmentations.content(item, planes)
        return [] if content is None else draft_all([(self.out / segmentation_name(item), content)])

    def _publish_segmentation(self, item: Item, drafts: Sequence[Draft]) -> bool:
        try:
            for one in drafts:
                with placeable(one.path):
                    one.publish()
        except UserError:  # its name is longer than the labels', which need not go without
            self.segmentations.leave_out(item, "has a name too long for a segmentation's, or one that is taken.")
            return False
        return bool(drafts)

    def _remove_stale(self, item: Item, published: Collection[Path] = ()) -> None:
        """Remove what an earlier run wrote for an item and this one does not: beside new labels it would be another's.

        Where nothing may be replaced there is nothing of an earlier run. Single slices of a series that was damaged
        then stay: pictures of such names may be anybody's.
        """
        if not self.options.overwrite:
            return
        of_others = self.taken - {*results(item, self.options)}
        for path in by_any_options(item, self.options) - of_others:
            stale = self.out / path
            if stale not in published and stale not in self.inputs and place_of(stale) not in self.written:
                with suppress(OSError):  # a name too long for the disk is on no disk, and a folder is nobody's mask
                    stale.unlink(missing_ok=True)

    def of_before(self, item: Item) -> str:
        """Return a sentence on an item's labels of before, where they are still there though it failed now."""
        before = self.out / item.output
        left = self.options.overwrite and before.is_file() and place_of(before) not in self.written
        return f" {before} is of an earlier run." if left else ""

    def _write_apart(self, item: Item, seen: Mapping[int, _Seen], outcome: Outcome) -> None:
        """Write the slices of a series that lacks some as images, each beside its place in the folders read."""
        warn(f"{item.source}: a slice of a series cannot be read; its {len(seen)} others are written as single images.")
        singles = {number: self._single(item, number) for number in seen}
        self._require_free(item, singles.values())
        for number, single in singles.items():
            one = seen[number]
            assert one.plane is not None
            renamed = [
                replace(draft, path=self.out / extra(single, None, "".join(draft.path.suffixes[-2:])[1:]))
                for draft in one.drafts
            ]
            labels = draft_all([(self.out / single.output, packed(one.plane))])
            prediction = replace(one.prediction, slice=None, output=single.output)
            self._write(single, [replace(one, prediction=prediction, drafts=[*renamed, *labels])], outcome)
        self._remove_stale(item)

    def _single(self, item: Item, number: int) -> Item:
        path = item.frames[number].path
        folder = item.name if item.source.is_dir() else item.name.parent
        return image_item(item.slices[number], folder / dicom_name(path, path.parent))

    def _require_free(self, item: Item, singles: Iterable[Item]) -> None:
        """Raise UserError where single slices would replace an input, another item's results or, unasked, a file."""
        for path in (path for single in singles for path in results(single, self.options)):
            if path in self.taken or self.out / path in self.inputs:
                raise UserError(
                    f"{item.source}: its single slices would replace {self.out / path}. Mend or remove the slice that "
                    "cannot be read, or predict the series by itself into another --out."
                )
            if (self.out / path).exists() and not self.options.overwrite:
                raise UserError(f"{self.out / path} exists already. Replace it with --overwrite.")
            self.taken.add(path)

    def _found(self, item: Item, frame: Frame, place: int | None, answer: Answer) -> Prediction:
        counts = count_bytes(answer.classes)[1 : self.classes + 1]
        area = None if frame.spacing is None else frame.spacing[0] * frame.spacing[1]
        height, width = answer.classes.shape
        return Prediction(
            frame.path, place, item.output, height, width, tuple(counts.tolist()), area,
            answer.confidence, answer.unfamiliarity, remark(answer, look_below=self.look_below),
        )  # fmt: skip


def _pixels(frame: Frame) -> int:
    """Return how many pixels a frame has; 0 where its file does not say, which reading it will explain."""
    try:
        return math.prod(frame.size or image_size(frame.path))
    except UserError:
        return 0
