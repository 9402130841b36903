from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tskd.engine.batches import ImageBatches, allowed_flips, crop_batch, to_images
from tskd.errors import UserError
from tskd.recipe.schema import AppearanceConfig, AugmentConfig
from tskd.types import UNLABELLED, Batch

PLAIN = AugmentConfig(flip="none", rotate=0, scale=0, shift=0, photometric=0)
COUNT, SIZE = 7, 16


def stored() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    return pixels, (pixels[..., 0] > 127).astype(np.uint8)


def batches(augment: AugmentConfig = PLAIN, *, masks: bool = True) -> ImageBatches:
    pixels, labels = stored()
    names = [f"image{i}" for i in range(COUNT)]
    return ImageBatches(pixels, labels if masks else None, names, batch_size=4, augment=augment, seed=9)


def assert_equal(first: Batch, second: Batch) -> None:
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.views, second.views)
    assert first.masks is not None
    assert second.masks is not None
    assert torch.equal(first.masks, second.masks)
    assert first.names == second.names


def test_a_batch_holds_what_is_stored_under_its_names() -> None:
    pixels, labels = stored()
    batch = batches()(5, 0, 1)
    rows = [int(name.removeprefix("image")) for name in batch.names]
    assert batch.images.dtype == torch.float32
    expected = torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(batch.images, expected, rtol=0, atol=1e-5)
    assert batch.masks is not None
    assert batch.masks.dtype == torch.int64
    assert torch.equal(batch.masks, torch.from_numpy(labels[rows]).long())


def test_every_image_is_seen_once_before_any_is_seen_twice() -> None:
    names = [name for step in range(7) for name in batches()(step, 0, 1).names]
    assert [sorted(names[i : i + COUNT]) for i in (0, 7, 14, 21)] == [[f"image{i}" for i in range(COUNT)]] * 4


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(flip="both", rotate=90),
        AugmentConfig(p_rotate=0.5, p_elastic=0.5, appearance=AppearanceConfig(p_noise=0.5), foreground=0.5),
    ],
)
def test_parts_make_up_the_whole_batch_augmentation_included(parts: int, augment: AugmentConfig) -> None:
    source = batches(augment)
    whole, cut = source(3, 0, 1), [source(3, part, parts) for part in range(parts)]
    joined = Batch(
        torch.cat([part.images for part in cut]),
        torch.cat([part.views for part in cut]),
        torch.cat([part.masks for part in cut if part.masks is not None]),
        names=tuple(name for part in cut for name in part.names),
    )
    assert_equal(joined, whole)


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    first = batches(AugmentConfig())
    for step in (4, 0, 2):
        first(step, 0, 1)
    torch.manual_seed(1)
    assert_equal(first(1, 0, 1), batches(AugmentConfig())(1, 0, 1))
    other = replace(first, seed=10)(1, 0, 1)
    assert not torch.equal(other.images, first(1, 0, 1).images)


def test_the_same_image_is_changed_anew_each_time() -> None:
    source = replace(batches(AugmentConfig(photometric=0)), batch_size=COUNT)
    views = [dict(zip(batch.names, batch.images)) for batch in (source(0, 0, 1), source(1, 0, 1))]
    assert not torch.equal(views[0]["image0"], views[1]["image0"])


def test_photometry_is_for_the_view_and_leaves_the_image() -> None:
    """The teacher is asked about ``images``; the student sees ``views``."""
    geometric, both = AugmentConfig(photometric=0), AugmentConfig()
    plain, changed = batches(geometric)(2, 0, 1), batches(both)(2, 0, 1)
    assert torch.equal(plain.images, plain.views)
    assert torch.equal(plain.images, changed.images)
    assert not torch.equal(changed.images, changed.views)


def test_without_masks_there_are_none() -> None:
    assert batches(masks=False)(0, 0, 1).masks is None


def test_arrays_on_disk_are_read_by_memory_map(tmp_path: Path) -> None:
    pixels, _ = stored()
    np.save(tmp_path / "images.npy", pixels)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    batch = replace(batches(), images=mapped)(0, 0, 1)
    batch.images.zero_()
    assert_equal(replace(batches(), images=mapped)(0, 0, 1), batches()(0, 0, 1))


@pytest.mark.parametrize(
    ("flip", "classes", "allowed"),
    [
        ("auto", ["kidney"], (True, False)),
        ("auto", ["Left lung", "right lung"], (False, False)),
        ("none", ["kidney"], (False, False)),
        ("horizontal", ["left lung"], (True, False)),
        ("both", ["kidney"], (True, True)),
    ],
)
def test_left_and_right_are_not_mirrored_unless_asked(
    flip: str, classes: list[str], allowed: tuple[bool, bool]
) -> None:
    assert allowed_flips(flip, classes) == allowed


def test_images_are_in_zero_to_one() -> None:
    pixels = np.array([[[[0, 51, 255]]]], dtype=np.uint8)
    assert to_images(pixels)[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])


