"""How long parts will take: as long as their like took in this folder, or else by the images they look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from tskd.artifacts import Artifact, canonical_json, finished_in
from tskd.comparison.plan import Part
from tskd.console import duration

SECONDS_AN_IMAGE = 0.025
"""Guess for one image of 64 px in one training step of a small network; it grows with the area. From the demo on two
cores (LOG.md); a large teacher takes far longer, a GPU far less."""
SECONDS_WITHOUT_STEPS = 10.0
"""Guess for a part that does not train."""
Basis = Literal["measured", "scaled", "guessed"]
_SAID: dict[Basis, str] = {
    "measured": "as long as the same settings took here",
    "scaled": "as long as the same stage took here, by its steps",
    "guessed": "a guess from steps and image size",
}


@dataclass(frozen=True)
class _Made:
    settings: str
    work: float
    seconds: float


class Estimator:
    """Knows what the artifacts of one folder took."""

    def __init__(self, root: Path) -> None:
        self._made: dict[str, list[_Made]] = defaultdict(list)
        for artifact in finished_in(root):
            self._remember(artifact)

    def _remember(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        seconds = sum(cost["seconds"] for cost in artifact.costs.values())
        config = manifest["config"]
        self._made[manifest["stage"]].append(_Made(canonical_json(config), work(config), seconds))

    def seconds(self, part: Part) -> tuple[float, Basis]:
        """Return the seconds a part will take and what this rests on."""
        made = self._made[part.stage]
        settings, amount = canonical_json(part.config), work(part.config)
        if same := [one.seconds for one in made if one.settings == settings]:
            return median(same), "measured"
        if made:
            return amount * median(one.seconds / one.work for one in made), "scaled"
        if amount == 1:
            return SECONDS_WITHOUT_STEPS, "guessed"
        return amount * SECONDS_AN_IMAGE * (part.image_size / 64) ** 2, "guessed"

    def total(self, parts: Iterable[Part]) -> float:
        """Return the seconds of all parts, one after the other."""
        return sum(self.seconds(part)[0] for part in parts)

    def explain(self, parts: Iterable[Part], *, workers: int | None) -> str:
        """Return the estimate as a sentence that says what it rests on; ``workers`` None: nobody knows yet how many."""
        listed = list(parts)
        if not listed:
            return "nothing is left to be made"
        bases = Counter(self.seconds(part)[1] for part in listed)
        how = "; ".join(f"{bases[basis]} {said}" for basis, said in _SAID.items() if bases[basis])
        time = duration(self.total(listed) / (workers or 1))
        at_once = f"with {workers} at a time" if workers else "one after the other, less with several at a time,"
        return f"about {time} {at_once} for {len(listed)} parts ({how})"


def work(config: Mapping[str, Any]) -> float:
    """Return the images that a part's settings ask for; 1 where they do not say."""
    if "steps" in config:
        return float(config["steps"] * config.get("batch_size", 1))
    if "sampling_steps" in config:
        return float(config["count"] * config["sampling_steps"])
    return 1.0
