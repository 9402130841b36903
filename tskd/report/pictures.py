"""Pictures for a page: overlays of several models on the same image. An image is called by its number, not its id."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from tskd.artifacts import Artifact
from tskd.console import counted
from tskd.data.prepared import Prepared, digest_of_test
from tskd.metrics.segmentation import ScoreRow, headline
from tskd.overlays import Colour, class_colour, draw_overlay, enlargement, truth_colour
from tskd.report.blocks import Key, Picture, Pictures
from tskd.report.text import number
from tskd.stages.evaluation_files import pick_overlays, read_prediction, read_scores

SIDE = 360
"""Longer side of a picture in pixels: sharp at the 180 CSS pixels it is shown with."""
QUALITY = 80
FAILURES_SHOWN = 12
ROOM = 5_500_000
"""Bytes that a page has for pictures; with base64 it leaves 2.7 MB of 10 for charts and tables."""


@dataclass
class Album:
    """The pictures of one page, taken as long as there is room."""

    room: int = ROOM
    left_out: int = 0

    @property
    def note(self) -> str:
        """Return what to tell the reader where room was short."""
        return f"{counted(self.left_out, 'picture')} left out to keep this file under 10 MB." if self.left_out else ""

    def add(self, pixels: np.ndarray, caption: str, *, side: int = SIDE) -> Picture | None:
        """Return the pixels (H, W, 3) uint8 as a WebP in the page, at most ``side`` long; None: no room is left."""
        image = Image.fromarray(pixels)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, format="webp", quality=QUALITY, method=4)
        content = buffer.getvalue()
        if len(content) > self.room:
            self.left_out += 1
            return None
        self.room -= len(content)
        source = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
        return Picture(source, image.width, image.height, caption)


@dataclass(frozen=True)
class Predictions:
    """The kept predictions of one model on the test images."""

    name: str
    title: str
    folder: Path
    """An ``evaluate`` artifact."""
    prepared: Prepared
    """The data that were scored: where the label budget differs, the same test images are other rows."""

    @cached_property
    def test_digest(self) -> str:
        """Digest of the test images that were scored."""
        return digest_of_test(Artifact(self.prepared.folder))

    @cached_property
    def scores(self) -> list[ScoreRow]:
        """One row a class and volume, or image where there are no volumes: what means and tests are over."""
        return headline(self._kept)

    @cached_property
    def images(self) -> list[ScoreRow]:
        """One row a class and image, slices of volumes included: what pictures show."""
        return [row for row in self._kept if row.level == "image"]

    @cached_property
    def _kept(self) -> list[ScoreRow]:
        return read_scores(self.folder)

    def dice(self, image: str) -> float:
        """Return the mean Dice over classes of one image."""
        return float(np.mean([row.score.dice for row in self.images if row.image == image]))


@dataclass(frozen=True)
class Gallery:
    """Draws test images; they are found by id and called by number."""

    prepared: Prepared
    album: Album

    def number(self, image: str) -> int:
        """Return an image's place among the test images, from 1."""
        return int(np.flatnonzero(self.prepared.rows("test") == self.prepared.row_of(image))[0]) + 1

    def truth(self, image: str) -> Picture | None:
        """Return the image with the contours of its mask."""
        return self._draw(image, None, "image and truth")

    def overlay(self, image: str, predictions: Predictions, caption: str = "") -> Picture | None:
        """Return the image with a model's prediction as areas and the mask's contours."""
        shown = caption or f"{predictions.title}, Dice {number(predictions.dice(image))}"
        return self._draw(image, read_prediction(predictions.folder, predictions.prepared.row_of(image)), shown)

    def keys(self) -> tuple[Key, ...]:
        """Return the legend: what each colour stands for."""
        names = enumerate(self.prepared.classes, start=1)
        return tuple(
            Key(name, colour=_css(class_colour(label)), line=_css(truth_colour(label))) for label, name in names
        )

    def _draw(self, image: str, prediction: np.ndarray | None, caption: str) -> Picture | None:
        row = self.prepared.row_of(image)
        pixels = self.prepared.native_image(row)
        mask, classes = self.prepared.native_mask(row), len(self.prepared.classes)
        drawn = draw_overlay(pixels, mask, prediction, classes=classes, enlarge=enlargement(pixels))
        return self.album.add(drawn, caption)


def picks(predictions: Sequence[Predictions], counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the images to show, each with what it is: worst, median or best of which models.

    ``counts`` says how many of a model's images are wanted. An image that several models picked comes once.
    """
    chosen: dict[str, list[str]] = {}
    for one in predictions:
        for rank, image, _ in pick_overlays(one.images, counts.get(one.name, 0)):
            chosen.setdefault(image, []).append(f"{rank} of {one.title}")
    return chosen


def failures(images: Gallery, predictions: Predictions) -> list[Pictures]:
    """Return the images on which a model missed a class altogether, and those where it found one that is not there."""
    kinds = {"missed": "Missed: there, but not found", "false_positive": "False positive: found, but not there"}
    blocks = [_failures(images, predictions, status, title) for status, title in kinds.items()]
    return [block for block in blocks if block is not None]


def _failures(images: Gallery, predictions: Predictions, status: str, title: str) -> Pictures | None:
    failed: dict[str, list[str]] = {}
    for row in predictions.images:
        if row.score.status == status:
            failed.setdefault(row.image, []).append(images.prepared.classes[row.label - 1])
    drawn = [
        images.overlay(image, predictions, f"test image {images.number(image)}: {', '.join(classes)}")
        for image, classes in list(failed.items())[:FAILURES_SHOWN]
    ]
    kept = tuple(picture for picture in drawn if picture is not None)
    note = f"{len(kept)} of {counted(len(failed), 'image')} shown." if len(kept) < len(failed) else ""
    return Pictures(kept, title=title, note=note, keys=images.keys()) if failed else None


def side_by_side(
    images: Gallery, predictions: Sequence[Predictions], chosen: Mapping[str, list[str]]
) -> list[Pictures]:
    """Return a block an image: its truth, then every model's prediction on it."""
    blocks = []
    for image, ranks in chosen.items():
        drawn = [images.truth(image), *(images.overlay(image, one) for one in predictions)]
        title = f"Test image {images.number(image)}: {', '.join(ranks)}"
        if kept := tuple(picture for picture in drawn if picture is not None):
            blocks.append(Pictures(kept, title=title))
    return blocks


def _css(colour: Colour) -> str:
    return "rgb({}, {}, {})".format(*colour)
