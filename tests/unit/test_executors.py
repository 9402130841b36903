"""Room on a cluster: a run that asks for more than there is is refused, never left waiting."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tskd.comparison.executors import ray_executor
from tskd.errors import UserError


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for Ray on two machines with 4 CPUs and a GPU each, and one that is gone; it notes what it was asked."""
    asked = SimpleNamespace(init={}, task={})

    def remote(**options: Any) -> Any:
        asked.task = options
        return lambda function: SimpleNamespace(remote=function)

    fake = SimpleNamespace(
        init=lambda **options: asked.init.update(options),
        nodes=lambda: [
            {"Alive": alive, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}} for alive in (True, True, False)
        ],
        remote=remote,
        shutdown=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    return asked


def slots(**changes: Any) -> int:
    settings: dict[str, Any] = {"address": None, "slots": None, "cpus": 1.0, "gpus": 0.0, "retries": 2}
    with ray_executor(**{**settings, **changes}) as executor:
        return executor.slots


def test_as_many_runs_go_on_at_once_as_there_is_room_for(cluster: SimpleNamespace) -> None:
    assert slots(address="auto", cpus=3) == 2
    assert slots(address="auto", cpus=1, gpus=0.25) == 8
    assert slots(address="auto", cpus=0, gpus=0.5) == 4
    assert slots(address="auto", cpus=2.5) == 2, "what is left of two machines is no third place"
    assert slots(address="auto", cpus=0, gpus=0.1) == 20, "0.1 goes ten times into 1, though not in binary"
    assert slots(address="auto", slots=3) == 3


def test_retries_and_fractions_reach_the_cluster(cluster: SimpleNamespace) -> None:
    slots(address="auto", cpus=0.5, gpus=0.25, retries=5)
    assert {name: cluster.task[name] for name in ("num_cpus", "num_gpus", "max_retries")} == {
        "num_cpus": 0.5, "num_gpus": 0.25, "max_retries": 5,
    }  # fmt: skip
    assert "num_cpus" not in cluster.init, "a cluster that is there has the CPUs it has"


def test_a_cluster_started_here_has_whole_cpus_enough(cluster: SimpleNamespace) -> None:
    slots(slots=2, cpus=1.2)
    assert cluster.init["num_cpus"] == 3
    assert cluster.init["include_dashboard"] is False


@pytest.mark.parametrize("asked", [{"gpus": 2.0}, {"gpus": 2.0, "slots": 4}, {"cpus": 5.0, "slots": 1}])
def test_what_no_machine_has_is_refused_and_not_waited_for(cluster: SimpleNamespace, asked: dict[str, Any]) -> None:
    """All machines together have it."""
    with pytest.raises(
        UserError, match=r"a run asks for .* the cluster's machines have 4 and 1, 4 and 1\. Ask for less"
    ):
        slots(address="auto", **asked)
