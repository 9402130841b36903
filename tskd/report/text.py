"""Numbers as a reader sees them."""

from __future__ import annotations

from collections.abc import Sequence

INTERVAL = "95\u00a0% interval"
"""Never broken between number and sign."""
NOTHING = "–"
"""Shown where there is no value."""


def number(value: float | None, digits: int = 3) -> str:
    """Return a value with fixed digits."""
    return NOTHING if value is None else _minus(f"{value:.{digits}f}")


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign."""
    return _minus(f"{value:+.{digits}f}")


def interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """Return a 95 % interval in words; there is none for fewer than six cases."""
    return f"{number(bounds[0], digits)} to {number(bounds[1], digits)}" if bounds else "too few cases"


def thousands(value: float | None) -> str:
    """Return a large count with thin spaces."""
    return NOTHING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def teraflops(gigaflops: float | None) -> str:
    """Return billions of floating-point operations as trillions, three digits of them."""
    return NOTHING if gigaflops is None else f"{gigaflops / 1000:.3g}"


def p_value(value: float) -> str:
    """Return a p value as journals print it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def counted(count: int, singular: str, plural: str = "") -> str:
    """Return ``1 case``, ``2 cases``."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def capital(sentence: str) -> str:
    """Return the sentence with its first letter large, the rest untouched."""
    return sentence[:1].upper() + sentence[1:]


def _minus(text: str) -> str:
    """Return a number with a true minus sign, and none where it rounds to zero."""
    return text.replace("-", "−") if float(text) else text.lstrip("+-")
