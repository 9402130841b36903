from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tskd import overlays
from tskd.types import UNLABELLED


@pytest.fixture
def image() -> np.ndarray:
    return np.full((32, 40, 3), 100, dtype=np.uint8)


def square(top: int, left: int, *, label: int = 1) -> np.ndarray:
    mask = np.zeros((32, 40), dtype=np.uint8)
    mask[top : top + 12, left : left + 12] = label
    return mask


def test_area_is_a_blend_and_the_rest_stays_untouched(image: np.ndarray) -> None:
    drawn = overlays.draw_overlay(image, None, square(5, 5, label=2), classes=2)
    expected = (1 - overlays.FILL) * 100 + overlays.FILL * np.array(overlays.class_colour(2))
    assert np.allclose(drawn[10, 10], expected, atol=0.51)
    assert (drawn[20:] == 100).all()
    assert (image == 100).all(), "the caller's image was drawn on"


def test_truth_is_a_line_not_an_area(image: np.ndarray) -> None:
    drawn = overlays.draw_overlay(image, square(5, 5), None, classes=1)
    assert tuple(drawn[5, 10]) == overlays.truth_colour(1)
    assert (drawn[10, 10] == 100).all(), "the inside of the truth must stay readable"
    assert (drawn[4, 10] == 0).all(), "the dark edge is missing"


EYES = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "no blue": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
"""What linear RGB looks like: G. M. Machado and others, IEEE TVCG 15 (2009), severity 1."""


@pytest.mark.parametrize("eyes", EYES)
def test_area_and_line_of_a_class_look_different_to_all_eyes(eyes: str) -> None:
    """Red where both have one colour, or two that a person without one kind of cones cannot tell apart."""
    for label in range(1, len(overlays.COLOURS) + 1):
        area, line = (
            lightness_and_colour(one(label), np.array(EYES[eyes]))
            for one in (overlays.class_colour, overlays.truth_colour)
        )
        assert np.linalg.norm(area - line) > 35, label


def lightness_and_colour(colour: tuple[int, int, int], eyes: np.ndarray) -> np.ndarray:
    """Return CIE L*a*b* (D65) of an sRGB colour as the eyes see it; a difference of 2 is just noticed."""
    value = np.array(colour) / 255
    linear = (eyes @ np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)).clip(0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_line_at_the_border_of_the_image_is_closed(image: np.ndarray) -> None:
    drawn = overlays.draw_overlay(image, square(0, 0), None, classes=1)
    assert tuple(drawn[0, 6]) == overlays.truth_colour(1)


def test_touching_classes_keep_both_lines(image: np.ndarray) -> None:
    drawn = overlays.draw_overlay(image, square(5, 5) + square(5, 17, label=2), None, classes=2)
    assert tuple(drawn[10, 16]) == overlays.truth_colour(1)
    assert tuple(drawn[10, 17]) == overlays.truth_colour(2)


def test_unlabelled_pixels_are_darkened_and_no_class(image: np.ndarray) -> None:
    mask = square(5, 5)
    mask[20:] = UNLABELLED
    drawn = overlays.draw_overlay(image, mask, None, classes=1)
    assert (drawn[25, 30] == 40).all()


def test_map_of_another_size_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(32, 40\).*\(8, 8\)"):
        overlays.draw_overlay(image, None, np.zeros((8, 8), dtype=np.uint8), classes=1)


def test_small_tiles_are_enlarged_and_large_ones_not() -> None:
    assert overlays.enlargement(np.zeros((64, 64, 3))) == 4
    assert overlays.enlargement(np.zeros((512, 300, 3))) == 1


def test_contact_sheet_places_every_tile() -> None:
    shades = (50, 120, 200)
    tiles = [np.full((64, 64, 3), shade, dtype=np.uint8) for shade in shades]
    sheet = np.asarray(overlays.contact_sheet([tiles[:2], tiles[2:]], titles=[["a", "b"], ["c"]], heading="h"))
    assert [int((sheet == shade).all(axis=2).sum()) // 256**2 for shade in shades] == [1, 1, 1]


def test_contact_sheet_needs_a_title_a_tile() -> None:
    with pytest.raises(ValueError, match="one title a tile"):
        overlays.contact_sheet([[np.zeros((8, 8, 3), dtype=np.uint8)]], titles=[["a", "b"]])


def test_long_titles_stay_inside_their_tile() -> None:
    white = np.full((256, 100, 3), 255, dtype=np.uint8)
    titles = [["long " * 40, ""]]
    sheet = np.asarray(overlays.contact_sheet([[white, white]], titles=titles))
    assert (sheet[:, :108] < 128).any()
    assert (sheet[:, 108:] == 255).all(), "the title runs into its neighbour"


def test_panel_has_a_tile_a_prediction_and_a_legend_of_every_class(image: np.ndarray) -> None:
    names = ["liver", "right kidney", "left kidney", "spleen"]
    panel = overlays.overlay_panel(
        image, square(5, 5), {"teacher": square(6, 6), "student": square(4, 5)}, title="case 1", class_names=names
    )
    assert panel.width == 8 + 3 * (overlays.enlargement(image) * 40 + 8)
    colours = {tuple(pixel) for pixel in np.asarray(panel)[-60:].reshape(-1, 3)}
    assert {
        colour(label) for label in range(1, 5) for colour in (overlays.class_colour, overlays.truth_colour)
    } <= colours


def test_legend_breaks_lines_instead_of_running_out() -> None:
    wide, narrow = (overlays.legend(["one", "two", "three"], width=width) for width in (900, 150))
    assert isinstance(wide, Image.Image)
    assert narrow.height > wide.height
    assert narrow.width == 150
