"""An encoder of lossless JPEG (ITU-T T.81 annex H) for tests: slow, plain, and with all that the standard allows."""

from __future__ import annotations

import numpy as np

_CODE = 5
"""Bits of each Huffman code: all 17 categories of differences have one of this length, its own number."""


def encode_lossless(
    values: np.ndarray, bits: int, *, predictor: int = 1, transform: int = 0, rows: int = 0, interleaved: bool = True
) -> bytes:
    """Return (H, W) or (H, W, C) as one frame; ``rows``: of a restart interval, ``transform``: low bits left out."""
    height, width = values.shape[:2]
    planes = values.reshape(height, width, -1).astype(int) >> transform
    numbers = list(range(planes.shape[2]))
    frame = bytes([bits]) + height.to_bytes(2) + width.to_bytes(2) + bytes([len(numbers)])
    out = b"\xff\xd8" + _segment(0xC3, frame + b"".join(bytes([one + 1, 0x11, 0]) for one in numbers))
    out += _segment(0xC4, bytes([0]) + bytes([0] * (_CODE - 1) + [17] + [0] * (16 - _CODE)) + bytes(range(17)))
    out += _segment(0xDD, (rows * width).to_bytes(2)) if rows else b""
    for scan in [numbers] if interleaved else [[one] for one in numbers]:
        parts = b"".join(bytes([one + 1, 0]) for one in scan)
        out += _segment(0xDA, bytes([len(scan)]) + parts + bytes([predictor, 0, transform]))
        first = 1 << (bits - transform - 1)
        intervals = [
            _interval(planes[top : top + (rows or height)][..., scan], predictor, first)
            for top in range(0, height, rows or height)
        ]
        for number, interval in enumerate(intervals[:-1]):
            out += interval + bytes([0xFF, 0xD0 + number % 8])
        out += intervals[-1]
    return out + b"\xff\xd9"


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


def _interval(planes: np.ndarray, predictor: int, first: int) -> bytes:
    """Return the bits of one restart interval, (rows, W, C); ``first`` predicts its first sample."""
    coded = ""
    for row, column, plane in np.ndindex(planes.shape):
        guess = _predicted(planes[..., plane], row, column, predictor, first)
        difference = (int(planes[row, column, plane]) - guess + 32768) % 65536 - 32768
        size = 16 if difference == -32768 else abs(difference).bit_length()
        coded += f"{size:0{_CODE}b}"
        if 0 < size < 16:
            coded += f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}"
    coded += "1" * (-len(coded) % 8)
    return int(coded, 2).to_bytes(len(coded) // 8).replace(b"\xff", b"\xff\0")


def _predicted(plane: np.ndarray, row: int, column: int, predictor: int, first: int) -> int:
    """Return what table H.1 predicts; H.1.2.1: the left one in the first row, the upper one in the first column."""
    if row == 0:
        return int(plane[0, column - 1]) if column else first
    above = int(plane[row - 1, column])
    if column == 0:
        return above
    left, corner = int(plane[row, column - 1]), int(plane[row - 1, column - 1])
    return [
        left, above, corner, left + above - corner, left + ((above - corner) >> 1), above + ((left - corner) >> 1),
        (left + above) >> 1,
    ][predictor - 1]  # fmt: skip
