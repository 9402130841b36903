"""Augmentation: image and mask move alike, nothing happens at zero, and what is exact stays exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tskd.data.augment import (
    GeometryRange,
    apply_photometry,
    draw_geometry,
    draw_photometry,
    move_images,
    move_masks,
    transform_dihedral,
)
from tskd.seeding import torch_generator

STILL = GeometryRange(flip_horizontal=False, flip_vertical=False, rotate=0, scale=0, shift=0)
WILD = GeometryRange(flip_horizontal=True, flip_vertical=True, rotate=180, scale=0.5, shift=0.2)


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


def test_the_dihedral_group_moves_grids_of_any_size_alike() -> None:
    """Pooling a turned image is turning the pooled image: cached features stay true to their image."""
    image = torch.rand(2, 3, 16, 16)
    for element in range(8):
        pooled = torch.nn.functional.avg_pool2d(transform_dihedral(image, element), 4)
        turned = transform_dihedral(torch.nn.functional.avg_pool2d(image, 4), element)
        torch.testing.assert_close(pooled, turned)
