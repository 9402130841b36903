"""A mask is turned as its photograph is, and its label is found where it is; what cannot be told is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tskd.data.exif import ORIENTATION, turned
from tskd.data.images import label_is_in_alpha, read_mask_indices
from tskd.data.layouts.pairs import notes_on, oddities, read_paired_mask
from tskd.errors import UserError
from tskd.types import Record

LABEL = np.zeros((12, 16), np.uint8)
LABEL[1:4, 2:9] = 255


def pair(folder: Path, orientation: int, label: np.ndarray, *, side: int = 12, own: int = 1) -> Record:
    """Write a JPEG, ``side`` x 16 pixels as stored, and its mask with an orientation of its ``own``."""
    for name, pixels, stated in (
        ("a.jpg", np.zeros((side, 16, 3), np.uint8), orientation),
        ("a.png", label, own),
    ):
        exif = Image.Exif()
        exif[ORIENTATION] = stated
        Image.fromarray(pixels).save(folder / name, exif=exif)
    return Record("a", "a", folder / "a.jpg", folder / "a.png")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_the_stored_size_is_turned_with_its_photograph(orientation: int, tmp_path: Path) -> None:
    record = pair(tmp_path, orientation, LABEL)
    np.testing.assert_array_equal(read_paired_mask(record), turned(LABEL, orientation))
    assert list(oddities(record)) == ["turned"]


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_a_mask_of_the_shown_size_stays(orientation: int, tmp_path: Path) -> None:
    """Red where every mask of a turned photograph is turned: this one was drawn on what a viewer shows."""
    drawn = turned(LABEL, orientation)
    record = pair(tmp_path, orientation, drawn)
    np.testing.assert_array_equal(read_paired_mask(record), drawn)
    assert list(oddities(record)) == []


def test_a_mask_with_exif_of_its_own_is_turned_once(tmp_path: Path) -> None:
    record = pair(tmp_path, 6, LABEL, own=6)
    np.testing.assert_array_equal(read_paired_mask(record), turned(LABEL, 6))
    assert list(oddities(record)) == []


@pytest.mark.parametrize(("orientation", "side"), [(3, 12), (2, 12), (4, 12), (6, 16)])
def test_where_sizes_do_not_tell_the_mask_stays_and_that_is_said(orientation: int, side: int, tmp_path: Path) -> None:
    label = np.zeros((side, 16), np.uint8)
    label[1, 2] = 255
    record = pair(tmp_path, orientation, label, side=side)
    np.testing.assert_array_equal(read_paired_mask(record), label)
    assert list(oddities(record)) == ["perhaps turned"]


def test_another_size_is_refused_whatever_exif_says(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the mask is 7x7 pixels, its image a\.jpg is 12x16"):
        read_paired_mask(pair(tmp_path, 6, np.zeros((7, 7), np.uint8)))


def test_notes_count_what_was_done() -> None:
    turned_note, alpha_note = notes_on(["turned", "alpha", "turned", "perhaps turned"])
    assert turned_note.startswith("EXIF: 2 masks")
    assert alpha_note.startswith("alpha: 1 masks")
    assert notes_on([]) == ()


def with_alpha(colour: int, alpha: np.ndarray, *, grey: bool = False) -> Image.Image:
    flat = np.full(alpha.shape, colour, np.uint8)
    return Image.fromarray(np.dstack([flat, alpha] if grey else [flat, flat, flat, alpha]))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("colour", [0, 70, 255])
def test_a_label_in_alpha_alone_is_taken_from_there(colour: int, grey: bool, tmp_path: Path) -> None:
    """One colour throughout read as all background, or as all foreground."""
    path = tmp_path / "a.png"
    with_alpha(colour, np.where(LABEL > 0, 200, 10).astype(np.uint8), grey=grey).save(path)
    np.testing.assert_array_equal(read_mask_indices(path), LABEL)
    assert label_is_in_alpha(path)


def test_a_palette_of_one_colour_says_its_label_by_transparency(tmp_path: Path) -> None:
    image = Image.fromarray((LABEL > 0).astype(np.uint8), mode="P")
    image.putpalette([0] * 6)
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(read_mask_indices(tmp_path / "a.png"), LABEL)
    image.save(tmp_path / "b.png")  # and without, by the index
    np.testing.assert_array_equal(read_mask_indices(tmp_path / "b.png"), LABEL > 0)


def test_a_label_in_colour_is_taken_from_there_whatever_alpha_says(tmp_path: Path) -> None:
    for name, alpha in (("same", LABEL), ("opaque", np.full_like(LABEL, 255)), ("smooth", np.maximum(LABEL, 9))):
        Image.fromarray(np.dstack([LABEL, LABEL, LABEL, alpha])).save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_mask_indices(tmp_path / f"{name}.png"), LABEL)
        assert not label_is_in_alpha(tmp_path / f"{name}.png")


def test_smooth_alpha_and_alpha_against_colour_are_refused(tmp_path: Path) -> None:
    smooth = LABEL.copy()
    smooth[5, 5] = 128
    with_alpha(0, smooth).save(tmp_path / "smooth.png")
    with pytest.raises(UserError, match=r"smooth\.png: .*3 levels of alpha"):
        read_mask_indices(tmp_path / "smooth.png")
    black_on_clear = 255 - LABEL  # white where nothing is painted, and that is transparent
    Image.fromarray(np.dstack([black_on_clear] * 3 + [LABEL])).save(tmp_path / "against.png")
    with pytest.raises(UserError, match=r"against\.png: .*alpha contradict"):
        read_mask_indices(tmp_path / "against.png")
