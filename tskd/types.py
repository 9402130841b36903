"""The types that modules share. Shapes: B batch, K foreground classes, C channels, H, W pixels, h, w feature grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

LEAST_TILE = 16
"""Side in pixels below which a tile of an image shows nothing."""
UNLABELLED = 255
"""Mask value of a pixel without a label: no loss and no score looks at it."""


@dataclass(frozen=True)
class Record:
    """One image of a data set: the only description of data that exists."""

    id: str
    """Unique in the data set, e.g. ``patient012/slice03``."""
    case: str
    """Patient or volume: a split never cuts a case."""
    image: Path
    mask: Path | None = None
    """None: the image is unlabelled."""
    spacing: tuple[float, ...] | None = None
    """Millimetres per pixel (row, column), then from slice to slice of its volume where that is known; None: distances
    are in pixels."""
    index: int | None = None
    """Which image of its file: a slice, a frame, a page; None: the file is one image."""
    split: str | None = None
    """``train``, ``val`` or ``test`` where the data set says so itself."""
    volume: str | None = None
    """The volume whose slice it is, unique in the data set, e.g. patient and frame; None: a single image."""
    place: int | None = None
    """Its place in the volume, counted in slice distances; stated where ``volume`` is."""


class SegmentationOutput(NamedTuple):
    """What every segmenter answers."""

    features: tuple[Tensor, ...]
    """(B, C_i, h_i, w_i), shallow to deep; the last is the embedding."""
    logits: Tensor
    """(B, K, H, W) at the input's size; the background is implicit, a zero logit."""


class Segmenter(Protocol):
    """A network that takes (B, 3, H, W) float32 RGB in [0, 1] and normalises and resizes by itself."""

    feature_dims: tuple[int, ...]
    """Channels of each entry of ``features``."""

    def __call__(self, images: Tensor) -> SegmentationOutput: ...


class Batch(NamedTuple):
    """One training batch; what a step does not need is None."""

    images: Tensor
    """(B, 3, H, W) float32 in [0, 1], geometric augmentation applied."""
    views: Tensor
    """The same images after photometric augmentation: what the network in training sees."""
    masks: Tensor | None = None
    """(B, H, W) int64 class index; 0 background, also where augmentation shows what lies outside of the image."""
    targets: SegmentationOutput | None = None
    """The teacher's answer for ``images`` where it was cached."""
    names: tuple[str, ...] = ()
    """Record ids, for error messages only."""
    teacher_images: Tensor | None = None
    """(B, 3, T, T) the same parts of the same images at the teacher's size; None: it is the student's."""
    noise: Tensor | None = None
    """(B, N) numbers in [0, 1) drawn for the step, where its images are to be masked."""


StepFn = Callable[["nn.Module", Batch], Mapping[str, "Tensor"]]
"""One training step: the answer holds ``loss``; its other entries are logged."""
