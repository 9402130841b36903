"""Images as people have them in Python: arrays, data sets of torch, data folders; read when a batch needs them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tskd.api.pixels import as_pixels
from tskd.artifacts import ARTIFACTS, Store
from tskd.data.labels import has_foreground
from tskd.data.prepared import Prepared, squeeze_image, squeeze_mask
from tskd.engine.batches import CELL, ImageArray
from tskd.errors import UserError
from tskd.recipe.schema import DataConfig, build_section
from tskd.stages import prepare
from tskd.stages.label_training import Labelled, training_labels
from tskd.types import UNLABELLED

MOST = 512
"""Side in pixels that larger images are reduced to where no size is given."""
_AT_ONCE = 64


class Squares:
    """Images of any size as squares (N, S, S, 3) uint8, made when they are asked for; an :class:`ImageArray`."""

    def __init__(self, items: Any, size: int) -> None:
        self.items, self.shape = items, (len(items), size, size, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> np.ndarray:
        if isinstance(indices, slice):
            indices = range(*indices.indices(len(self)))
        return np.stack([squeeze_image(as_pixels(self.items[int(index)]), self.shape[1]) for index in indices])


@dataclass(frozen=True)
class Material:
    """What is learned from."""

    images: ImageArray
    """Without labels: (N, S, S, 3) uint8."""
    names: tuple[str, ...]
    labelled: Labelled | None = None
    classes: tuple[str, ...] | None = None
    """Names of the foreground classes where they are known."""
    prepared: Prepared | None = None
    """The prepared folder it comes from."""

    @property
    def image_size(self) -> int:
        return int(self.images.shape[1])


def gather(images: Any, labels: Any, *, image_size: int | None, out: Path, data: dict[str, Any]) -> Material:
    """Return images (and labels) of an array, a torch Dataset, a sequence or a data folder.

    Of a folder the labelled and unlabelled training images are used, never its test images, and its own labels where
    ``labels`` is True. ``data`` holds further settings of the recipe's section of that name, for folders alone.
    """
    if isinstance(images, str | Path):
        return _of_folder(Path(images), labels, image_size, out, data)
    if data:
        raise UserError(f"data ({', '.join(data)}) says how a folder is read, and the images are not a folder.")
    if len(several(images)) == 0:
        raise UserError("images: there are none.")
    size = image_size or _size_of(as_pixels(images[0]))
    names = tuple(f"image {number}" for number in range(len(images)))
    return Material(Squares(images, _require_cells(size)), names, _labelled(labels, size))


def pixels_digest(images: ImageArray) -> str:
    """Return the sha256 of images or masks, read in parts."""
    found = hashlib.sha256(str(tuple(images.shape)).encode())
    for start in range(0, len(images), _AT_ONCE):
        found.update(images[start : start + _AT_ONCE].tobytes())
    return found.hexdigest()


def several(images: Any) -> Any:
    """Return images that are read by index as they are; UserError for what is none, and for one image alone."""
    if isinstance(images, str | Path) or not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise UserError(
            f"images: a {type(images).__name__} cannot be read by index. Give an array (N, H, W[, C]), a list of "
            "images, a torch Dataset with a length, or (to distill) a data folder."
        )
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) == 3 and shape[2] in (3, 4):
        raise UserError(f"images: {shape} is one image in colour, not {shape[0]} in grey. Give images[None].")
    return images


def _of_folder(root: Path, labels: Any, image_size: int | None, out: Path, data: dict[str, Any]) -> Material:
    sized = {} if image_size is None else {"image_size": image_size}
    config = build_section(DataConfig, {"root": str(root), **sized, **data}, "data")
    if config.tile is not None:
        raise UserError("data: tile is for `tskd run` and `tskd.run`, whose models know their tiles; networks do not.")
    prepared = Prepared(prepare.build(Store(out / ARTIFACTS), config).path)
    images = prepared.unlabelled_images(prepared.image_size, "unlabelled", "train")
    labelled = training_labels(prepared) if labels is True else _labelled(labels, prepared.image_size)
    return Material(images, prepared.names(images.rows), labelled, prepared.classes, prepared)


def _labelled(labels: Any, size: int) -> Labelled | None:
    """Return pairs ``(images, masks)`` as training takes them, masks (N, S, S) uint8; UserError where they do not fit,
    or where masks are white on black: nothing of white is learned."""
    if labels is None:
        return None
    if not isinstance(labels, tuple) or len(labels) != 2 or len(labels[0]) != len(labels[1]):
        raise UserError(
            "labels: give a pair (images, masks) of equal lengths; True for those of a data folder; or None."
        )
    images, masks = several(labels[0]), labels[1]
    drawn = np.stack([squeeze_mask(_as_mask(masks[number]), size) for number in range(len(masks))])
    if (drawn == UNLABELLED).any() and not has_foreground(drawn):
        raise UserError(
            "labels: the masks hold 0 and 255 alone, and 255 means unlabelled: there is nothing to learn from. Where "
            "white is the class, give mask > 0."
        )
    return Labelled(Squares(images, size), drawn, tuple(f"label {number}" for number in range(len(masks))))


def _as_mask(item: Any) -> np.ndarray:
    values = np.squeeze(item.detach().cpu().numpy() if hasattr(item, "detach") else np.asarray(item))
    if values.ndim != 2 or values.min() < 0 or values.max() > 255 or (values != np.rint(values)).any():
        raise UserError(f"a mask of shape {values.shape}: (H, W) of whole class numbers is needed, 0 the background.")
    return values.astype(np.uint8)


def _size_of(pixels: np.ndarray) -> int:
    """Return the side to work at: the image's longer one in whole cells, at most ``MOST``."""
    return max(CELL, min(MOST, max(pixels.shape[:2])) // CELL * CELL)


def _require_cells(size: int) -> int:
    if size % CELL or size < CELL:
        raise UserError(f"image_size {size}: choose a multiple of {CELL}.")
    return size
