"""nnU-Net's random changes of grey values: parameters are drawn first, an image then, whatever its neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tskd.recipe.schema import AppearanceConfig, Range

_PIXELS = (1, 2, 3)
"""The dimensions of an image in a batch."""
TRUNCATE = 4
"""A blur's kernel ends so many standard deviations from its middle, as in SciPy."""


class Appearance(NamedTuple):
    """Drawn parameters (B,), one an image; a value that changes nothing stands where nothing happens."""

    noise: Tensor
    """Standard deviation in those of the image; 0: none."""
    seed: Tensor
    """int64, of the noise."""
    blur: Tensor
    """Standard deviation in pixels; 0: none."""
    brightness: Tensor
    """Factor; 1: none, as for all that follow."""
    contrast: Tensor
    zoom: Tensor
    """Share of the side that is left before the image is enlarged again."""
    gamma_inverted: Tensor
    gamma: Tensor


def draw_appearance(count: int, limits: AppearanceConfig, generator: torch.Generator) -> Appearance:
    """Return parameters for ``count`` images."""
    chance, place = torch.rand(2, 7, count, generator=generator)
    seed = torch.randint(2**62, (count,), generator=generator)

    def happens(index: int, probability: float, values: Tensor, otherwise: float) -> Tensor:
        return torch.where(chance[index] < probability, values, otherwise)

    return Appearance(
        noise=happens(0, limits.p_noise, limits.noise * place[0], 0.0),
        seed=seed,
        blur=happens(1, limits.p_blur, _between(limits.blur, place[1]), 0.0),
        brightness=happens(2, limits.p_brightness, _about_one(limits.brightness, place[2]), 1.0),
        contrast=happens(3, limits.p_contrast, _about_one(limits.contrast, place[3]), 1.0),
        zoom=happens(4, limits.p_low_resolution, _between(limits.low_resolution, place[4]), 1.0),
        gamma_inverted=happens(5, limits.p_gamma_inverted, _about_one(limits.gamma, place[5]), 1.0),
        gamma=happens(6, limits.p_gamma, _about_one(limits.gamma, place[6]), 1.0),
    )


def _between(limits: Range, place: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * place


def _about_one(limits: Range, place: Tensor) -> Tensor:
    """Return values that are as often below 1 as above, evenly on each side."""
    signed = 2 * place - 1
    return 1 + torch.where(signed < 0, signed * (1 - limits[0]), signed * (limits[1] - 1))


def apply_appearance(images: Tensor, drawn: Appearance) -> Tensor:
    """Return (B, 3, H, W) images in [0, 1] with the drawn changes, in nnU-Net's order; the images given stay."""
    changed = images.clone()
    _change(changed, drawn.noise > 0, add_noise, drawn.noise, drawn.seed)
    _change(changed, drawn.blur > 0, blur, drawn.blur)
    _change(changed, drawn.brightness != 1, torch.mul, drawn.brightness)
    _change(changed, drawn.contrast != 1, change_contrast, drawn.contrast)
    _change(changed, drawn.zoom < 1, lower_resolution, drawn.zoom)
    _change(changed, drawn.gamma_inverted != 1, change_gamma_inverted, drawn.gamma_inverted)
    _change(changed, drawn.gamma != 1, change_gamma, drawn.gamma)
    return changed.clamp_(0, 1)


def _change(images: Tensor, happens: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Change in place the images that a change happens to."""
    rows = torch.nonzero(happens).flatten()
    if len(rows):
        images[rows] = change(
            images[rows], *(values[rows].reshape(-1, 1, 1, 1).to(images.device) for values in parameters)
        )


def add_noise(images: Tensor, deviation: Tensor, seed: Tensor) -> Tensor:
    """Return images with Gaussian noise of a deviation in each image's own, the same in all colours."""
    generators = (torch.Generator().manual_seed(one) for one in seed.flatten().tolist())
    noise = torch.stack([torch.randn(1, *images.shape[2:], generator=one) for one in generators]).to(images)
    own = _length(images - _mean(images)) / math.sqrt(images[0].numel())
    return images + noise * (deviation * own)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Return images blurred by Gaussians of a deviation in pixels, mirrored at the border pixels' centres."""
    radius = math.ceil(TRUNCATE * float(sigma.max()))
    offset = torch.arange(radius + 1, device=images.device)
    weights = torch.exp(-(offset**2) / (2 * sigma**2)) * (offset <= (TRUNCATE * sigma + 0.5).floor())
    weights = weights / (2 * weights.sum(dim=-1, keepdim=True) - weights[..., :1])
    for axis in (-1, -2):
        padding = (radius, radius, 0, 0) if axis == -1 else (0, 0, radius, radius)
        padded, size = F.pad(images, padding, mode="reflect"), images.shape[axis]
        images = padded.narrow(axis, radius, size) * weights[..., :1]
        for far in range(1, radius + 1):
            both = padded.narrow(axis, radius - far, size) + padded.narrow(axis, radius + far, size)
            images.addcmul_(both, weights[..., far : far + 1])
    return images


def change_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Return images whose distance to their mean is multiplied, within their darkest and brightest value."""
    mean = _mean(images)
    return ((images - mean) * factor + mean).clamp_(images.amin(_PIXELS, True), images.amax(_PIXELS, True))


def lower_resolution(images: Tensor, zoom: Tensor) -> Tensor:
    """Return images reduced by nearest neighbours, then enlarged bilinearly to their size."""
    size = images.shape[-2:]
    reduced = ((image[None], [round(side * by) for side in size]) for image, by in zip(images, zoom.flatten().tolist()))
    small = (F.interpolate(image, smaller, mode="nearest-exact") for image, smaller in reduced)
    return torch.cat([_enlarge(image, size) for image in small])


def _enlarge(image: Tensor, size: torch.Size) -> Tensor:
    """Return (1, C, H, W) bilinearly enlarged; what ``F.interpolate`` makes depends on threads in the last digits."""
    for axis, side in zip((-1, -2), reversed(size)):
        most = image.shape[axis] - 1
        place = ((torch.arange(side, device=image.device) + 0.5) * ((most + 1) / side) - 0.5).clamp_(0, most)
        low = place.long().clamp_(max=most - 1)
        share = place - low if axis == -1 else (place - low)[:, None]
        image = image.index_select(axis, low) * (1 - share) + image.index_select(axis, low + 1) * share
    return image


def change_gamma(images: Tensor, exponent: Tensor) -> Tensor:
    """Return images with the power of their values between darkest and brightest; mean and deviation stay."""
    low, high, mean = images.amin(_PIXELS, True), images.amax(_PIXELS, True), _mean(images)
    power = (images - low).div_((high - low).clamp_(min=1e-7)).pow_(exponent)
    power.sub_(_mean(power))
    return power.mul_(_length(images - mean) / _length(power).clamp_(min=1e-7)).add_(mean)


def change_gamma_inverted(images: Tensor, exponent: Tensor) -> Tensor:
    """Return what :func:`change_gamma` makes of the negative, as a positive."""
    return change_gamma(images.neg(), exponent).neg_()


def _mean(images: Tensor) -> Tensor:
    """Return (B, 1, 1, 1) means, row by row first: a whole image is summed in another order by other threads."""
    return images.mean(dim=-1, keepdim=True).mean(dim=(1, 2), keepdim=True)


def _length(images: Tensor) -> Tensor:
    """Return (B, 1, 1, 1) roots of the sums of squares, row by row first; ``std`` takes fifty times as long."""
    rows = torch.linalg.vector_norm(images, dim=-1, keepdim=True)
    return torch.linalg.vector_norm(rows, dim=(1, 2), keepdim=True)
