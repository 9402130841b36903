"""One phantom as several scanners show it: resolution, response and noise differ, what is shown does not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tskd.data.phantoms.noise import to_bytes
from tskd.recipe.schema import ScannerConfig


def scan(image: NDArray[np.uint8], scanner: ScannerConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return an image (S, S, 3) as a scanner shows it: less sharp, then through its response, then with its noise."""
    side = image.shape[0]
    sharp = max(1, round(scanner.resolution * side))
    if sharp < side:
        bilinear = Image.Resampling.BILINEAR  # Pillow's takes means over what it shrinks
        image = np.asarray(Image.fromarray(image).resize((sharp, sharp), bilinear).resize((side, side), bilinear))
    values = scanner.gain * (image.astype(np.float32) / 255) ** scanner.gamma
    if scanner.noise:
        values = values + scanner.noise * rng.standard_normal((side, side, 1), dtype=np.float32)
    return to_bytes(values)
