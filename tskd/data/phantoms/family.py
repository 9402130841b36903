"""What a family of phantoms is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Drawing: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Image (S, S, 3) and mask (S, S) of class indices, 0 background."""

ABSENT_SHARE = 0.06
"""Share of the images in which a structure that can be absent is absent."""


@dataclass(frozen=True)
class Family:
    """One procedural imaging modality."""

    name: str
    classes: tuple[str, ...]
    """Foreground classes; class ``i`` has mask value ``i + 1``."""
    draw: Callable[[np.random.Generator, np.random.Generator, int], Drawing]
    """``draw(case_rng, image_rng, size)``: anatomy and appearance come from the first generator, the view from the
    second; images of one case are drawn with equal ``case_rng``.

    How many numbers are drawn before the pixel noise must not depend on ``size``: a phantom looks alike at every size.
    """
