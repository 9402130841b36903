"""What a site has in the end over machines is what the simulation says it has, for each strategy that sends."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr")

from safetensors.torch import load_file

from tests.federations import federated_recipe, federated_run
from tskd.errors import UserError
from tskd.experiment.methods import METHODS
from tskd.federated.opening import check_federated
from tskd.federated.result import STUDENT, TEACHER, received_models
from tskd.federated.server_run import learned
from tskd.federated.site import Task
from tskd.models.registry import STUDENT_FILE
from tskd.stages.teacher import FILE


@pytest.mark.parametrize("strategy", ["fedavg", "fedbn", "feddistill"])
def test_a_site_ends_with_the_models_of_the_simulation(strategy: str, tmp_path: Path) -> None:
    """With ``fedbn`` it has made both itself, of what was sent and its own norms."""
    run = federated_run(tmp_path, federated_recipe(strategy=strategy, rounds=2))
    student = METHODS["task_kd"].model(run)
    tensors, chosen, federation = learned(run)
    assert any(name.startswith(STUDENT) for name in tensors) == (strategy != "fedbn")
    files = {TEACHER: FILE, STUDENT: STUDENT_FILE}
    for name in ("north", "west"):
        models = received_models(run.sites[name], Task(federation, chosen), tensors)
        assert models.keys() == ({STUDENT} if strategy == "feddistill" else {TEACHER, STUDENT})
        for kind, model in models.items():
            simulated = run.model_at(run.teacher if kind == TEACHER else student, name)
            one, other = (load_file(each.path / files[kind]) for each in (model, simulated))
            assert one.keys() == other.keys()
            assert all(one[each].equal(other[each]) for each in one)
    with pytest.raises(UserError, match="nothing was kept"):
        received_models(run.sites["north"], Task(federation, chosen), {**tensors, "elsewhere/x": tensors.popitem()[1]})


@pytest.mark.parametrize(("change", "told"), [({"strategy": "alone"}, "nothing is sent"), ({}, None)])
def test_a_federation_of_machines_needs_something_to_send_and_names_no_folder_of_others(
    change: dict[str, str], told: str | None
) -> None:
    recipe = federated_recipe({"north": {}, "south": {}}, **change)  # in a simulation both would have the same images
    if told is None:
        check_federated(recipe, apart=True)
        with pytest.raises(UserError, match="the same images"):
            check_federated(recipe)
    else:
        with pytest.raises(UserError, match=told):
            check_federated(recipe, apart=True)
