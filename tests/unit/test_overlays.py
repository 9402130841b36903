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
    assert tuple(drawn[5, 10]) == overlays.class_colour(1)
    assert (drawn[10, 10] == 100).all(), "the inside of the truth must stay readable"
    assert (drawn[4, 10] == 0).all(), "the dark edge is missing"


def test_line_at_the_border_of_the_image_is_closed(image: np.ndarray) -> None:
    drawn = overlays.draw_overlay(image, square(0, 0), None, classes=1)
    assert tuple(drawn[0, 6]) == overlays.class_colour(1)


def test_touching_classes_keep_both_lines(image: np.ndarray) -> None:
    drawn = overlays.draw_overlay(image, square(5, 5) + square(5, 17, label=2), None, classes=2)
    assert tuple(drawn[10, 16]) == overlays.class_colour(1)
    assert tuple(drawn[10, 17]) == overlays.class_colour(2)


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
    assert {overlays.class_colour(label) for label in range(1, 5)} <= colours


def test_legend_breaks_lines_instead_of_running_out() -> None:
    wide, narrow = (overlays.legend(["one", "two", "three"], width=width) for width in (900, 150))
    assert isinstance(wide, Image.Image)
    assert narrow.height > wide.height
    assert narrow.width == 150
