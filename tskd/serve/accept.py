"""Which form of an answer a client wants most: the header ``Accept`` (RFC 9110, 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence


def preferred(accept: str, offered: Sequence[str]) -> str | None:
    """Return the media type that a client ranks highest, of equal ones the first offered; None where it takes none."""
    wanted = [_ranked(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    best = max(offered, key=lambda one: (_quality(one, wanted), -list(offered).index(one)))
    return best if _quality(best, wanted) > 0 else None


def _quality(media_type: str, wanted: Sequence[tuple[str, float]]) -> float:
    """Return the weight of the most specific range that a type falls in."""
    for one in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        found = [quality for name, quality in wanted if name == one]
        if found:
            return max(found)
    return 0.0


def _ranked(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip() for piece in part.lower().split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, min(max(float(value), 0.0), 1.0)
            except ValueError:
                return name, 0.0
    return name, 1.0