def test_crops_cut_image_view_and_mask_alike_in_whole_cells() -> None:
    """Each pixel of the image names its place, and the mask repeats it: a crop of one and not the other would show."""
    places = np.arange(16, dtype=np.uint8).reshape(4, 4).repeat(16, 0).repeat(16, 1)
    augment = PLAIN.model_copy(update={"crop": 0.5})
    images = np.repeat(places[None, :, :, None], 3, axis=3)
    batches = ImageBatches(images, places[None], ["one"], 4, augment, seed=1)
    sides = set()
    for step in range(8):
        batch = batches(step, 0, 1)
        assert batch.masks is not None
        assert torch.equal((batch.images[:, 0] * 255).round().long(), batch.masks)
        assert torch.equal(batch.views, batch.images)
        assert (batch.masks[:, ::16, ::16] == batch.masks[:, 15::16, 15::16]).all(), "cells are whole"
        assert torch.equal(torch.cat([batches(step, part, 2).images for part in range(2)]), batch.images)
        sides.add(batch.masks.shape[-1])
    assert sides == {32, 48, 64}


def test_a_grid_that_does_not_divide_the_image_is_refused() -> None:
    images = np.zeros((2, 80, 80, 3), dtype=np.uint8)
    whole = ImageBatches(images, None, ["one", "two"], 2, PLAIN, seed=1)
    cropping = replace(whole, augment=PLAIN.model_copy(update={"crop": 0.5}))
    with pytest.raises(UserError, match="80 px are not a multiple of the student's 3 cells"):
        crop_batch(whole(0, 0, 1), cropping, 0, slice(0, 2), grid=3)


def test_grey_values_change_for_the_view_alone_and_nothing_else_does() -> None:
    """The teacher answers for ``images``: the student sees its strong view, the answer is that of the weak one."""
    strong = AppearanceConfig(p_noise=1.0, p_gamma=1.0)
    for light in (0.0, 1.0):
        weak = AugmentConfig(photometric=light)
        before, after = batches(weak)(2, 0, 1), batches(weak.model_copy(update={"appearance": strong}))(2, 0, 1)
        assert torch.equal(after.images, before.images)
        assert after.masks is not None
        assert before.masks is not None
        assert torch.equal(after.masks, before.masks)
        assert not torch.equal(after.views, before.views)
    again = batches(AugmentConfig(appearance=strong))(2, 0, 1)
    assert torch.equal(again.views, after.views), "a function of seed and step"


def test_bends_move_image_and_mask_alike() -> None:
    """The image's red is 1 where its mask is."""
    masks = np.zeros((COUNT, 64, 64), dtype=np.uint8)
    masks[:, 16:48, 24:40] = 1
    images = np.repeat(255 * masks[..., None], 3, axis=3)
    bent = PLAIN.model_copy(update={"p_elastic": 1.0, "elastic": 0.06})
    batch = ImageBatches(images, masks, [str(row) for row in range(COUNT)], 4, bent, seed=1)(0, 0, 1)
    assert batch.masks is not None
    assert ((batch.images[:, 0] > 0.5).long() != batch.masks).float().mean() < 0.01
    straight = torch.from_numpy(masks[:4]).long()
    assert ((batch.masks != straight).float().mean(dim=(1, 2)) > 0.002).all()


def rare(share: float, crop: float) -> ImageBatches:
    """One image of eight has a pixel of the second class, every one some of the first; a border is unlabelled."""
    masks = np.zeros((8, 64, 64), dtype=np.uint8)
    masks[:, 4:20, 4:20] = 1
    masks[5, 50, 60] = 2
    masks[:, -1] = UNLABELLED
    images = np.repeat(masks[..., None], 3, axis=3)
    augment = PLAIN.model_copy(update={"foreground": share, "crop": crop})
    return ImageBatches(images, masks, [f"image{row}" for row in range(8)], 4, augment, seed=2)


def test_rare_classes_are_drawn_by_turns() -> None:
    names = [name for step in range(40) for name in rare(0.5, 0.0)(step, 0, 1).names]
    usual = [name for step in range(40) for name in rare(0.0, 0.0)(step, 0, 1).names]
    assert usual.count("image5") == 20
    assert names.count("image5") == pytest.approx(40 + 80 / 8 + 40 / 8, abs=3), "its class, the usual turn, the first"


def test_crops_of_images_that_are_drawn_for_a_class_show_it() -> None:
    source, shown, whole = rare(0.5, 0.75), [], 0
    for step in range(24):
        batch = source(step, 0, 1)
        assert batch.masks is not None
        _, wanted = source.drawn(step)
        assert wanted is not None
        assert wanted.count_nonzero() == 2
        shown += [bool((mask == number).any()) for mask, number in zip(batch.masks, wanted) if number]
        whole += batch.masks.shape[-1] == 64
        assert torch.equal((batch.images[:, 0] * 255).round().long(), batch.masks)
        assert torch.equal(torch.cat([source(step, part, 2).images for part in range(2)]), batch.images)
    assert all(shown)
    assert whole < 20, "most of them were crops"


def test_unlabelled_pixels_are_no_class_to_draw_for() -> None:
    wanted = [rare(1.0, 0.0).drawn(step)[1] for step in range(9)]
    assert {number for one in wanted if one is not None for number in one.tolist()} == {1, 2}
