"""A finished run as its folder holds it, checked before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tskd.artifacts import ARTIFACTS, MANIFEST, Artifact, find_by_digest, find_damage, manifest_damage
from tskd.data.prepared import Prepared
from tskd.metrics.comparison import DICE, PairTest, compare_methods
from tskd.metrics.segmentation import case_means
from tskd.report.pictures import Predictions
from tskd.report.styles import Look, look_of, ordered
from tskd.run_file import RunFile, damaged_run, read_run
from tskd.stages.evaluation_files import OVERLAYS, read_summary

STUDENT, BEFORE_FINETUNE = "student", "student_before_finetune"
"""Names in run.json of the model that is shipped, and of the same network before it saw labels."""
U_NETS = frozenset({"control", "control_pseudo", "unet", "unet_imagenet"})
"""Methods that end with a U-Net, not with the student."""

_SHOWN = ("prepare", "transfer", "diffusion", "doubt")
"""Stages whose files are on the page; besides, those of models and scores are verified, since their figures are."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a finished run."""

    path: Path
    summary: RunFile
    """What ``run.json`` holds."""

    @property
    def models(self) -> list[str]:
        """The names of all models in the order of tables."""
        return ordered(list(self.metrics))

    def title(self, model: str) -> str:
        """Return what tables call a model: the one that is shipped is the student whatever the method, or the U-Net."""
        if model != STUDENT:
            return str(self.metrics[model]["model"])
        return "U-Net" if self.summary.method in U_NETS else STUDENT

    def look(self, model: str) -> Look:
        """Return how charts draw a model."""
        return look_of(model, self.title(model))

    @property
    def level(self) -> str:
        """What means are over: ``volume``, or ``image``, as in runs from before volumes were scored."""
        return str(self.metrics[self.main].get("level", "image"))

    @property
    def unit(self) -> str:
        """Unit of the distances, ``mm`` or ``px``."""
        return "mm" if "hd95_mm" in self.metrics[self.main] else "px"

    @cached_property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """The scores of every model by name, as its evaluation wrote them, and what its training has cost."""
        kept = {name: read_summary(self.path / ARTIFACTS / one) for name, one in self.summary.evaluations.items()}
        return {name: {**told, **kept.get(name, {})} for name, told in self.summary.metrics.items()}

    @cached_property
    def tests(self) -> tuple[PairTest, ...]:
        """The test of every other model against the student on the same cases: differences are model - student."""
        scores = {
            name: np.array([list(case_means(one.scores, "dice").values())]) for name, one in self.predictions.items()
        }
        if len(scores) < 2 or self.metrics[STUDENT]["dice"] is None:
            return ()
        return compare_methods(scores, DICE, seed=0, baseline=STUDENT)

    @cached_property
    def stages(self) -> dict[str, Artifact]:
        """Every artifact of the run that is still there by folder name, in the order they were made."""
        found = (Artifact(self.path / ARTIFACTS / name) for name in self.summary.stages)
        return {artifact.path.name: artifact for artifact in found if (artifact.path / MANIFEST).is_file()}

    def made_by(self, stage: str) -> list[Artifact]:
        """Return the artifacts of a stage in the order they were made; none where the run did without it."""
        return [artifact for artifact in self.stages.values() if artifact.manifest["stage"] == stage]

    def models_from(self, artifact: Artifact) -> list[str]:
        """Return the final models that an artifact is or was a part of, or the model whose scores it holds."""
        scored = [name for name, folder in self.summary.evaluations.items() if folder == artifact.path.name]
        models = [name for name, folder in self.summary.artifacts.items() if folder == artifact.path.name]
        if found := scored or [name for name in models if name != BEFORE_FINETUNE]:
            return ordered(found)
        users = (one for one in self.stages.values() if artifact.digest in one.manifest["inputs"].values())
        return ordered({name: None for user in users for name in self.models_from(user) if name != BEFORE_FINETUNE})

    def path_of(self, name: str) -> Path | None:
        """Return the folder of an artifact of the run; None where there is none of that name."""
        return self.stages[name].path if name in self.stages else None

    def evaluation(self, model: str) -> Artifact:
        return self.stages[self.summary.evaluations[model]]

    @property
    def main(self) -> str:
        """Name of the model that the run ends with: a federated one may do without a student."""
        return STUDENT if STUDENT in self.summary.metrics else next(iter(self.summary.metrics))

    @property
    def student(self) -> Artifact:
        return self.stages[self.summary.artifacts[STUDENT]]

    @cached_property
    def prepared(self) -> Prepared:
        """The data that was trained on."""
        return Prepared(self._data_of(self.student).path)

    @cached_property
    def tested(self) -> Prepared:
        """The data whose test images were scored; another data set where the recipe names one."""
        return Prepared(self._data_of(self.evaluation(STUDENT)).path)

    @cached_property
    def predictions(self) -> dict[str, Predictions]:
        """The kept predictions and scores of every model."""
        return {
            name: Predictions(name, self.title(name), self.evaluation(name).path, self.tested) for name in self.models
        }

    def overlays(self, model: str) -> list[Path]:
        """Return the pictures of a model's test images, worst first; of a federation those that lie at its sites."""
        evaluation, sites = self.evaluation(model), self.summary.federated.get("sites", {}).get(model, {})
        own = {name: self.path / "sites" / name / ARTIFACTS for name in sites}
        digests = evaluation.manifest["inputs"]
        found = [find_by_digest(root, "evaluate", digests.get(f"site {n}", "")) for n, root in own.items()]
        return [path for one in found or [evaluation] if one for path in sorted((one.path / OVERLAYS).glob("*.png"))]

    @property
    def data_digests(self) -> set[str]:
        """Digests of the data that it was trained on and scored on."""
        return {self.stages[name].manifest["inputs"]["data"] for name in self.summary.evaluations.values()} | {
            self.student.manifest["inputs"]["data"]
        }

    def _data_of(self, artifact: Artifact) -> Artifact:
        wanted = artifact.manifest["inputs"]["data"]
        return next(made for made in self.made_by("prepare") if made.digest == wanted)


def open_run(path: Path) -> RunFolder:
    """Return the run in a folder. Raises UserError where there is none, or its files are missing or changed."""
    run = RunFolder(path, read_run(path))
    evaluations = set(run.summary.evaluations.values())
    models = {*run.summary.artifacts.values()}
    if run.summary.federated:  # that of all images in one place does not lie at the server
        models &= run.stages.keys()
    for name in sorted(evaluations | models):
        if name not in run.stages:
            raise damaged_run(path, f"artifacts/{name} is gone")
    for artifact in run.stages.values():  # before any manifest is read
        _refuse_damage(path, artifact, manifest_damage(artifact))
    if not run.summary.federated and not run.data_digests <= {one.digest for one in run.made_by("prepare")}:
        raise damaged_run(path, "the prepared data are gone")
    scored = (run.stages[name] for name in sorted(models | evaluations))
    for artifact in (*scored, *(one for stage in _SHOWN for one in run.made_by(stage))):
        _refuse_damage(path, artifact, next(find_damage(artifact), None))
    return run


def _refuse_damage(path: Path, artifact: Artifact, damage: str | None) -> None:
    if damage:
        raise damaged_run(path, f"artifacts/{artifact.path.name} is damaged ({damage})")
