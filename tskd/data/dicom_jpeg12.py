"""A plug-in for pydicom: JPEG Extended of 12 bits (PS3.5 10.3), which none of the decoders it knows reads freely.

pydicom asks a plug-in's module for the names below.
"""

from __future__ import annotations

import imagecodecs
import numpy as np
from pydicom.pixels.decoders import JPEGExtended12BitDecoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGExtended12Bit

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("imagecodecs",)}
_LABEL = "imagecodecs"


def is_available(uid: str) -> bool:
    """Tell whether this module decodes a transfer syntax."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """Return one frame's samples as bytes of the width that is allocated."""
    samples = imagecodecs.jpeg8_decode(source)
    return samples.astype(np.dtype(f"<u{runner.bits_allocated // 8}")).tobytes()


def register() -> None:
    """Let pydicom try this after its own."""
    if _LABEL not in JPEGExtended12BitDecoder.available_plugins:
        JPEGExtended12BitDecoder.add_plugin(_LABEL, (__name__, "decode_frame"))
