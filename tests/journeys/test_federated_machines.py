"""A server and sites as processes of their own, by TLS on this machine, killed and started anew on the way."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

pytest.importorskip("flwr")

import tskd
from tests.conftest import Started
from tests.federations import SETTINGS, federated_run
from tskd.errors import UserError
from tskd.experiment.methods import METHODS
from tskd.federated.keys import make_certificate, make_site_key
from tskd.federated.pipeline import execute
from tskd.federated.run import FederatedRun
from tskd.models.registry import STUDENT_FILE
from tskd.recipe.schema import build_recipe
from tskd.run_file import read_run
from tskd.stages.teacher import FILE

pytestmark = pytest.mark.slow

COMMAND = "import tests.made_up; from tskd.cli import main; main()"  # the teacher is one that tests make up
MARK = "planted7391"
"""In the names of the images of one site, and nowhere else."""
SECONDS = 400


@dataclass
class Process:
    """One command in a folder of its own, where it leaves what it says; forked anew at each start."""

    begin: Callable[[], Started]
    starts: list[Started] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.starts.append(self.begin())

    @property
    def running(self) -> BaseProcess:
        return self.starts[-1].process

    def said(self) -> str:
        return "".join(one.text(name) for one in self.starts for name in ("out", "err"))

    def wait_to_say(self, words: str) -> None:
        until = time.monotonic() + SECONDS
        while words not in self.said():
            assert time.monotonic() < until, f"{words!r} was not said, but: {self.said()}"
            assert self.running.is_alive() or words in self.said(), self.said()
            time.sleep(0.1)

    def kill(self) -> None:
        self.running.kill()
        self.running.join(60)

    def ended(self) -> int | None:
        self.running.join(SECONDS)
        return self.running.exitcode


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    """A folder for each machine, with what lies there and no more: data, the keys that it has, the recipe."""
    sites = {"north": {"split_seed": 1}, "south": {"split_seed": 2, "phantom": {"train": 16}}}
    drawn = federated_run(tmp_path / "drawn", _recipe({**sites}, {"split_seed": 9, "phantom": {"train": 6, "test": 1}}))
    keys = tmp_path / "everybody"
    make_certificate(keys, ["127.0.0.1"])
    for name, site in drawn.sites.items():
        make_site_key(keys, name)
        _ = site.own.prepared_artifact
        _copy_drawn(site.folder, tmp_path / name / "data", mark=MARK if name == "south" else "")
        (tmp_path / name / "keys").mkdir()
        for file in ("server.crt", f"{name}.key"):
            shutil.copy(keys / file, tmp_path / name / "keys")
    _ = drawn.prepared_artifact
    _copy_drawn(tmp_path / "drawn", tmp_path / "server" / "shared", mark="")
    (tmp_path / "server" / "keys").mkdir()
    for file in ("server.crt", "server.key", "north.pub", "south.pub"):
        shutil.copy(keys / file, tmp_path / "server" / "keys")
    for name in ("north", "south"):
        shutil.copytree(tmp_path / "server" / "shared", tmp_path / name / "shared")
    _write_recipe(tmp_path)
    return tmp_path


def _recipe(sites: dict[str, Any], transfer: dict[str, Any], **federated: Any) -> Any:
    section = {"rounds": 3, "local_steps": 3, "min_sites": 2, "timeout": 300.0, "sites": sites, "transfer": transfer}
    return build_recipe({**SETTINGS, "federated": {**section, **federated}}, "test")


def _write_recipe(hospitals: Path, **federated: Any) -> None:
    """Hand all machines one recipe, in which no folder is named."""
    recipe = _recipe({"north": {}, "south": {}}, {}, **federated).model_dump(mode="json", exclude_defaults=True)
    for name in ("north", "south", "server"):
        (hospitals / name / "fed.yaml").write_text(yaml.safe_dump(recipe))


def _copy_drawn(folder: Path, place: Path, *, mark: str) -> None:
    """Copy phantoms, with a mark in the name of every file of theirs."""
    (drawn,) = (folder / "artifacts").glob("phantoms-*/data")
    shutil.copytree(drawn, place)
    if mark:
        for path in [*place.glob("images/*"), *place.glob("masks/*")]:
            path.rename(path.with_name(f"{mark}-{path.name}"))
        split = place / "split.csv"
        lines = split.read_text().splitlines()
        split.write_text("\n".join([lines[0], *(f"{mark}-{line}" for line in lines[1:])]) + "\n")


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for one in processes:
        if one.running.is_alive():
            one.kill()


@pytest.fixture
def start(started: Callable[..., Started], hospitals: Path, processes: list[Process]) -> Callable[[], list[Process]]:
    """Start the server and its sites, as three machines would: none has been told more than its own folder holds."""
    program = hospitals / "command.py"
    program.write_text(COMMAND)
    environment = {"no_proxy": "*"}

    def process(name: str, *arguments: object) -> Process:
        begin = partial(started, program, "federate", *arguments, environment=environment, cwd=hospitals / name)
        return Process(begin)

    def start() -> list[Process]:
        port = _free_port()
        common = ("--transfer", "shared", "--keys", "keys", "--out", "out")
        processes.append(process("server", "server", "fed.yaml", *common, "--host", "127.0.0.1", "--port", port))
        for name in ("north", "south"):
            own = ("--site", name, "--data", "data", "--server", f"127.0.0.1:{port}")
            processes.append(process(name, "site", "fed.yaml", *common, *own))
        return processes

    return start


def _free_port() -> int:
    from tskd.machine.listening import listening

    with listening("127.0.0.1", 0) as found:
        return int(found.getsockname()[1])


def test_a_federation_of_processes_ends_as_in_a_simulation_although_server_and_site_are_killed(
    hospitals: Path, start: Callable[[], list[Process]]
) -> None:
    server, _, south = processes = start()
    server.wait_to_say("round 1 of 3, 2 sites")
    south.kill()  # wherever in its round it is
    south.start()
    server.wait_to_say("round 2 of 3, 2 sites")
    server.kill()
    server.start()
    assert [one.ended() for one in processes] == [0, 0, 0], server.said()
    assert "goes on after round" in server.said()

    simulated = _simulated(hospitals)
    teacher = load_file(simulated.teacher.path / FILE)
    student = load_file(simulated.initialisations.distilled.path / STUDENT_FILE)
    (learned,) = (hospitals / "server/out/artifacts").glob(f"federated_teacher-*/{FILE}")
    assert _same(load_file(learned), teacher)
    for name in ("north", "south"):
        (received,) = (hospitals / name / "out/artifacts").glob(f"received_student-*/{STUDENT_FILE}")
        assert _same(load_file(received), student)
        scores = json.loads((hospitals / name / "out/scores.json").read_text())
        own = simulated.sites[name].own.evaluation(simulated.initialisations.distilled, "task-specific distillation")
        assert scores["student"]["dice"] == own.metrics["dice"]
        assert (hospitals / name / "out/model/model.onnx").is_file()
    _require_secrecy(hospitals)


@pytest.mark.parametrize(
    ("strategy", "privacy", "sent"),
    [
        ("fedbn", {"secure_aggregation": True, "clip": 1.0}, {"teacher", "student"}),
        ("feddistill", {}, {"student"}),
    ],
)
def test_other_strategies_end_over_processes_as_in_a_simulation(
    hospitals: Path, start: Callable[[], list[Process]], strategy: str, privacy: dict[str, Any], sent: set[str]
) -> None:
    """Bit by bit, under masks too; and the server's run.json has what the simulation's has of each site."""
    federated = {"strategy": strategy, "privacy": privacy, "rounds": 2, "local_steps": 2}
    _write_recipe(hospitals, **federated)
    processes = start()
    assert [one.ended() for one in processes] == [0, 0, 0], "\n".join(one.said() for one in processes)

    simulated = _simulated(hospitals, **federated)
    expected = execute(simulated)
    models = {"teacher": simulated.teacher, "student": METHODS["task_kd"].model(simulated)}
    for name in ("north", "south"):
        scores = json.loads((hospitals / name / "out/scores.json").read_text())
        assert scores.keys() == sent
        for kind in sent:
            site = simulated.sites[name]
            own = site.own.evaluation(simulated.model_at(models[kind], name), METHODS[_METHOD[kind]].title)
            assert scores[kind]["dice"] == own.metrics["dice"]
    found = read_run(hospitals / "server/out")
    assert found.federated["over"] == "machines"
    assert found.federated["sites"] == {kind: expected.federated["sites"][kind] for kind in sent}
    for kind in sent:
        assert found.metrics[kind]["dice"] == pytest.approx(expected.metrics[kind]["dice"], abs=1e-6)
        assert found.metrics[kind]["worst"] == expected.metrics[kind]["worst"]
    for name, one in found.federated["privacy"].items():
        assert one == ("system" if name == "noise_from" else expected.federated["privacy"][name])
    if strategy != "fedbn":
        (received,) = (hospitals / "north/out/artifacts").glob(f"received_student-*/{STUDENT_FILE}")
        assert _same(load_file(received), load_file(models["student"].path / STUDENT_FILE))
    assert "tskd federate server" in (hospitals / "server/out/report.html").read_text(encoding="utf-8")
    assert tskd.RunResult(hospitals / "server/out").scores["dice"].notna().all()
    with pytest.raises(UserError, match="the sites have the bundles"):
        _ = tskd.RunResult(hospitals / "server/out").model
    _require_secrecy(hospitals)


_METHOD = {"teacher": "teacher", "student": "task_kd"}


def _simulated(hospitals: Path, **federated: Any) -> FederatedRun:
    sites = {name: {"root": str(hospitals / name / "data")} for name in ("north", "south")}
    recipe = _recipe(sites, {"root": str(hospitals / "server/shared")}, **federated)
    return federated_run(hospitals / "simulated", recipe)


def _same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def _require_secrecy(hospitals: Path) -> None:
    """South's names are in south's folder alone; its images are in no file of the others."""
    images = [path.read_bytes() for path in (hospitals / "south/data/images").iterdir()]
    assert images
    assert any(MARK in path.name for path in (hospitals / "south").rglob("*"))
    for machine in ("server", "north"):
        for path in (hospitals / machine).rglob("*"):
            assert MARK not in path.name
            if path.is_file():
                content = path.read_bytes()
                assert MARK.encode() not in content, path
                assert not any(image in content for image in images), path
