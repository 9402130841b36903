"""What a bundle's ``model.json`` holds: the export writes it, the model card tells it in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class InputRule:
    """How an image is read before the network sees it."""

    window: tuple[float, float] | None
    """Intensities that become black and white; None: each format's own rule."""
    axis: int
    """Canonical axis along which volumes are sliced."""
    intensities: Sequence[str]
    """What was done about intensities that are not 8 bit, in words."""

    def as_dict(self) -> dict[str, Any]:
        """Return what ``model.json`` holds, in its order."""
        shape = {"shape": ["height", "width", 3], "dtype": "uint8", "colour": "RGB, grey repeated"}
        return {**shape, "window": self.window, "axis": self.axis, "intensities": list(self.intensities)}


@dataclass(frozen=True)
class BundleDescription:
    """A shipped network: what it is, what it was trained on, how it scores, and how its export was checked."""

    kind: str
    classes: tuple[str, ...]
    image_size: int
    arguments: Mapping[str, Any]
    method: str
    input: InputRule
    dataset: str
    training_data_sha256: str
    images: Mapping[str, int]
    """Part of the data (train, val, unlabelled, test) -> its images."""
    cases: Mapping[str, int]
    scores: Mapping[str, Mapping[str, Any]]
    """Name of a model in run.json -> its scores."""
    versions: Mapping[str, str]
    export: Mapping[str, Any]
    """Parity with the network, parameters, latency, and the verdict on int8."""
    doubt: Mapping[str, Any]
    """The rule of doubt, and what it was worth on the test images."""
    codes: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """Class -> ``category`` and ``type``, each (code, scheme, meaning), where the data set states them."""
    tile: int | None = None
    """Side in px of the tiles of larger images that it was trained on, and answers them in."""

    def as_dict(self) -> dict[str, Any]:
        """Return what ``model.json`` holds, in its order.

        The place of the first weights is a path on the machine of the training and is not told.
        """
        values = asdict(self)
        if not self.codes:  # bundles of data sets without codes stay as they were
            del values["codes"]
        if self.tile is None:
            del values["tile"]
        network = {name: values.pop(name) for name in ("kind", "classes", "image_size", "arguments")}
        outputs = {
            "classes": {"shape": ["height", "width"], "dtype": "uint8"},
            "probabilities": {"shape": [len(self.classes) + 1, "height", "width"], "dtype": "float32"},
            "confidence": {"shape": [], "dtype": "float32"},
            **({"unfamiliarity": {"shape": [], "dtype": "float32"}} if self.doubt["familiar_images"] else {}),
        }
        shown = {"method": values.pop("method"), "input": self.input.as_dict(), "outputs": outputs}
        return {**network, "weights": None, **shown, **{name: values[name] for name in values if name != "input"}}
