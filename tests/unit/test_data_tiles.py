"""Where tiles lie and what is cut out."""

from __future__ import annotations

import numpy as np
import pytest

from tskd.data.tiles import cut_tile, fill_up, fits, middle_corner, tile_corners


@pytest.mark.parametrize("size", [(32, 33), (70, 96), (64, 64), (33, 200), (20, 75)])
def test_tiles_cover_every_pixel_and_end_at_the_edges(size: tuple[int, int]) -> None:
    seen = np.zeros([max(length, 32) for length in size], int)
    for top, left in tile_corners(size, 32):
        assert top + 32 <= seen.shape[0]
        assert left + 32 <= seen.shape[1]
        seen[top : top + 32, left : left + 32] += 1
    assert seen.min() >= 1
    assert len(set(tile_corners(size, 32))) == len(list(tile_corners(size, 32)))


def test_neighbours_overlap_by_half_and_the_last_ends_at_the_edge() -> None:
    assert list(tile_corners((40, 70), 32)) == [(0, 0), (0, 16), (0, 32), (0, 38), (8, 0), (8, 16), (8, 32), (8, 38)]


def test_a_tile_is_the_images_own_pixels() -> None:
    image = np.arange(40 * 70 * 3, dtype=np.uint16).reshape(40, 70, 3)
    assert np.array_equal(cut_tile(image, (8, 38), 32), image[8:40, 38:70])


def test_a_short_side_is_filled_up_on_both_sides() -> None:
    mask = np.ones((3, 6), np.uint8)
    filled, begin = fill_up(mask, 6, 255)
    assert begin == (1, 0)
    assert (filled == 255).sum(axis=1).tolist() == [6, 0, 0, 0, 6, 6]
    assert np.array_equal(cut_tile(mask, (0, 0), 6, 255), filled)


def test_an_image_no_larger_than_a_tile_is_whole() -> None:
    assert fits((32, 20, 3), 32)
    assert not fits((32, 33), 32)


def test_the_tile_in_the_middle_is_row_then_column() -> None:
    assert middle_corner((40, 70), 32) == (4, 19)
    assert middle_corner((20, 70, 3), 32) == (0, 19), "a shorter side is filled up to the tile's"
