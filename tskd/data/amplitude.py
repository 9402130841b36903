"""Styles of other images: low frequencies take on amplitudes of another image's, phases (what is where) stay."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Styles(NamedTuple):
    """Drawn parameters (B,), one an image."""

    happens: Tensor
    """bool"""
    others: Tensor
    """int64: whose amplitudes are taken, an index below the number of images to take them from."""
    weights: Tensor
    """Share of the other's amplitude, in [0, 1)."""


def draw_styles(count: int, share: float, others: int, generator: torch.Generator) -> Styles:
    """Return parameters for ``count`` images, ``others`` being the number of images whose amplitudes may be taken."""
    chance, weights = torch.rand(2, count, generator=generator)
    return Styles(chance < share, torch.randint(others, (count,), generator=generator), weights)


def mix_amplitudes(images: Tensor, others: Tensor, weights: Tensor, band: float) -> Tensor:
    """Return (B, 3, H, W) images in [0, 1] whose amplitudes are those of ``others``, (B, 3, H, W), by ``weights`` (B,).

    Up to ``band`` cycles a pixel along either axis; 0.5 takes all frequencies. Sources: Yang and Soatto 2020 (a square
    of low frequencies is swapped, weight 1), Xu et al. 2021 (all amplitudes are mixed by an even random weight).
    """
    height, width = images.shape[-2:]
    rows, columns = torch.fft.fftfreq(height).abs(), torch.fft.rfftfreq(width)
    low = (torch.maximum(rows[:, None], columns) <= band + 1e-6).to(images.device)
    # one by one: the last digits of an image would depend on how many there are
    return torch.stack([_mix(*one, low) for one in zip(images, others, weights.to(images), strict=True)])


def _mix(image: Tensor, other: Tensor, weight: Tensor, low: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(image)
    amplitudes = spectrum.abs()
    mixed = torch.where(low, torch.lerp(amplitudes, torch.fft.rfft2(other).abs(), weight), amplitudes)
    changed = torch.fft.irfft2(torch.polar(mixed, spectrum.angle()), s=image.shape[-2:])
    return changed.clamp_(0, 1)
