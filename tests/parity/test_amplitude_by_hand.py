"""The mixing of Fourier amplitudes against its definition in numpy, frequency by frequency."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tskd.data.amplitude import mix_amplitudes


def by_hand(image: np.ndarray, other: np.ndarray, weight: float, band: float) -> np.ndarray:
    """Return a channel (H, W): phases of ``image``, amplitudes mixed where both frequencies are at most ``band``."""
    spectrum, style = np.fft.fft2(image.astype(float)), np.abs(np.fft.fft2(other.astype(float)))
    height, width = image.shape
    for k in range(height):
        for m in range(width):
            row, column = min(k, height - k) / height, min(m, width - m) / width
            if max(row, column) <= band:
                amplitude = (1 - weight) * abs(spectrum[k, m]) + weight * style[k, m]
                spectrum[k, m] = amplitude * np.exp(1j * np.angle(spectrum[k, m]))
    changed = np.fft.ifft2(spectrum)
    assert np.abs(changed.imag).max() < 1e-9
    return np.clip(changed.real, 0, 1)


@pytest.mark.parametrize("band", [0.01, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("size", [(16, 16), (15, 20)])
def test_amplitudes_are_mixed_as_defined(band: float, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    images, others = generator.random((2, 3, 3, *size), np.float32)
    weights = np.array([0.0, 0.4, 1.0], np.float32)
    found = mix_amplitudes(*map(torch.from_numpy, (images, others, weights)), band).numpy()
    for row in range(3):
        for colour in range(3):
            expected = by_hand(images[row, colour], others[row, colour], float(weights[row]), band)
            np.testing.assert_allclose(found[row, colour], expected, atol=2e-6)


def test_the_mean_is_that_of_the_other_where_only_the_lowest_frequency_is_swapped() -> None:
    """On paper: amplitude 0 of an image in [0, 1] is the sum of its pixels."""
    images, others = torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.8)
    images[..., 0] = 0.6
    changed = mix_amplitudes(images, others, torch.ones(1), 0.01)
    torch.testing.assert_close(changed, images - images.mean() + 0.8)
