"""A simulation's model can be used: its bundle, its cases and its pictures, for all sites or for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

pytest.importorskip("flwr")

from safetensors.torch import load_file

import tskd
from tests.federations import SITES, federated_recipe, federated_run
from tskd.data.prepared import Prepared
from tskd.errors import UserError
from tskd.experiment.methods import METHODS
from tskd.federated.bundle import export_simulation
from tskd.federated.pipeline import execute
from tskd.federated.run import FederatedRun
from tskd.models.registry import STUDENT_FILE
from tskd.recipe.schema import Recipe
from tskd.run_file import read_run


def recipe_of(strategy: str) -> Recipe:
    recipe = federated_recipe(strategy=strategy, rounds=1)
    changed = {"evaluate": {"overlays": 1}, "data": {"axis": 0}}  # phantoms are no volumes: the bundle tells it alone
    return recipe.model_copy(
        update={name: getattr(recipe, name).model_copy(update=values) for name, values in changed.items()}
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FederatedRun:
    run = federated_run(tmp_path_factory.mktemp("simulated"), recipe_of("fedavg"))
    execute(run)
    return run


def test_cases_give_the_means_of_the_run_and_pictures_are_of_every_site(run: FederatedRun) -> None:
    result = tskd.RunResult(run.out)
    means = result.cases.groupby(["name", "case"])["dice"].mean().groupby("name").mean()
    pandas.testing.assert_series_equal(
        means.sort_index(), result.scores.set_index("name")["dice"].sort_index(), check_names=False
    )
    assert {case.partition("/")[0] for case in result.cases["case"]} == set(SITES)
    assert len(result.pictures) == 3 * len(SITES)  # worst, median and best of each
    assert result._repr_html_().count("<img") == 6


def test_the_bundle_of_the_common_student_is_that_student_told_by_all_sites(run: FederatedRun) -> None:
    model = tskd.RunResult(run.out).model
    student = METHODS["task_kd"].model(run)
    shipped, trained = (load_file(path) for path in (run.out / "model/model.safetensors", student.path / STUDENT_FILE))
    assert all(torch.equal(shipped[name], trained[name]) for name in shipped)
    found, told = read_run(run.out), model.bundle.description
    assert told["scores"]["student"]["dice"] == found.metrics["student"]["dice"]
    assert told["images"]["train"] == sum(found.federated["labelled"].values())
    assert model.bundle.axis == 0
    assert told["images"]["test"] == told["doubt"]["images"] == 7 * len(SITES)
    assert "from a teacher that several sites adapted together" in model.card
    assert "which it was not trained on" not in model.card
    north = Prepared(run.sites["north"].own.prepared_artifact.path)
    image = north.native_image(int(north.rows("test")[0]))
    np.testing.assert_array_equal(tskd.load(run.out).predict(image).classes, model.predict(image).classes)


def test_a_site_has_a_bundle_by_its_own_images_and_none_outlives_its_student(tmp_path: Path) -> None:
    """With ``fedbn`` each site has its own student and there is none for all: what lies in the folder is replaced."""
    run = federated_run(tmp_path, recipe_of("fedavg"))
    execute(run)
    assert export_simulation(tmp_path) == tmp_path / "model"
    north = export_simulation(tmp_path / "model", "north")  # of the run whose bundle it is
    assert north == tmp_path / "sites/north/model"
    assert tskd.load(north).bundle.description["images"]["train"] == run.sites["north"].labelled

    other = federated_run(tmp_path, recipe_of("fedbn"))
    execute(other)
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "sites/south/model").exists()  # it was never asked for
    own = load_file(other.model_at(METHODS["task_kd"].model(other), "north").path / STUDENT_FILE)
    shipped = load_file(north / "model.safetensors")
    assert all(torch.equal(shipped[name], own[name]) for name in shipped)
    with pytest.raises(UserError, match=r"each site has a student of its own.*--site north"):
        _ = tskd.RunResult(tmp_path).model
    with pytest.raises(UserError, match="--site nowhere: the federation has the sites north, south, west"):
        export_simulation(tmp_path, "nowhere")
