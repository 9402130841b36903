"""What a grid will take: the parts of every run, told without training, which of them are there, and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tskd.artifacts import ARTIFACTS, Artifact, Make, Store, artifact_path, canonical_json, finished, identify
from tskd.comparison.grid import GridRun
from tskd.comparison.job import DATA_STAGES
from tskd.console import progress, say
from tskd.engine import Runtime, open_runtime
from tskd.errors import UserError
from tskd.experiment.methods import METHODS
from tskd.experiment.preflight import check_networks, remarks_on_weights
from tskd.experiment.run import Run
from tskd.federated.opening import make_run
from tskd.recipe.schema import EngineConfig
from tskd.stages.readings import Readings

AT_TEACHERS_SIZE = frozenset({"teacher", "teacher_images", "cache", "pseudo_masks"})
"""Stages that show images to the teacher, whose size may be another: SAM's is 512 px unless the settings say so."""
_LOOKED_UP: Mapping[str, Any] = {
    "data": True, "teacher": True, "evaluate": True, "federated": True, "transfer": {"target", "from_target"},
}  # fmt: skip
"""Settings that what a run looks up follows from."""


@dataclass(frozen=True)
class Part:
    """An artifact that a run needs."""

    name: str
    stage: str
    config: Mapping[str, Any]
    image_size: int
    """Side of the images that it sees: the run's, unless its settings name another."""
    data: str = ""
    """Digest of the prepared data that it looks at; empty: of none."""


@dataclass(frozen=True)
class RunPlan:
    """A run and what is still to be made for it."""

    run: GridRun
    missing: tuple[Part, ...]
    found: tuple[str, ...]
    """Its artifacts that are there."""
    images: str
    """Digest of the images and masks it would be trained and tested on, as they lie in their folder now."""
    read_beside: Mapping[str, str] = field(default_factory=dict)
    """What else it would read, by the settings that say where it lies -> its digest now, as far as it is known."""
    complete: bool = True
    """False: something can be named only when a missing part is there."""


@dataclass(frozen=True)
class PlannedArtifact(Artifact):
    """Stands for a folder that is not there yet; its name takes the place of its digest."""

    @property
    def digest(self) -> str:
        """What it will be made from says which it will be."""
        return f"planned {self.path.name}"


@dataclass
class PlanStore:
    """Answers requests for artifacts without making any, the data's aside, and notes which are missing."""

    root: Path
    used: dict[str, Artifact] = field(default_factory=dict)
    missing: dict[str, tuple[str, Mapping[str, Any], str]] = field(default_factory=dict)
    """Name -> stage, its settings, and the digest of the data that it looks at."""

    def at(self, root: Path) -> PlanStore:
        """Return the same plan for another folder: a site of a federation has its own."""
        return self if root == self.root else PlanStore(root, self.used, self.missing)

    def build(
        self,
        stage: str,
        make: Make,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        seed: int,
        version: int,
        together: bool = False,
    ) -> Artifact:
        """Return the artifact if it is there, or what stands for it: two runs that will share it get the same name."""
        request: dict[str, Any] = {"config": config, "inputs": inputs, "seed": seed, "version": version}
        if stage in DATA_STAGES:  # what follows is named after their content, and a budget is checked against it
            artifact = Store(self.root).build(stage, make, **request)
        else:
            artifact = Artifact(artifact_path(self.root, identify(stage, **request)))
            if not finished(artifact.path):
                artifact = PlannedArtifact(artifact.path)
                self.missing[artifact.path.name] = (stage, config, inputs.get("data", ""))
        self.used[artifact.path.name] = artifact
        return artifact


def plan_runs(runs: Sequence[GridRun], out: Path, *, download: bool = False) -> list[RunPlan]:
    """Return what every run needs; data sets are read and prepared for it, nothing else is done.

    Raises UserError that names everything that data sets, budgets, weights or networks do not allow.
    """
    planner = _Planner(out, open_runtime(EngineConfig(accelerator="cpu")), download)
    plans: list[RunPlan] = []
    problems: Counter[str] = Counter()
    with progress("compare: looking what is there", len(runs)) as advance:
        for done, run in enumerate(runs, start=1):
            try:
                plans.append(planner.plan(run))
            except UserError as error:
                problems[str(error)] += 1
            advance(done)
    if problems:
        raise UserError("\n".join(f"{problem} ({count} of {len(runs)} runs)" for problem, count in problems.items()))
    for remark in dict.fromkeys(remark for run in runs for remark in remarks_on_weights(run.recipe)):
        say(remark)
    return plans


@dataclass
class _Planner:
    out: Path
    runtime: Runtime
    download: bool
    shared: dict[str, tuple[dict[str, Any], dict[str, Artifact]]] = field(default_factory=dict)
    """What is costly to look up and the same for many runs (data sets, teacher's weights), by the settings; and the
    artifacts that it led to."""
    readings: Readings = field(default_factory=Readings)
    """Label budgets, and whatever else changes no pixel, share them."""

    def plan(self, grid_run: GridRun) -> RunPlan:
        check_networks(grid_run.recipe)
        store = PlanStore(self.out / ARTIFACTS)
        key = canonical_json(grid_run.recipe.model_dump(include=dict(_LOOKED_UP)))
        lookups, used = self.shared.setdefault(key, ({}, {}))
        run = make_run(
            grid_run.recipe, self.out, self.runtime, self.download,
            open_store=lambda root, _: store.at(root), readings=self.readings, lookups=lookups,
        )  # fmt: skip
        store.used |= used
        complete = True
        try:
            method = METHODS[run.recipe.method]
            model = method.model(run)
            run.evaluation(model, method.title)
            run.ablation(model)
        except FileNotFoundError:  # it has to read what is not there yet
            complete = False
        used |= {name: one for name, one in store.used.items() if name.rpartition("-")[0] in DATA_STAGES}
        missing = tuple(
            Part(name, stage, config, config.get("image_size") or _image_size(run, stage), data)
            for name, (stage, config, data) in store.missing.items()
        )
        found = tuple(name for name in store.used if name not in store.missing)
        return RunPlan(grid_run, missing, found, run.source_digest, run.read_beside, complete)


def _image_size(run: Run, stage: str) -> int:
    """Return the side in px of the images that a stage of a run looks at."""
    if stage in AT_TEACHERS_SIZE and "sources" in run.lookups:
        return run.teachers.source.description.image_size
    return run.recipe.data.image_size


def all_missing(plans: Iterable[RunPlan]) -> dict[str, Part]:
    """Return every part that has to be made, once, by its name."""
    return {part.name: part for plan in plans for part in plan.missing}
