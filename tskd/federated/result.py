"""What a site has in the end: the models that the server hands over, scored on the site's own test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tskd.artifacts import Artifact
from tskd.console import say
from tskd.deploy.bundle import FOLDER
from tskd.errors import UserError
from tskd.experiment.methods import METHODS
from tskd.federated.bundle import ship
from tskd.federated.shared import Tensors, digest_of, put, trained_tensors, without
from tskd.federated.site import STUDENT, TEACHER, Site, Task
from tskd.machine.disk import write_json
from tskd.models.registry import STUDENT_FILE, build_model, save_model
from tskd.stages.teacher import FILE

SCORES = "scores.json"
"""Name of a model -> its scores on the site's test images; of these only means and totals are told."""


def parcel(teacher: Tensors, student: Tensors) -> dict[str, torch.Tensor]:
    """Return the tensors of both under one roof, as they are sent."""
    return {
        f"{kind}/{name}": one for kind, many in ((TEACHER, teacher), (STUDENT, student)) for name, one in many.items()
    }


def keep_result(site: Site, task: Task, received: Tensors) -> dict[str, Mapping[str, Any]]:
    """Keep the models, score them on the site's test images, write the student's bundle and ``scores.json``; return
    the scores.

    Raises UserError for tensors that do not belong to the networks of the recipe.
    """
    assert site.recipe.federated is not None
    models = received_models(site, task, received)
    titles = {TEACHER: METHODS["teacher"].title, STUDENT: METHODS["task_kd"].title}
    scores: dict[str, Mapping[str, Any]] = {
        name: site.own.evaluation(model, titles[name]).metrics for name, model in models.items()
    }
    for name, one in scores.items():
        dice = one["dice"]
        say(
            f"{site.name}: {titles[name]}: Dice {'-' if dice is None else f'{dice:.3f}'} on {one['n_cases']} test cases"
        )
    write_json(site.folder / SCORES, scores)
    if STUDENT in models:
        strategy = site.recipe.federated.strategy
        place = ship(site.own, models[STUDENT], scores, site.folder / FOLDER, strategy=strategy)
        say(f"{site.name}: the model to use is in {place}")
    return scores


def received_models(site: Site, task: Task, received: Tensors) -> dict[str, Artifact]:
    """Return the site's models by name: those that were sent, and what it makes of them by itself.

    With ``fedbn`` the teacher has the site's own norms, and the student has learned from that one, at the site.
    """
    assert site.recipe.federated is not None
    sent = {kind: _part(received, kind) for kind in (TEACHER, STUDENT)}
    if len(sent[TEACHER]) + len(sent[STUDENT]) != len(received):
        raise UserError("The server sent tensors that belong to no network of the recipe; nothing was kept.")
    models: dict[str, Artifact] = {}
    if sent[TEACHER]:
        models[TEACHER] = _teacher(site, task, sent[TEACHER])
    if sent[STUDENT]:
        models[STUDENT] = _student(site, sent[STUDENT])
    elif site.recipe.method != TEACHER:
        models[STUDENT] = site.public.initialisations.distilled_by(models[TEACHER])
    return models


def _part(received: Tensors, kind: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(f"{kind}/"): one for name, one in received.items() if name.startswith(f"{kind}/")}


def _teacher(site: Site, task: Task, tensors: Tensors) -> Artifact:
    def make(folder: Path) -> dict[str, Any]:
        model = site.received_teacher(task, tensors, after=task.round)
        save_model(folder, model, site.source.description, file=FILE, more={"title": site.source.title})
        return {"teacher": site.source.title}

    norms = {"federation": task.federation, "round": task.round}  # say which of its own norms it has, if any
    return _received(site, "received_teacher", tensors, make, norms)


def _student(site: Site, tensors: Tensors) -> Artifact:
    description = site.public.student_description

    def make(folder: Path) -> dict[str, Any]:
        model = build_model(description.bare())
        if tensors.keys() != sent_of(model).keys():
            raise UserError("The server sent tensors of another student; nothing was kept.")
        put(model, tensors)
        save_model(folder, model, description, file=STUDENT_FILE)
        return {}

    return _received(site, "received_student", tensors, make, {})


def _received(
    site: Site, stage: str, tensors: Tensors, make: Callable[[Path], dict[str, Any]], config: Mapping[str, Any]
) -> Artifact:
    inputs = {"tensors": digest_of(tensors), "teacher": site.source.digest}
    return site.own.bench.build(stage, make, config=dict(config), inputs=inputs, version=1)


def sent_of(student: nn.Module) -> dict[str, torch.Tensor]:
    """Return all tensors of a student that a file of it holds, those that share memory under their first name only."""
    held = student.state_dict()
    first = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    return {name: tensor.detach() for name, tensor in first.items() if name in held}


def sent_of_teacher(model: nn.Module, stays: frozenset[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapted teacher that travel."""
    return without(trained_tensors(model), stays)
