"""What a site does with its own images. Nothing here sends anything: ``client_app`` does, and only what it may."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from tskd.artifacts import Artifact, Builder, Processes, Store, json_sha256, read_log
from tskd.data.prepared import Prepared
from tskd.engine import Batches, Runtime, Training, fit
from tskd.errors import UserError
from tskd.experiment.run import Run
from tskd.federated.public_run import PublicRun
from tskd.federated.shared import Tensors, digest_of, near, new_teacher, norm_names, put, trained_tensors, without
from tskd.machine.disk import write_atomic
from tskd.models.registry import load_model, save_model
from tskd.recipe.schema import DistillConfig, FederatedConfig, PrivacyConfig, Recipe, TeacherConfig
from tskd.seeding import derive
from tskd.stages import cache
from tskd.stages.label_training import label_step, labelled_batches, training_labels, validation
from tskd.stages.lesson import Lesson, Teacher
from tskd.stages.readings import Readings
from tskd.stages.stored_answers import read_layout, shard_path
from tskd.stages.teacher import FILE, TeacherSource, network
from tskd.types import Batch

SITES, ROUNDS = "sites", "rounds"
"""Folders: of all sites in a simulation's, and of what a site keeps between rounds in its own."""
TEACHER, STUDENT = "teacher", "student"
"""Names of the models that a federation ends with."""
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Task:
    """What a site is asked for in one message."""

    federation: str
    """Names what belongs together: the rounds of one training, whoever asks."""
    round: int
    proximal: float = 0.0
    """Weight of FedProx's term; 0: none."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_-]{1,80}", self.federation) or self.round < 0:
            raise UserError("The server asks for work under a name that cannot be one; nothing was done for it.")


def own_recipe(recipe: Recipe, site: str) -> Recipe:
    """Return the recipe of a site by itself: its data, and as many steps of the teacher as all rounds together."""
    federated = recipe.federated
    assert federated is not None
    steps = {"steps": federated.rounds * federated.local_steps, "patience": None}
    changed = {"data": recipe.site_data(site), "teacher": recipe.teacher.model_copy(update=steps), "federated": None}
    return recipe.model_copy(update=changed)


def answering(recipe: Recipe) -> DistillConfig:
    """Return how a student learns answers that were sent: stored, and without the features, which stay at the sites."""
    return recipe.distill.model_copy(update={"cache": "on", "encoder_weight": 0.0, "encoder_loss": "mse"})


def staying(federated: FederatedConfig, teacher: nn.Module) -> frozenset[str]:
    """Return the names of the trained tensors that never leave a site: with ``fedbn`` those of the norms."""
    return norm_names(teacher) if federated.strategy == "fedbn" else frozenset()


def terms(recipe: Recipe, source: TeacherSource) -> str:
    """Return a digest of what all have to agree on before they may train together: settings, and the base weights.

    Where data lie, how they are read and the machine are each site's own affair.
    """
    federated = recipe.federated
    assert federated is not None
    agreed = {
        "teacher": recipe.teacher.model_dump(mode="json", exclude={"weights", "accumulate", "gradient_checkpointing"}),
        "federated": federated.model_dump(mode="json", exclude={"sites", "transfer", "timeout", "min_sites"}),
        "sites": sorted(federated.sites),
        "distill": recipe.distill.model_dump(mode="json"),
        "seed": recipe.seed,
        "precision": recipe.engine.precision,
        "classes": source.description.classes,
        "base": [network(source), source.digest, source.description.image_size, recipe.data.image_size],
    }
    return json_sha256(agreed)


@dataclass
class Site:
    """One site: a run of its own on its own data, and one on the images that all share, in a folder of its own."""

    name: str
    recipe: Recipe
    """The federated one."""
    folder: Path
    runtime: Runtime
    download: bool = False
    open_store: Callable[[Path, Processes], Builder] = Store
    readings: Readings | None = None

    def __post_init__(self) -> None:
        place = self.folder, self.runtime, self.download, self.open_store, self.readings
        self.own = Run(own_recipe(self.recipe, self.name), *place)
        self.public = PublicRun(self.recipe, *place)

    @property
    def used(self) -> tuple[Artifact, ...]:
        """Every artifact of the site that was asked for so far."""
        return (*self.own.used, *self.public.used)

    @property
    def source(self) -> TeacherSource:
        return self.own.teachers.source

    @property
    def labelled(self) -> int:
        """Labelled images that it trains on: the one count that leaves it."""
        return len(self.own.prepared.rows("train"))

    @property
    def privacy(self) -> PrivacyConfig:
        """What its own recipe says of privacy; no message changes it."""
        assert self.recipe.federated is not None
        return self.recipe.federated.privacy

    @property
    def weight(self) -> int:
        """How much it weighs: its labelled images; where updates are clipped, as much as any other site."""
        return self.labelled if self.privacy.clip is None else 1

    def require_terms(self, asked: str) -> None:
        """Raise UserError where the server works by other settings, or with other base weights."""
        if asked != terms(self.recipe, self.source):
            raise UserError(
                f"site {self.name}: the server works by other settings, classes or base weights than this site. All "
                "need one recipe but for where their data lie, and the same weight file; nothing was sent."
            )

    # --- the teacher's trained tensors go from site to site ---

    @cached_property
    def stays(self) -> frozenset[str]:
        """Names of its trained tensors that never leave."""
        assert self.recipe.federated is not None
        return staying(self.recipe.federated, new_teacher(self.source, self.recipe.seed))

    def learn(self, task: Task, received: Tensors) -> tuple[dict[str, torch.Tensor], Numbers]:
        """Train what was received on the site's labels for a round; return what may leave, and the loss at its end.

        A function of the task and of what was received, bit by bit on a CPU; taken up again where it was interrupted.
        """
        federated, config = self.recipe.federated, self.own.recipe.teacher
        assert federated is not None
        model = self.received_teacher(task, received, after=task.round - 1)
        before = (task.round - 1) * federated.local_steps
        seed = derive(self.recipe.seed, self.name, task.round)
        folder = self._kept(task) / f"{task.round:04d}-{digest_of(received)[:12]}"
        training = Training(
            label=f"{self.name}, round {task.round}",
            module=model,
            step=near(label_step, model, task.proximal) if task.proximal else label_step,
            batches=partial(_later, self._batches(config), before),
            settings=config.model_copy(update={"steps": federated.local_steps, "accumulate": config.accumulate or 1}),
            seed=seed,
            encoder_lr=config.encoder_lr,
            place=(before, config.steps),
        )
        folder.mkdir(exist_ok=True)
        fit(training, folder, self.runtime)
        loss = read_log(folder)[-1]["loss"]
        learned = trained_tensors(model)
        if self.stays:
            write_atomic(self._norms(task, task.round), save({name: learned[name] for name in self.stays}))
        for begun in folder.parent.glob(f"{task.round:04d}-*"):  # another one began from what the server has lost since
            shutil.rmtree(begun)
        return without(learned, self.stays), {"images": self.labelled, "loss": loss}

    def validate(self, task: Task, received: Tensors) -> Numbers:
        """Score what was received on the site's validation part; without one there is no score."""
        score = validation(self._seen)
        if score is None:
            return {"images": self.labelled, "score": float("nan")}
        model = self.received_teacher(task, received, after=task.round).to(self.runtime.fabric.device).eval()
        return {"images": self.labelled, "score": float(score(model)["score"])}

    def own_teacher(self, shared: Artifact, task: Task) -> Artifact:
        """Return the shared teacher with the norms that this site had in the round."""

        def make(folder: Path) -> dict[str, object]:
            tensors = without(only_trained(load_file(shared.path / FILE), self), self.stays)
            model = self.received_teacher(task, tensors, after=task.round)
            save_model(folder, model, self.source.description, file=FILE, more={"title": self.source.title})
            return {"teacher": self.source.title}

        return self.own.bench.build(
            "own_teacher", make, config={"round": task.round},
            inputs={"teacher": shared.digest, "data": self.own.prepared_artifact.digest}, version=1,
        )  # fmt: skip

    def received_teacher(self, task: Task, received: Tensors, *, after: int) -> nn.Module:
        """Return the teacher with what was received, and what stays as the site had it after a round.

        Of a round in which it took no part it has nothing: then as after the last one before.
        """
        model = new_teacher(self.source, self.recipe.seed)
        expected = without(trained_tensors(model), self.stays)
        if received.keys() != expected.keys():
            raise UserError(f"site {self.name}: the server sent tensors of another teacher; nothing was done with it.")
        put(model, received)
        known = [self._norms(task, number) for number in range(after, 0, -1)]
        if kept := next((path for path in known if self.stays and path.is_file()), None):
            put(model, load_file(kept))
        return model

    @property
    def _seen(self) -> Prepared:
        """Its images as the teacher sees them."""
        return Prepared(self.own.teachers.data.path)

    def _batches(self, config: TeacherConfig) -> Batches:
        seen = self._seen
        seed = derive(self.recipe.seed, self.name, "teacher batches")
        return labelled_batches(training_labels(seen), seen.classes, config, seed)

    def _kept(self, task: Task) -> Path:
        folder = self.folder / ROUNDS / task.federation
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _norms(self, task: Task, round_: int) -> Path:
        return self._kept(task) / f"norms-{round_:04d}.safetensors"

    # --- answers on the shared images go instead ---

    def answer(self) -> tuple[np.ndarray, Numbers]:
        """Return the logits of the site's own teacher for every view of the shared images, (images x views, K, S, S)
        float16, and how it scores on the site's validation part."""
        teacher, public = self.own.teachers.adapted, self.public
        lesson = Lesson(
            public.student_description, Teacher(teacher.digest, lambda: load_model(teacher.path)),
            public.transfer, public.prepared_artifact, public.teachers.data,
        )  # fmt: skip
        stored = cache.build(public.bench, answering(self.recipe), lesson)
        assert stored is not None, "its settings say so"
        logits = []
        for shard in range(read_layout(stored.path).shards):
            with safe_open(shard_path(stored.path, shard), framework="np") as file:
                logits.append(file.get_tensor("logits"))
        joined = np.concatenate(logits)
        score = teacher.metrics.get("val_dice", float("nan"))
        return joined.reshape(-1, *joined.shape[2:]), {"images": self.labelled, "score": float(score)}


def only_trained(tensors: Tensors, site: Site) -> dict[str, torch.Tensor]:
    """Return those of a saved teacher's tensors that training changes."""
    names = trained_tensors(new_teacher(site.source, site.recipe.seed))
    return {name: tensor for name, tensor in tensors.items() if name in names}


def _later(batches: Batches, before: int, step: int, part: int, parts: int) -> Batch:
    """Return a batch of a training that goes on after so many steps."""
    return batches(before + step, part, parts)
