"""Changes of grey values: each happens as often and as much as the settings say, and one image's are its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tskd.data.appearance import add_noise, apply_appearance, draw_appearance
from tskd.recipe.schema import AppearanceConfig
from tskd.seeding import torch_generator

CHANCES = [name for name in AppearanceConfig.model_fields if name.startswith("p_")]
STILL = AppearanceConfig(**dict.fromkeys(CHANCES, 0.0))
ALWAYS = AppearanceConfig(**dict.fromkeys(CHANCES, 1.0))


def random_images(count: int = 3, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch_generator("images", count, size))


def test_nothing_happens_at_probability_zero_and_the_given_images_stay() -> None:
    images = random_images()
    kept = images.clone()
    assert torch.equal(apply_appearance(images, draw_appearance(3, STILL, torch_generator(0))), images)
    changed = apply_appearance(images, draw_appearance(3, ALWAYS, torch_generator(0)))
    assert torch.equal(images, kept)
    assert 0 <= float(changed.min()) < float(changed.max()) <= 1


@pytest.mark.parametrize("chance", CHANCES)
def test_each_change_alone_has_an_effect(chance: str) -> None:
    images = random_images()
    drawn = draw_appearance(3, STILL.model_copy(update={chance: 1.0}), torch_generator(4))
    assert (apply_appearance(images, drawn) - images).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_changes_are_as_frequent_and_as_large_as_the_settings_say() -> None:
    usual, count = AppearanceConfig(), 20_000
    drawn = draw_appearance(count, usual, torch_generator(1))
    neutral = {"noise": 0, "blur": 0, "brightness": 1, "contrast": 1, "zoom": 1, "gamma_inverted": 1, "gamma": 1}
    ranges = {
        "noise": (0, usual.noise), "blur": usual.blur, "brightness": usual.brightness, "contrast": usual.contrast,
        "zoom": usual.low_resolution, "gamma_inverted": usual.gamma, "gamma": usual.gamma,
    }  # fmt: skip
    for name, nothing in neutral.items():
        values = getattr(drawn, name)
        values = values[values != nothing]
        chance = getattr(usual, "p_low_resolution" if name == "zoom" else f"p_{name}")
        assert len(values) / count == pytest.approx(chance, abs=0.012), name
        low, high = ranges[name]
        assert low <= float(values.min()) < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < float(values.max()) <= high, name
    for name in ("brightness", "contrast", "gamma"):
        values = getattr(drawn, name)
        below, above = (values < 1).sum(), (values > 1).sum()
        assert float(below / above) == pytest.approx(1, abs=0.1), f"{name}: as often below 1 as above"
    assert len(set(drawn.seed.tolist())) == count


def test_how_often_one_change_happens_moves_no_other() -> None:
    """Two recipes that differ in one probability are compared on the same draws of all else."""
    first = draw_appearance(50, AppearanceConfig(), torch_generator(2))
    second = draw_appearance(50, AppearanceConfig(p_noise=0.9), torch_generator(2))
    assert not torch.equal(first.noise, second.noise)
    for name in first._fields[1:]:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_an_image_is_changed_alike_whatever_its_neighbours() -> None:
    images = random_images()
    drawn = draw_appearance(3, ALWAYS, torch_generator(0))
    together = apply_appearance(images, drawn)
    alone = [
        apply_appearance(images[[row]], type(drawn)(*(values[[row]] for values in drawn))) for row in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-6)


def test_the_number_of_threads_changes_no_bit() -> None:
    """Large enough that torch shares the work out: sums over a whole image would differ in the last digits."""
    images = random_images(3, 192)
    drawn = draw_appearance(3, ALWAYS, torch_generator(0))
    before, changed = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            changed.append(apply_appearance(images, drawn))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(changed[0], changed[1])
    assert torch.equal(changed[0], changed[2])


def test_noise_is_a_share_of_the_images_own_deviation_and_grey_stays_grey() -> None:
    images = random_images(2, 64)
    images[1] = 0.5 + 0.1 * (images[1] - 0.5)
    share, seeds = torch.tensor([0.1, 0.05]).reshape(2, 1, 1, 1), torch.tensor([7, 7])
    added = add_noise(images, share, seeds) - images
    assert torch.allclose(added[:, 0], added[:, 2], atol=1e-6)
    for row in range(2):
        expected = float(share[row]) * float(images[row].std())
        assert float(added[row].std()) == pytest.approx(expected, rel=0.05)
        assert abs(float(added[row].mean())) < 0.1 * expected
    shapes = [one.numpy().ravel() for one in added[:, 0]]
    assert np.corrcoef(*shapes)[0, 1] > 0.999, "the same seed, the same noise"
    other = add_noise(images, share, torch.tensor([7, 8])) - images
    assert abs(np.corrcoef(other[0, 0].numpy().ravel(), other[1, 0].numpy().ravel())[0, 1]) < 0.1


def test_an_even_image_stays_one() -> None:
    """No division by a deviation of zero."""
    grey = torch.full((2, 3, 32, 32), 0.25)
    changed = apply_appearance(grey, draw_appearance(2, ALWAYS, torch_generator(0)))
    assert changed.isfinite().all()
    assert float((changed.amax((1, 2, 3)) - changed.amin((1, 2, 3))).max()) < 1e-5
