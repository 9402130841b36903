"""What a network is, in values that its file can hold: the registry builds it from them, ``model.json`` keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tskd.artifacts import canonical_json

DESCRIPTION = "model.json"
AdaptationName = Literal["lora", "probe", "full"]
_BRING_THEIR_OWN_WEIGHTS = ("sam",)
"""Kinds whose builder reads the weight file that their arguments name: their file says nothing of ``weights``."""


@dataclass(frozen=True)
class Adaptation:
    """How a teacher is adapted, as :func:`tskd.models.lora.set_adaptation` takes it."""

    name: AdaptationName
    rank: int
    alpha: float | None = None


@dataclass(frozen=True)
class NetworkDescription:
    """All that it takes to build a network of the registry."""

    kind: str
    """A name of :data:`tskd.models.registry.MODELS`."""
    arguments: Mapping[str, Any]
    """Of the kind's builder; plain JSON."""
    classes: tuple[str, ...]
    """Names of the foreground classes."""
    image_size: int
    """Side in px of the square images that it is trained on."""
    weights: str | None = None
    """Where the encoder starts: a weight file, ``offline``, or None: random numbers."""
    adaptation: Adaptation | None = None
    """Of a teacher; None: all weights train."""

    def __hash__(self) -> int:
        return hash(self.as_text())

    def bare(self) -> NetworkDescription:
        """Return the same network with random weights."""
        return replace(self, weights=None)

    def architecture(self) -> str:
        """Return as one text what networks have in common that differ in their weights alone."""
        return canonical_json({name: value for name, value in self.as_dict().items() if name != "weights"})

    def as_text(self) -> str:
        """Return the one JSON text of the description, which digests are made from."""
        return canonical_json(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Return what ``model.json`` holds, in its order."""
        weights = {} if self.kind in _BRING_THEIR_OWN_WEIGHTS else {"weights": self.weights}
        adaptation = {} if self.adaptation is None else {"adaptation": asdict(self.adaptation)}
        return {
            "kind": self.kind, "arguments": dict(self.arguments), **weights, "classes": list(self.classes),
            "image_size": self.image_size, **adaptation,
        }  # fmt: skip

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> NetworkDescription:
        """Return the description that ``model.json`` holds; what else the file says is left out."""
        adaptation = values.get("adaptation")
        return cls(
            kind=values["kind"],
            arguments=values["arguments"],
            classes=tuple(values["classes"]),
            image_size=values["image_size"],
            weights=values.get("weights"),
            adaptation=None if adaptation is None else Adaptation(**adaptation),
        )


def read_description(folder: Path) -> tuple[NetworkDescription, str | None]:
    """Return the description of a saved network, and the name of the file of its tensors; None: its members' folders
    hold them."""
    values = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    return NetworkDescription.of(values), values["file"]
