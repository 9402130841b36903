"""Styles of other images in training batches: how often, whose, for whom, and the same whatever draws them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tskd.data.amplitude import draw_styles
from tskd.data.prepared import SomeImages
from tskd.engine.batches import ImageBatches, to_images
from tskd.recipe.schema import AugmentConfig
from tskd.seeding import torch_generator

STILL = {"flip": "none", "rotate": 0, "scale": 0, "shift": 0, "photometric": 0}
COUNT, SIZE = 12, 16


def batches(amplitude: float, band: float = 0.1, *, others: np.ndarray | None = None) -> ImageBatches:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
    augment = AugmentConfig(**STILL, amplitude=amplitude, amplitude_band=band)
    names = [str(row) for row in range(COUNT)]
    return ImageBatches(images, images[..., 0] // 128, names, 8, augment, seed=3, others=others)


def test_styles_are_drawn_as_often_and_as_evenly_as_stated() -> None:
    drawn = draw_styles(20_000, 0.3, 5, torch_generator(1))
    assert drawn.happens.float().mean() == pytest.approx(0.3, abs=0.01)
    assert torch.bincount(drawn.others).tolist() == pytest.approx([4000] * 5, rel=0.05)
    assert drawn.weights.mean() == pytest.approx(0.5, abs=0.01)


def test_only_what_the_network_in_training_sees_changes_and_no_label() -> None:
    plain, styled = batches(0.0)(4, 0, 1), batches(0.5)(4, 0, 1)
    assert torch.equal(styled.images, plain.images), "the teacher answers for the image as it is"
    assert styled.masks is not None
    assert plain.masks is not None
    assert torch.equal(styled.masks, plain.masks)
    changed = (styled.views != plain.views).flatten(1).any(1)
    assert 0 < changed.sum() < len(changed)


def test_processes_and_parts_draw_what_one_draws() -> None:
    source = batches(0.5)
    whole = source(4, 0, 1).views
    assert torch.equal(torch.cat([source(4, part, 4).views for part in range(4)]), whole)
    assert torch.equal(batches(0.5)(4, 0, 1).views, whole)
    assert not torch.equal(replace(source, seed=4)(4, 0, 1).views, whole)


def test_the_styles_are_those_of_the_other_images() -> None:
    """White ones leave the lowest frequency between an image's mean and 1."""
    white = np.full((2, SIZE, SIZE, 3), 255, np.uint8)
    batch = batches(1.0, 0.01, others=white)(0, 0, 1)
    before, after = batch.images.mean(dim=(1, 2, 3)), batch.views.mean(dim=(1, 2, 3))
    assert (after > before).all()
    own = batches(1.0, 0.01)(0, 0, 1).views.mean(dim=(1, 2, 3))
    assert (own - before).abs().max() < 0.05, "noise images have nearly one mean"


def test_some_images_are_rows_of_an_array_at_a_side() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    some = SomeImages(images, np.array([5, 1]), 32)
    assert (len(some), some.shape) == (2, (2, 32, 32, 3))
    assert np.array_equal(some[[1, 0]], images[[1, 5]])
    assert SomeImages(images, np.array([5, 1]), 16)[np.array([0])].shape == (1, 16, 16, 3)
    torch.testing.assert_close(to_images(some[[0]]).mean(), torch.tensor(images[5].mean() / 255, dtype=torch.float32))
