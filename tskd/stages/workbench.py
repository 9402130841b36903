"""What every stage is made with: the store, the seed, the machine, and the precision that results depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tskd.artifacts import Artifact, Builder, Make
from tskd.engine import Runtime
from tskd.recipe.schema import NAMING, PrecisionName, TrainConfig


@dataclass(frozen=True)
class Workbench:
    """Where and how the artifacts of a run are made. Each stage's ``build`` takes it first, then its settings."""

    store: Builder
    seed: int
    runtime: Runtime
    precision: PrecisionName = "32-true"
    """The recipe's; a plan is made on a machine of another."""

    @property
    def root(self) -> Path:
        """The folder that the artifacts lie in."""
        return self.store.root

    @property
    def used(self) -> Mapping[str, Artifact]:
        """Every artifact that was asked for, by folder name."""
        return self.store.used

    def build(
        self,
        stage: str,
        make: Make,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        version: int,
        seed: int | None = None,
        together: bool = False,
    ) -> Artifact:
        """Return the artifact of a stage, with the run's seed where the stage has none of its own."""
        seed = self.seed if seed is None else seed
        return self.store.build(
            stage, make, config=config, inputs=inputs, seed=seed, version=version, together=together
        )

    def train(
        self,
        stage: str,
        make: Make,
        config: TrainConfig,
        *,
        inputs: Mapping[str, str],
        version: int,
        seed: int | None = None,
        without: frozenset[str] = frozenset(),
    ) -> Artifact:
        """Return the artifact of a training, in which all processes take part.

        It depends on all of its settings but those named in ``without``, and on the precision.
        """
        settings = {**config.model_dump(exclude=set(without), context=NAMING), "precision": self.precision}
        return self.build(stage, make, config=settings, inputs=inputs, version=version, seed=seed, together=True)
