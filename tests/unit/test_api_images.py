"""Images as people have them in Python become the squares that training reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from tskd.api.images import gather
from tskd.api.pixels import as_pixels
from tskd.data.images import read_image
from tskd.data.intensity import IntensityWindow
from tskd.errors import UserError

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.dstack([GREY, GREY.T.reshape(3, 4), 255 - GREY])


@pytest.mark.parametrize(
    "item",
    [
        COLOUR,
        Image.fromarray(COLOUR),
        COLOUR / np.float32(255),
        torch.from_numpy(COLOUR).permute(2, 0, 1),
        torch.from_numpy(COLOUR).permute(2, 0, 1).float() / 255,
        torch.from_numpy(COLOUR).permute(2, 0, 1).double() / 255,
        (COLOUR, "its label"),
        {"image": COLOUR, "mask": GREY},
    ],
)
def test_every_form_of_one_image_is_the_same(item: Any) -> None:
    """Red where channels are taken for rows, or floats are cut instead of scaled."""
    np.testing.assert_array_equal(as_pixels(item), COLOUR)


def test_half_precision_of_networks_is_read() -> None:
    """Red where NumPy is asked for bfloat16, which it does not know."""
    np.testing.assert_array_equal(as_pixels(torch.ones(3, 2, 2).bfloat16()), np.full((2, 2, 3), 255))


def test_grey_is_repeated() -> None:
    np.testing.assert_array_equal(as_pixels(GREY), np.dstack([GREY] * 3))


@pytest.mark.parametrize("item", [np.zeros((2, 3, 4, 5), np.uint8), GREY.astype(np.int16), GREY / 1.0, np.zeros(3)])
def test_what_has_no_stated_range_or_shape_is_refused(item: np.ndarray) -> None:
    with pytest.raises(UserError, match="image of"):
        as_pixels(item)


def deep(path: Path) -> Path:
    Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000).save(path)
    return path


def unit_floats(path: Path) -> Path:
    Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)).save(path)
    return path


def turned(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR).save(path, exif=exif)
    return path


@pytest.mark.parametrize(("name", "write"), [("a.png", deep), ("b.tif", unit_floats), ("c.png", turned)])
@pytest.mark.parametrize("window", [None, IntensityWindow(0.2, 20000)])
def test_an_opened_image_is_read_as_its_file(
    name: str, write: Callable[[Path], Path], window: IntensityWindow | None, tmp_path: Path
) -> None:
    """16 bits were cut to white, floats to black, and neither the window nor the orientation was honoured."""
    path = write(tmp_path / name)
    with Image.open(path) as image:
        np.testing.assert_array_equal(as_pixels(image, window), read_image(path, intensity=window))


@pytest.mark.parametrize("item", [[], {}, np.zeros((0, 4), np.float32), np.array([None, "a"]), object(), "a.png"])
def test_what_is_no_image_is_one_sentence(item: Any) -> None:
    with pytest.raises(UserError, match="image"):
        as_pixels(item)


def read(images: Any, labels: Any = None, **options: Any) -> Any:
    return gather(images, labels, image_size=options.pop("image_size", None), out=Path(), data=options)


def test_a_data_set_of_torch_is_read_by_index_and_only_then() -> None:
    asked: list[int] = []

    class Slow(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    found = read(Slow(torch.rand(5, 3, 40, 32)))
    assert asked == [0], "the first one, for its size"
    assert found.images.shape == (5, 32, 32, 3)
    assert found.images[np.array([3, 1])].shape == (2, 32, 32, 3)
    assert asked == [0, 3, 1]


def test_labels_are_squeezed_with_their_images_and_keep_their_values() -> None:
    masks = np.zeros((2, 40, 40), np.uint8)
    masks[:, 10:20, 5:30] = 2
    found = read(np.zeros((3, 40, 40), np.uint8), (np.zeros((2, 40, 40), np.uint8), masks), image_size=32)
    assert found.labelled.masks.shape == (2, 32, 32)
    assert set(np.unique(found.labelled.masks)) == {0, 2}


def test_white_masks_are_not_taken_for_unlabelled_ones() -> None:
    """Red where 0 and 255, as files often hold them, train a student that marks nothing."""
    images, masks = np.zeros((2, 32, 32), np.uint8), np.zeros((2, 32, 32), np.uint8)
    masks[0, 8:16] = 255
    with pytest.raises(UserError, match="give mask > 0"):
        read(images, (images, masks))
    masks[1, 8:16] = 1  # labelled in part
    assert set(np.unique(read(images, (images, masks)).labelled.masks)) == {0, 1, 255}


@pytest.mark.parametrize(
    ("images", "labels", "options", "words"),
    [
        (np.zeros((0, 32, 32), np.uint8), None, {}, "there are none"),
        (np.zeros((1, 32, 32), np.uint8), np.zeros((1, 32, 32)), {}, "give a pair"),
        (np.zeros((1, 32, 32), np.uint8), ([0], [0, 1]), {}, "equal lengths"),
        (np.zeros((1, 32, 32), np.uint8), None, {"image_size": 33}, "multiple of 16"),
        (np.zeros((1, 32, 32), np.uint8), None, {"layout": "nifti"}, "not a folder"),
        (iter([1]), None, {}, "cannot be read by index"),
        (np.zeros((32, 32, 3), np.uint8), None, {}, r"Give images\[None\]"),
        (np.zeros((1, 32, 32), np.uint8), (COLOUR, GREY), {}, r"Give images\[None\]"),
        (np.zeros((1, 32, 32), np.uint8), ([GREY], [GREY - 0.5]), {}, "whole class numbers"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(images: Any, labels: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(images, labels, **options)


def test_tiles_are_for_models_that_know_them(tmp_path: Path) -> None:
    """A network alone would be shown whole images by whoever trained it on tiles."""
    with pytest.raises(UserError, match=r"tile is for `tskd run`"):
        gather(tmp_path, None, image_size=None, out=tmp_path / "out", data={"tile": 64})
