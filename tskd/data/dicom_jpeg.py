"""A plug-in for pydicom: JPEG of 12 bits and lossless JPEG (PS3.5 A.4.1, A.4.2), and which decoder reads what.

pydicom asks a plug-in's module for the first two names below. What is decoded equals GDCM's bit for bit, which is 44 MB
and aborts its process on some files.
"""

from __future__ import annotations

import re

import imagecodecs
import numpy as np
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

_LABEL = "imagecodecs"
DECODER_DEPENDENCIES = dict.fromkeys((JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1), (_LABEL,))
PLUGINS: dict[str, str] = {
    JPEGBaseline8Bit: "pillow",
    **dict.fromkeys(DECODER_DEPENDENCIES, _LABEL),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys((JPEG2000Lossless, JPEG2000), "pylibjpeg"),
}
"""The one of pydicom's plug-ins that is asked, whatever else is installed; of other syntaxes any."""

_START_OF_SCAN, _END, _PADDING = b"\xda", b"\xff\xd9", b"\0\xff"
_NO_MARKER = re.compile(rb"\xff[\x01-\xbf\xf0-\xfd]")
"""Codes that ITU-T T.81 reserves: in a scan a byte of 255 is followed by 0 or by a marker in use."""


def is_available(uid: str) -> bool:
    """Tell whether this module decodes a transfer syntax."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """Return one frame's samples, colours as stored, as bytes of the width that is allocated.

    Raises ValueError where the data end early or hold what no encoder writes: libjpeg would make up what is missing.
    """
    _require_whole(source)
    unchanged = "RGB" if runner.samples_per_pixel == 3 else None
    samples = imagecodecs.jpeg8_decode(source, colorspace=unchanged, outcolorspace=unchanged)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
    return samples.astype(np.dtype(f"<u{runner.bits_allocated // 8}")).tobytes()


def _require_whole(source: bytes) -> None:
    place = 2
    while source[place + 1 : place + 2] != _START_OF_SCAN:
        length = int.from_bytes(source[place + 2 : place + 4])
        if length < 2:
            raise ValueError("no scan")
        place += 2 + length
    if not source.rstrip(_PADDING).endswith(_END) or _NO_MARKER.search(source, place + 2):
        raise ValueError("the scan is cut short or changed")


def register() -> None:
    """Let pydicom ask this module."""
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if _LABEL not in decoder.available_plugins:
            decoder.add_plugin(_LABEL, (__name__, "decode_frame"))


def is_decoded(syntax: str) -> bool:
    """Tell whether the decoder of a syntax is installed; raises NotImplementedError where nothing could."""
    decoder = get_decoder(syntax)
    return PLUGINS[syntax] in decoder.available_plugins if syntax in PLUGINS else decoder.is_available
