"""Raw mask values to class indices: as stated by a label map, or by the plain rules, never by guessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tskd.data.intensity import require_finite
from tskd.errors import UserError
from tskd.types import UNLABELLED

COLOUR = 1 << 24
"""Bit that marks a label map's key as a colour: ``COLOUR | 0xRRGGBB``."""

ROUNDING = 1e-3
"""How far a label may be from a whole number: single precision and resampling leave 0.9999 for 1."""
_SHOWN = 8
_OF_A_SYSTEM = 16  # colours of the smallest palette that a system brings


def has_foreground(masks: np.ndarray) -> bool:
    """Return whether a pixel of masks of class indices is of a class other than background."""
    return bool(((masks > 0) & (masks != UNLABELLED)).any())


def colour_key(text: str) -> int:
    """Return the label-map key of ``#rrggbb``. Raises ``ValueError`` for other text."""
    if len(text) != 7 or not text.startswith("#"):
        raise ValueError(text)
    return COLOUR | int(text[1:], 16)


def values_in(raw: np.ndarray) -> np.ndarray:
    """Return the distinct values of a mask, sorted; colours (H, W, 3) as ``COLOUR | 0xRRGGBB``."""
    if raw.ndim == 3:
        return np.unique(_colour_keys(raw))
    if raw.dtype == np.uint8:
        return np.flatnonzero(count_bytes(raw))
    return np.flatnonzero(np.bincount(raw.ravel())) if _fits_a_table(raw) else np.unique(raw)


def _fits_a_table(values: np.ndarray) -> bool:
    """Tell whether values can be counted in a short table, which is much faster than sorting them."""
    countable = np.can_cast(values.dtype, np.intp) and values.size > 0
    return bool(countable and values.min() >= 0 and values.max() < 1 << 16)


def count_bytes(values: np.ndarray) -> np.ndarray:
    """Return how often each of 0..255 occurs in (H, W) uint8; Pillow counts three times as fast as numpy."""
    return np.array(Image.fromarray(values).histogram())


def whole(values: np.ndarray, path: Path) -> np.ndarray:
    """Return label numbers as integers of at most int32: whole ones in their own type, floating point rounded to int32.

    Raises :class:`UserError` naming a value that is further than :data:`ROUNDING` from a whole number, not finite or
    beyond int32.
    """
    if np.can_cast(values.dtype, np.int32):  # most masks: a byte for a pixel, and nothing to look for
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    require_finite(values, path)
    extreme = max(values.min(initial=0).item(), values.max(initial=0).item(), key=abs)
    if abs(extreme) > np.iinfo(np.int32).max:
        raise UserError(f"{path}: holds the label {extreme:g}, which is too large. Number the labels from 0.")
    if values.dtype.kind in "iu":
        return values.astype(np.int32)
    labels = np.rint(values)
    off = np.abs(values - labels) >= ROUNDING
    if off.any():
        raise UserError(
            f"{path}: a mask holds whole label numbers, this file holds fractions such as {float(values[off][0]):.6g}. "
            "Round it, np.rint(mask).astype(np.uint8), if they come from resampling; else save label indices."
        )
    return labels.astype(np.int32)


def in_8_bits(colours: np.ndarray, path: Path) -> np.ndarray:
    """Return the colours of a mask as ``#rrggbb`` names them: those of 16 bits as the 8 that they were written from.

    Raises :class:`UserError` where 8 bits do not say all of them, since two colours would become one.
    """
    low, high = colours.min(initial=0), colours.max(initial=0)
    if low >= 0 and high <= 255:
        return colours.astype(np.uint8)
    if colours.dtype == np.uint16 and not (colours % 257).any():
        return (colours >> 8).astype(np.uint8)
    raise UserError(
        f"{path}: its colours are of more than 8 bits a channel (values up to {high}), and `labels:` names colours of "
        "8 bits, #rrggbb. Save the mask with 8 bits a channel, or as label numbers."
    )


def names_classes(palette: np.ndarray) -> bool:
    """Tell whether (N, 3) declared colours are those of classes, so that each index is a label in every mask.

    Those of black and white alone are not, nor are large ones: systems have them (VGA 16, the web 216), and a mask in
    black and white that is kept with one of these uses no other colour.
    """
    colours = np.unique(palette, axis=0)
    black_and_white = np.isin(colours, (0, 255)).all() and (colours == colours[:, :1]).all()
    return not black_and_white and len(colours) < _OF_A_SYSTEM


