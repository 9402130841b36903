"""Augmentation: image and mask move alike, nothing happens at zero, and what is exact stays exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tskd.data.augment import (
    CELLS,
    Bends,
    GeometryRange,
    _sampling_grid,
    apply_photometry,
    crop_bends,
    crop_maps,
    draw_bends,
    draw_geometry,
    draw_photometry,
    hold_foreground,
    move_images,
    move_masks,
    transform_dihedral,
)
from tskd.seeding import torch_generator

STILL = GeometryRange(flip_horizontal=False, flip_vertical=False, rotate=0, scale=0, shift=0)
WILD = GeometryRange(flip_horizontal=True, flip_vertical=True, rotate=180, scale=0.5, shift=0.2)


BENDING = GeometryRange(flip_horizontal=False, rotate=0, scale=0, shift=0, p_elastic=1.0, elastic=0.06)


def blob(size: int = 48) -> Tensor:
    """(1, size, size): an L, which no symmetry of the square leaves as it is."""
    mask = torch.zeros(1, size, size, dtype=torch.long)
    mask[:, size // 4 : 3 * size // 4, size // 3 : size // 2] = 1
    mask[:, size // 2 : 3 * size // 4, size // 2 : 2 * size // 3] = 1
    return mask


def random_images(count: int = 2, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch_generator("images", count, size))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_a_mask_painted_into_the_image_stays_aligned(seed: int) -> None:
    """Bilinear and nearest sampling may differ at the border of the object only, by less than half the contrast."""
    mask = blob().expand(4, -1, -1)
    maps = draw_geometry(4, WILD, torch_generator(seed))
    image = move_images(mask[:, None].float(), maps)[:, 0]
    moved = move_masks(mask, maps).float()
    inside = move_images(torch.ones(4, 1, 48, 48), maps)[:, 0] == 1
    assert ((image - moved).abs()[inside] <= 0.75 + 1e-4).all(), (
        "bilinear interpolation of two pixels in each direction"
    )
    assert moved.sum() == pytest.approx(float(image.sum()), rel=0.05)
    overlap = 2 * (moved * image).sum() / (moved + image).sum()
    assert overlap > 0.9


def test_nothing_moves_at_zero_ranges() -> None:
    maps = draw_geometry(2, STILL, torch_generator(0))
    torch.testing.assert_close(move_images(random_images(), maps), random_images(), rtol=0, atol=1e-5)
    masks = torch.randint(0, 5, (2, 16, 16))
    assert torch.equal(move_masks(masks, maps), masks)


@pytest.mark.parametrize("size", [15, 16, 224])
def test_flips_are_exact(size: int) -> None:
    """Over many draws each of the four flips occurs, and none but these."""
    limits = GeometryRange(flip_horizontal=True, flip_vertical=True, rotate=0, scale=0, shift=0)
    mask = torch.randint(0, 4, (size, size), generator=torch_generator(1))
    image = random_images(1, size)[0]
    maps = draw_geometry(24, limits, torch_generator(0))
    moved = move_masks(mask.expand(24, -1, -1), maps)
    images = move_images(image.expand(24, -1, -1, -1), maps)
    seen = set()
    for new_mask, new_image in zip(moved, images):
        fitting = [dims for dims in ((), (0,), (1,), (0, 1)) if torch.equal(new_mask, mask.flip(dims))]
        assert len(fitting) == 1
        seen.add(fitting[0])
        expected = image.flip([dim + 1 for dim in fitting[0]])
        torch.testing.assert_close(new_image, expected, rtol=0, atol=1e-4)
    assert seen == {(), (0,), (1,), (0, 1)}


def test_flips_that_are_not_allowed_never_happen() -> None:
    limits = GeometryRange(flip_horizontal=True, flip_vertical=False, rotate=0, scale=0, shift=0)
    maps = draw_geometry(64, limits, torch_generator(0))
    assert set(maps[:, 0, 0].tolist()) == {-1.0, 1.0}
    assert set(maps[:, 1, 1].tolist()) == {1.0}


def test_a_quarter_turn_is_the_one_of_rot90() -> None:
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    assert torch.equal(move_masks(blob(), quarter), blob().rot90(1, (-2, -1))) or torch.equal(
        move_masks(blob(), quarter), blob().rot90(-1, (-2, -1))
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_maps_stay_within_the_limits(seed: int) -> None:
    """Each map is rotation x scale x flip, and the shift is a share of the side: 2 in coordinates of [-1, 1]."""
    limits = GeometryRange(flip_horizontal=True, flip_vertical=True, rotate=20, scale=0.25, shift=0.1)
    maps = draw_geometry(32, limits, torch_generator(seed))
    linear = maps[:, :, :2]
    sizes = 1 / linear.det().abs().sqrt()
    assert ((sizes > 1 / 1.2501) & (sizes < 1.2501)).all()
    cosine = (linear[:, 0, 0] * sizes).abs()
    assert (cosine >= math.cos(math.radians(20)) - 1e-5).all()
    shape = linear.transpose(1, 2) @ linear * sizes[:, None, None] ** 2
    torch.testing.assert_close(shape, torch.eye(2).expand(32, 2, 2), rtol=0, atol=1e-4)
    assert (maps[:, :, 2].abs() <= 0.2).all()


def test_the_limits_are_reached() -> None:
    limits = GeometryRange(flip_horizontal=False, rotate=20, scale=0.25, shift=0.1)
    maps = draw_geometry(4000, limits, torch_generator(0))
    assert float(maps[:, :, 2].abs().max()) == pytest.approx(0.2, rel=0.01), "a tenth of a side of 2"
    sizes = 1 / maps[:, :, :2].det().sqrt()
    assert (float(sizes.min()), float(sizes.max())) == (
        pytest.approx(1 / 1.25, rel=0.01),
        pytest.approx(1.25, rel=0.01),
    )
    angles = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]))
    assert (float(angles.min()), float(angles.max())) == (pytest.approx(-20, rel=0.01), pytest.approx(20, rel=0.01))


def test_outside_of_the_old_image_is_black_and_background() -> None:
    far = torch.tensor([[[1.0, 0.0, 5.0], [0.0, 1.0, 0.0]]])
    assert move_images(torch.ones(1, 3, 8, 8), far).abs().max() == 0
    assert move_masks(torch.ones(1, 8, 8, dtype=torch.long), far).abs().max() == 0


def test_masks_keep_their_classes_and_type() -> None:
    mask = torch.randint(0, 2, (3, 32, 32)) * 254 + 1
    moved = move_masks(mask, draw_geometry(3, WILD, torch_generator(3)))
    assert moved.dtype == torch.long
    assert set(moved.unique().tolist()) <= {0, 1, 255}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0, 2))
def test_photometry_stays_in_range(seed: int, strength: float) -> None:
    images = random_images()
    changed = apply_photometry(images, draw_photometry(images.shape, strength, torch_generator(seed)))
    assert changed.shape == images.shape
    assert changed.isfinite().all()
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1


def test_photometry_changes_nothing_at_strength_zero_and_much_at_one() -> None:
    images = random_images()
    drawn = draw_photometry(images.shape, 0.0, torch_generator(0))
    torch.testing.assert_close(apply_photometry(images, drawn), images, rtol=0, atol=1e-6)
    drawn = draw_photometry(images.shape, 1.0, torch_generator(0))
    assert (apply_photometry(images, drawn) - images).abs().mean() > 0.01


def test_photometry_of_an_image_does_not_depend_on_its_neighbours() -> None:
    images = random_images(3)
    drawn = draw_photometry(images.shape, 1.0, torch_generator(0))
    together = apply_photometry(images, drawn)
    alone = apply_photometry(images[1:2], type(drawn)(*(value[1:2] for value in drawn)))
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize("field", ["gain", "offset", "gamma", "blur", "noise"])
def test_every_photometric_parameter_has_an_effect(field: str) -> None:
    images = random_images()
    still = draw_photometry(images.shape, 0.0, torch_generator(0))
    drawn = draw_photometry(images.shape, 1.0, torch_generator(4))
    changed = apply_photometry(images, still._replace(**{field: getattr(drawn, field)}))
    assert (changed - images).abs().amax(dim=(1, 2, 3)).max() > 1e-3


def test_the_dihedral_group() -> None:
    """Eight different pictures; any two one after the other are one of the eight; each has its inverse."""
    picture = torch.arange(9).reshape(1, 3, 3)
    pictures = [transform_dihedral(picture, element) for element in range(8)]
    assert torch.equal(pictures[0], picture)
    assert len({tuple(p.flatten().tolist()) for p in pictures}) == 8
    for first in range(8):
        twice = [transform_dihedral(pictures[first], second) for second in range(8)]
        assert all(any(torch.equal(turned, p) for p in pictures) for turned in twice)
        assert sum(torch.equal(turned, picture) for turned in twice) == 1


def test_symmetries_are_numbered_as_whoever_allows_flips_counts_them() -> None:
    """4 is left and right exchanged, 6 upper and lower, 2 both: where one flip is allowed the other must not happen."""
    picture = torch.arange(9).reshape(1, 3, 3)
    for element, axes in ((4, (2,)), (6, (1,)), (2, (1, 2))):
        assert torch.equal(transform_dihedral(picture, element), picture.flip(axes))
    assert torch.equal(transform_dihedral(picture, 1), picture.rot90(1, (1, 2)))


def test_the_dihedral_group_moves_grids_of_any_size_alike() -> None:
    """Pooling a turned image is turning the pooled image: cached features stay true to their image."""
    image = torch.rand(2, 3, 16, 16)
    for element in range(8):
        pooled = torch.nn.functional.avg_pool2d(transform_dihedral(image, element), 4)
        turned = transform_dihedral(torch.nn.functional.avg_pool2d(image, 4), element)
        torch.testing.assert_close(pooled, turned)


def test_turns_and_sizes_are_changed_as_often_as_the_settings_say() -> None:
    limits = GeometryRange(flip_vertical=True, rotate=180, scale=0.4, shift=0, p_rotate=0.2, p_scale=0.3)
    linear = draw_geometry(10_000, limits, torch_generator(0))[:, :, :2]
    turned = linear[:, 0, 1].abs() > 1e-6
    resized = (linear.det().abs() - 1).abs() > 1e-5
    assert float(turned.float().mean()) == pytest.approx(0.2, abs=0.015)
    assert float(resized.float().mean()) == pytest.approx(0.3, abs=0.015)
    assert float((turned & resized).float().mean()) == pytest.approx(0.06, abs=0.01), "one does not bring the other"
    still = linear[~turned & ~resized]
    assert {tuple(one.diagonal().tolist()) for one in still} == {(x, y) for x in (1.0, -1.0) for y in (1.0, -1.0)}


def test_settings_of_before_draw_the_numbers_of_before() -> None:
    """Six an image and no more: what is drawn from the same generator afterwards is what it used to be."""
    generator, counted = torch_generator(3), torch_generator(3)
    draw_geometry(4, WILD, generator)
    torch.rand(4, 6, generator=counted)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=counted))


def test_control_points_that_all_move_alike_shift_the_image() -> None:
    """Splines add up to one everywhere: 3 pixels to the right and 2 down, to the last row and column."""
    image = random_images(1, 32)
    points = torch.tensor([2 * 3 / 32, 2 * 2 / 32]).reshape(1, 2, 1, 1).expand(-1, -1, CELLS + 3, CELLS + 3)
    moved = move_images(image, torch.eye(2, 3)[None], bends=Bends(points, torch.zeros(1, 2)))
    torch.testing.assert_close(moved[..., :-2, :-3], image[..., 2:, 3:], rtol=0, atol=1e-5)
    assert moved[..., -2:, :].abs().max() < 1e-4, "outside is black"


def test_one_control_point_moves_what_a_cubic_spline_says() -> None:
    """4/6 of it under the point, 1/6 under its neighbours, nothing from the second on (de Boor)."""
    points = torch.zeros(1, 2, CELLS + 3, CELLS + 3)
    points[0, 0, CELLS // 2 + 1, CELLS // 2 + 1] = 0.1
    size = 8 * CELLS + 1  # with one pixel in the very middle
    still = _sampling_grid(torch.eye(2, 3)[None], torch.Size((size, size)))
    bent = _sampling_grid(torch.eye(2, 3)[None], torch.Size((size, size)), Bends(points, torch.zeros(1, 2)))
    assert torch.equal(bent[..., 1], still[..., 1])
    moved = (bent - still)[0, :, :, 0]
    middle = size // 2
    assert float(moved[middle, middle]) == pytest.approx(0.1 * (2 / 3) ** 2, rel=1e-4)
    assert float(moved[middle, 0]) == pytest.approx(0, abs=1e-5)
    assert float(moved[middle].sum()) == pytest.approx(0.1 * 2 / 3 * size / CELLS, rel=1e-3), "a spline's area is 1"


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_a_bent_mask_stays_on_its_image(seed: int) -> None:
    mask = blob().expand(4, -1, -1)
    generator = torch_generator(seed)
    maps, bends = draw_geometry(4, WILD, generator), draw_bends(4, BENDING, generator)
    image = move_images(mask[:, None].float(), maps, bends=bends)[:, 0]
    moved = move_masks(mask, maps, bends).float()
    inside = move_images(torch.ones(4, 1, 48, 48), maps, bends=bends)[:, 0] == 1
    assert ((image - moved).abs()[inside] <= 0.75 + 1e-4).all()
    straight = move_masks(mask, maps).float()
    assert 2 * (moved * image).sum() / (moved + image).sum() > 0.9
    assert not torch.equal(moved, straight)


def test_nothing_folds_at_the_largest_bend() -> None:
    """The map keeps its orientation everywhere, also where neighbouring points go as far apart as they can."""
    signs = torch.ones(1, 2, CELLS + 3, CELLS + 3)
    signs[..., ::2, :] *= -1
    signs[..., ::2] *= -1
    drawn = draw_bends(40, BENDING, torch_generator(0))
    assert drawn is not None
    points = torch.cat([drawn.points, 0.12 * signs, 0.12 * torch.where(torch.rand(40, *signs.shape[1:]) < 0.5, 1, -1)])
    assert float(points.abs().max()) <= 0.12 + 1e-6, "6 % of a side of 2"
    still = torch.eye(2, 3).expand(len(points), -1, -1)
    grid = _sampling_grid(still, torch.Size((96, 96)), Bends(points, torch.zeros(len(points), 2)))
    along, down = grid[:, :-1, 1:] - grid[:, :-1, :-1], grid[:, 1:, :-1] - grid[:, :-1, :-1]
    assert (along[..., 0] * down[..., 1] - along[..., 1] * down[..., 0]).min() > 0


def test_crops_of_bent_images_are_bent_alike_at_any_size() -> None:
    """What is sampled in a crop, at twice the size, is what lies there when the whole is."""
    generator = torch_generator(1)
    maps, bends = draw_geometry(3, WILD, generator), draw_bends(3, BENDING, generator)
    corners = torch.tensor([[0, 0], [1, 2], [2, 1]])
    whole = _sampling_grid(maps, torch.Size((64, 64)), bends)
    cut = crop_maps(maps, 2, corners, 4), torch.Size((32, 32)), crop_bends(bends, 2, corners, 4)
    for row, (top, left) in enumerate((corners * 16).tolist()):
        expected = whole[row, top : top + 32, left : left + 32]
        torch.testing.assert_close(_sampling_grid(*cut)[row], expected, rtol=0, atol=1e-5)


def test_as_many_images_are_bent_as_the_settings_say() -> None:
    some = draw_bends(4000, GeometryRange(p_elastic=0.2, elastic=0.04), torch_generator(0))
    assert some is not None
    bent = some.points.abs().amax(dim=(1, 2, 3))
    assert float((bent > 0).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(bent.max()) <= 2 * 0.04
    assert draw_bends(4, GeometryRange(elastic=0.04), torch_generator(0)) is None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_crops_hold_a_pixel_of_the_class_that_is_wanted(seed: int, side: int) -> None:
    generator = torch_generator(seed)
    masks = torch.zeros(4, 64, 64, dtype=torch.long)
    for row in (0, 1, 3):
        masks[row, *torch.randint(0, 64, (2,), generator=generator).tolist()] = row + 1
    drawn = torch.randint(0, 4 - side + 1, (4, 2), generator=generator)
    uniform = torch.rand(4, 3, dtype=torch.float64, generator=generator)
    wanted = torch.tensor([1, 2, 3, 0])
    corners = hold_foreground(drawn, side, masks, wanted, uniform, 4)
    assert (corners >= 0).all()
    assert (corners <= 4 - side).all()
    for row in (0, 1):
        top, left = (16 * corners[row]).tolist()
        assert (masks[row, top : top + 16 * side, left : left + 16 * side] == wanted[row]).any()
    assert torch.equal(corners[2:], drawn[2:]), "the class is not there, or none is wanted"


def test_a_wanted_pixel_is_anywhere_in_its_crop() -> None:
    masks = torch.zeros(1, 64, 64, dtype=torch.long)
    masks[0, 20, 40] = 1
    uniform = torch.rand(200, 3, dtype=torch.float64, generator=torch_generator(0))
    masks, wanted = masks.expand(200, -1, -1), torch.ones(200, dtype=torch.long)
    corners = hold_foreground(torch.zeros(200, 2, dtype=torch.long), 2, masks, wanted, uniform, 4)
    assert {tuple(one) for one in corners.tolist()} == {(top, left) for top in (0, 1) for left in (1, 2)}
