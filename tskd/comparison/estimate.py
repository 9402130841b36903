"""How long parts will take: as long as their like took in this folder, or else by the images they look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from tskd.artifacts import Artifact, canonical_json, finished_in
from tskd.comparison.plan import AT_TEACHERS_SIZE, Part
from tskd.console import duration
from tskd.data.prepared import Prepared
from tskd.data.tiles import count_looks

SECONDS_AN_IMAGE = 0.025
"""Guess for one image of 64 px in one training step of a small network; it grows with the area. From the demo on two
cores (LOG.md); a large teacher takes far longer, a GPU far less."""
SECONDS_WITHOUT_STEPS = 10.0
"""Guess for a part that does not train."""
PREPARED = "prepare"
LOOK_AT_THE_TEST = frozenset({"evaluate", "ablation"})
"""Stages whose time goes by the test images, and by the tiles that those are cut into."""
Basis = Literal["measured", "scaled", "guessed"]
_SAID: dict[Basis, str] = {
    "measured": "as long as the same settings took here",
    "scaled": "as long as the same stage took here, by its images",
    "guessed": "a guess from steps and image size",
}


@dataclass(frozen=True)
class _Made:
    settings: str
    work: float
    seconds: float


@dataclass(frozen=True)
class _Data:
    """What a data set asks of the parts that look at it."""

    side: int = 64
    """Of its images as networks see them, in px."""
    looks: int = 1
    """At its test images; each tile of one that is cut is one."""

    @classmethod
    def of(cls, folder: Path) -> _Data:
        """Read it from a prepared data set; one that is damaged tells nothing."""
        try:
            prepared = Prepared(folder)
            tested = [prepared.records[row] for row in prepared.rows("test")]
            looks = sum(count_looks((one.height, one.width), prepared.tile) for one in tested)
            return cls(prepared.image_size, max(looks, 1))
        except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError):
            return cls()


class Estimator:
    """Knows what the artifacts of one folder took."""

    def __init__(self, root: Path) -> None:
        self._made: dict[str, list[_Made]] = defaultdict(list)
        artifacts = finished_in(root)
        self._prepared = {one.digest: one.path for one in artifacts if one.manifest["stage"] == PREPARED}
        self._data: dict[str, _Data] = {}
        for artifact in artifacts:
            self._remember(artifact)

    def _remember(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        seconds = sum(cost["seconds"] for cost in artifact.costs.values())
        stage, config, inputs = manifest["stage"], manifest["config"], manifest.get("inputs", {})
        done = self._work(stage, config, inputs.get("data", ""))
        self._made[stage].append(_Made(canonical_json(config), done, seconds))

    def _work(self, stage: str, config: Mapping[str, Any], data: str) -> float:
        """Return the images of 64 px that a part looks at, or what stands for it; 1 where nothing tells."""
        if data not in self._data:
            self._data[data] = _Data.of(self._prepared[data]) if data in self._prepared else _Data()
        seen = self._data[data]
        asked = images_asked(config)
        if asked is None:
            return float(seen.looks) if stage in LOOK_AT_THE_TEST else 1.0
        if stage in AT_TEACHERS_SIZE:  # whose size the data do not tell
            return asked * ((config.get("image_size") or 64) / 64) ** 2
        return asked * ((config.get("image_size") or seen.side) / 64) ** 2

    def seconds(self, part: Part) -> tuple[float, Basis]:
        """Return the seconds a part will take and what this rests on."""
        made = self._made[part.stage]
        settings, amount = canonical_json(part.config), self._work(part.stage, part.config, part.data)
        if same := [one.seconds for one in made if one.settings == settings and one.work == amount]:
            return median(same), "measured"
        if made:
            return amount * median(one.seconds / one.work for one in made), "scaled"
        if (asked := images_asked(part.config)) is None:
            return SECONDS_WITHOUT_STEPS, "guessed"
        return asked * SECONDS_AN_IMAGE * (part.image_size / 64) ** 2, "guessed"

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


def images_asked(config: Mapping[str, Any]) -> float | None:
    """Return the images that a part's settings ask for; None where they do not say."""
    if "steps" in config:
        return float(config["steps"] * config.get("batch_size", 1))
    if "sampling_steps" in config:
        return float(config["count"] * config["sampling_steps"])
    return None