def map_labels(raw: np.ndarray, label_map: Mapping[int, int] | None, *, classes: int, path: Path) -> np.ndarray:
    """Return the class index of every pixel, (H, W) uint8: 0 background, 1..K, ``UNLABELLED`` where the map says so.

    With a map every value but 0 must be in it. Without one 0..K are kept, and for one class 255 counts as 1.
    Raises :class:`UserError` naming the file, the values found, the allowed ones and the remedy.
    """
    if label_map is not None:
        return _mapped(raw, label_map, classes, path)
    found = values_in(raw)
    if raw.ndim == 3:
        raise UserError(f"{_found(path, found)}. {_remedy(classes)}")
    if found.min() >= 0 and found.max() <= classes:
        return raw.astype(np.uint8)
    if classes == 1 and set(found.tolist()) <= {0, 255}:
        return (raw == 255).astype(np.uint8)
    raise UserError(_unmapped_message(raw, found, classes, path))


def _mapped(raw: np.ndarray, label_map: Mapping[int, int], classes: int, path: Path) -> np.ndarray:
    by_colour = any(key >= COLOUR for key in label_map)
    keys = _colour_keys(in_8_bits(raw, path)) if by_colour else raw
    found, inverse = _unique(keys, path)
    background = {COLOUR if by_colour else 0: 0}
    table = {**background, **label_map}
    unknown = [value for value in found.tolist() if value not in table]
    if unknown:
        raise UserError(
            f"{_found(path, found)}, of which {listed(unknown)} are not in the label map "
            f"({listed(list(label_map))}). {_lossy_hint(raw, path)}"
            "Add them to `labels:` in dataset.yaml, or repair the mask."
        )
    wrong = [
        table[value] for value in found.tolist() if not (0 <= table[value] <= classes or table[value] == UNLABELLED)
    ]
    if wrong:
        raise UserError(f"label map: class {wrong[0]} is not one of 0 to {classes} (or {UNLABELLED}, unlabelled).")
    return np.array([table[value] for value in found.tolist()], np.uint8)[inverse].reshape(raw.shape[:2])


def _unique(keys: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    if keys.ndim == 3:
        raise UserError(
            f'{path}: a mask in colours, but the label map names numbers. Use "#rrggbb": class in `labels:`.'
        )
    if not _fits_a_table(keys):
        return np.unique(keys, return_inverse=True)
    found = values_in(keys)
    position = np.zeros(int(found.max()) + 1, np.intp)
    position[found] = np.arange(len(found))
    return found, position[keys]


def _colour_keys(raw: np.ndarray) -> np.ndarray:
    wide = raw.astype(np.int64) if raw.ndim == 3 else np.repeat(raw.astype(np.int64)[..., None], 3, axis=-1)
    return COLOUR | (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _unmapped_message(raw: np.ndarray, found: np.ndarray, classes: int, path: Path) -> str:
    allowed = "0 and 1, or 0 and 255" if classes == 1 else f"0 to {classes}"
    hint = _lossy_hint(raw, path)
    return f"{_found(path, found)}; allowed with {classes} class(es): {allowed}. {hint}{_remedy(classes)}"


def _remedy(classes: int) -> str:
    return (
        f'State them in dataset.yaml, `labels: {{value: class}}` or `labels: {{"#rrggbb": class}}` with classes 0 to '
        f"{classes} ({UNLABELLED} = unlabelled), or correct `classes`."
    )


def _lossy_hint(raw: np.ndarray, path: Path) -> str:
    """Name the usual cause where values smear around black and white: lossy compression or smooth resizing."""
    if raw.ndim == 3 or raw.dtype != np.uint8:
        return ""
    near_ends = np.count_nonzero((raw < 32) | (raw > 223)) / raw.size
    if len(values_in(raw)) < 3 or near_ends < 0.9 or raw.max() < 224:
        return ""
    return (
        f"The values smear around 0 and 255, as after JPEG compression or smooth resizing{_suffix_hint(path)}: "
        "save masks without loss (PNG), thresholded at 128. "
    )


def _suffix_hint(path: Path) -> str:
    return f" (the file is a {path.suffix})" if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else ""


def _found(path: Path, found: np.ndarray) -> str:
    return f"{path}: the mask holds the values {listed(found.tolist())}"


def listed(values: Sequence[int]) -> str:
    """Return the first values of a mask or map for a message, colours as ``#rrggbb``."""
    shown = [f"#{value & 0xFFFFFF:06x}" if value >= COLOUR else str(value) for value in values[:_SHOWN]]
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(shown) + more
