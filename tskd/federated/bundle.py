"""The model to use, of a federation: each site's bundle by its own images, or in a simulation one by those of all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tskd.artifacts import Artifact
from tskd.deploy.bundle import FOLDER, publish, require_ours
from tskd.errors import UserError
from tskd.experiment.methods import METHODS
from tskd.experiment.run import Run
from tskd.federated.opening import open_federated
from tskd.federated.run import FederatedRun
from tskd.federated.site import SITES, STUDENT, TEACHER
from tskd.recipe.schema import ExportConfig, build_recipe
from tskd.run_file import folder_of_run, read_run
from tskd.stages import doubt, export

Scores = Mapping[str, Mapping[str, Any]]


def ship(run: Run, student: Artifact, scores: Scores, place: Path, *, strategy: str, int8: bool | None = None) -> Path:
    """Write a student's bundle to a folder and return it: doubts and proof are by the images of the run."""
    prepared, tested = run.prepared_artifact, run.tested_artifact
    doubted = doubt.build(run.bench, prepared, tested, student)
    config: ExportConfig = run.recipe.export
    if int8 is not None:
        config = config.model_copy(update={"int8": int8})
    method, axis = f"federated_{strategy}", run.recipe.data.axis
    bundle = export.build(run.bench, config, student, tested, doubted, scores, method=method, axis=axis)
    publish(bundle.path, place)
    return place


def export_simulation(model: Path, site: str | None = None, *, int8: bool | None = None) -> Path:
    """Write the bundle of a finished simulation, or of one of its sites, as that site would have it; return its folder.

    ``int8`` as in :func:`tskd.stages.export.export_again`. Raises UserError where there is no such model, and where
    the folder is that of a server, which has no labelled image to prove a bundle by.
    """
    out = folder_of_run(model)
    found = read_run(out)
    if not found.federated:
        raise UserError(f"--site: {out} is no federation. `tskd export {out}` writes the bundle of a run.")
    if not (out / SITES).is_dir():
        raise UserError(
            f"{out}: the sites have the bundles, each in its own --out; the server has none of their images."
        )
    run = open_federated(build_recipe(found.recipe, str(out)), out)
    if found.method == TEACHER:
        raise UserError(f"{out}: the method is 'teacher', which is no small model to ship. Take task_kd.")
    if site is None:
        return ship_common(run, found.metrics, int8=int8)
    if site not in run.sites:
        raise UserError(f"--site {site}: the federation has the sites {', '.join(run.sites)}.")
    return ship_site(run, site, int8=int8)


def ship_common(run: FederatedRun, scores: Scores, *, int8: bool | None = None) -> Path:
    """Write the bundle of the one student that all sites have; UserError where each has its own."""
    strategy = run.federated.strategy
    if (student := common_student(run)) is None:
        raise UserError(
            f"federated.strategy={strategy}: each site has a student of its own. Name one: `tskd export {run.out} "
            f"--site {next(iter(run.sites))}`."
        )
    return ship(run.pooled, student, scores, run.out / FOLDER, strategy=strategy, int8=int8)


def common_student(run: FederatedRun) -> Artifact | None:
    """Return the student that all sites have; None: each has its own, or there is none."""
    if run.recipe.method == TEACHER:
        return None
    student = METHODS[run.recipe.method].model(run)
    return None if student.path in run.models_of else student


def ship_site(run: FederatedRun, name: str, *, int8: bool | None = None) -> Path:
    """Write the bundle that a site has in the end."""
    site, student = run.sites[name], METHODS[run.recipe.method].model(run)
    titles = {TEACHER: (METHODS[TEACHER].title, run.teacher), STUDENT: (METHODS[run.recipe.method].title, student)}
    models = {kind: (title, run.model_at(model, name)) for kind, (title, model) in titles.items()}
    scores = {kind: site.own.evaluation(model, title).metrics for kind, (title, model) in models.items()}
    place = site.folder / FOLDER
    return ship(site.own, models[STUDENT][1], scores, place, strategy=run.federated.strategy, int8=int8)


def renew(run: FederatedRun, scores: Scores) -> None:
    """Write the bundles that were exported here before anew, so that none is of another student."""
    if (run.out / FOLDER).is_dir() and common_student(run) is not None:
        ship_common(run, scores)
    elif (run.out / FOLDER).is_dir():
        require_ours(run.out / FOLDER)
        shutil.rmtree(run.out / FOLDER)
    for name, site in run.sites.items():
        if (site.folder / FOLDER).is_dir() and run.recipe.method != TEACHER:
            ship_site(run, name)
