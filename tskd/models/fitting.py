"""Whether tensors belong to a network: by name and shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor


class Misfit(NamedTuple):
    """What keeps tensors from filling a network."""

    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def fills(self) -> bool:
        """Every tensor of the network is there; there may be more."""
        return not self.missing and not self.misshapen

    def __str__(self) -> str:
        faults = {"missing": self.missing, "of another shape": self.misshapen, "unexpected": self.unexpected}
        return "; ".join(f"{len(names)} {fault} ({some(names)})" for fault, names in faults.items() if names)


def compare_tensors(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Misfit:
    """Return what of ``expected`` is not in ``state`` or of another shape there, and what is there beside it."""
    both = expected.keys() & state.keys()
    return Misfit(
        missing=tuple(sorted(expected.keys() - state.keys())),
        misshapen=tuple(sorted(name for name in both if expected[name].shape != state[name].shape)),
        unexpected=tuple(sorted(state.keys() - expected.keys())),
    )


def some(names: Iterable[str]) -> str:
    """Return the first few names."""
    listed = sorted(names)
    return ", ".join(listed[:4]) + (", …" if len(listed) > 4 else "")
