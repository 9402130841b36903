"""Changes of grey values against nnU-Net's formulas (batchgeneratorsv2 0.3.6) in numpy, SciPy's blur, and paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tskd.data.appearance import (
    apply_appearance,
    blur,
    change_contrast,
    change_gamma,
    change_gamma_inverted,
    draw_appearance,
    lower_resolution,
)
from tskd.recipe.schema import AppearanceConfig
from tskd.seeding import torch_generator


def each(*values: float) -> Tensor:
    """(B, 1, 1, 1)"""
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def grey_images(count: int, size: int = 24) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch_generator("grey", count)).expand(-1, 3, -1, -1)


def expected_gamma(image: np.ndarray, exponent: float) -> np.ndarray:
    """GammaTransform: the power of the values between minimum and maximum, then the mean and deviation of before."""
    low, spread = image.min(), image.max() - image.min()
    power = ((image - low) / spread) ** exponent * spread + low
    return (power - power.mean()) * (image.std() / power.std()) + image.mean()


def test_gamma_and_that_of_the_negative() -> None:
    images, exponents = grey_images(3), (0.7, 1.0, 1.5)
    changed, inverted = change_gamma(images, each(*exponents)), change_gamma_inverted(images, each(*exponents))
    for row, exponent in enumerate(exponents):
        image = images[row].double().numpy()
        np.testing.assert_allclose(changed[row], expected_gamma(image, exponent), atol=1e-5)
        np.testing.assert_allclose(inverted[row], -expected_gamma(-image, exponent), atol=1e-5)
    assert (changed[2] - inverted[2]).abs().max() > 0.1


def test_contrast_on_paper() -> None:
    """Mean 0.4: 0, 0.2, 0.4, 1 become -0.4, 0, 0.4, 1.6, and stay within 0 and 1; halved 0.2, 0.3, 0.4, 0.7."""
    image = torch.tensor([0.0, 0.2, 0.4, 1.0]).reshape(1, 1, 2, 2).repeat(2, 3, 1, 1)
    changed = change_contrast(image, each(2.0, 0.5))[:, 0].flatten(1)
    torch.testing.assert_close(changed, torch.tensor([[0, 0, 0.4, 1], [0.2, 0.3, 0.4, 0.7]]))


def test_brightness_on_paper() -> None:
    drawn = draw_appearance(2, AppearanceConfig(), torch_generator(0))
    still = drawn._replace(
        noise=torch.zeros(2), blur=torch.zeros(2), contrast=torch.ones(2), zoom=torch.ones(2),
        gamma=torch.ones(2), gamma_inverted=torch.ones(2), brightness=torch.tensor([1.25, 0.75]),
    )  # fmt: skip
    image = torch.tensor([0.0, 0.2, 0.4, 1.0]).reshape(1, 1, 2, 2).repeat(2, 3, 1, 1)
    changed = apply_appearance(image, still)[:, 2].flatten(1)
    torch.testing.assert_close(changed, torch.tensor([[0, 0.25, 0.5, 1], [0, 0.15, 0.3, 0.75]]))


def test_low_resolution_on_paper() -> None:
    """Halved by nearest neighbours, 0 to 7 leave 1, 3, 5, 7 (``nearest-exact``: the pixel under each new middle);
    enlarged, new middles lie at quarters between the old ones, and before the first and after the last one they repeat.
    """
    row = torch.arange(8.0)
    images = row.expand(1, 3, 8, 8)
    expected = torch.tensor([1, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7])
    torch.testing.assert_close(lower_resolution(images, each(0.5)), expected.expand(1, 3, 8, 8))
    turned = lower_resolution(images.mT.contiguous(), each(0.5))
    torch.testing.assert_close(turned, expected[:, None].expand(1, 3, 8, 8))
    both = lower_resolution(torch.cat([images, images]), each(0.5, 0.99))
    torch.testing.assert_close(both[1], images[0])


@pytest.mark.parametrize("sigmas", [(0.5, 1.0), (2.0, 0.6)])
def test_blur_is_scipys(sigmas: tuple[float, float]) -> None:
    """Each image by its own deviation, whichever kernel of the batch is the longest."""
    images = torch.rand(2, 3, 24, 20, generator=torch_generator("blur"))
    blurred = blur(images, each(*sigmas))
    for row, sigma in enumerate(sigmas):
        for colour in range(3):
            expected = gaussian_filter(images[row, colour].double().numpy(), sigma, mode="mirror", truncate=4.0)
            np.testing.assert_allclose(blurred[row, colour], expected, atol=1e-6)
