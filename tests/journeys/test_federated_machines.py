"""A server and sites as processes of their own, by TLS on this machine, killed and started anew on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

pytest.importorskip("flwr")

import tskd
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
    """One command in a folder of its own, its output in a file."""

    folder: Path
    arguments: list[str]
    number: int = 0
    running: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.number += 1
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        environment |= {"FLWR_TELEMETRY_ENABLED": "1", "no_proxy": "*"}  # ours has to win
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "federate", *self.arguments], cwd=self.folder, env=environment,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def said(self) -> str:
        return self.log.read_text()

    def wait_to_say(self, words: str) -> None:
        until = time.monotonic() + SECONDS
        while words not in self.said():
            assert time.monotonic() < until, f"{words!r} was not said, but: {self.said()}"
            assert self.running.poll() is None or words in self.said(), self.said()
            time.sleep(0.1)

    def kill(self) -> None:
        self.running.send_signal(signal.SIGKILL)
        self.running.wait(60)

    def ended(self) -> int:
        return self.running.wait(SECONDS)


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
    started: list[Process] = []
    yield started
    for one in started:
        if one.running.poll() is None:
            one.kill()


def _site(folder: Path, name: str, port: int) -> Process:
    server = f"127.0.0.1:{port}"
    given = ["--site", name, "--data", "data", "--transfer", "shared", "--keys", "keys", "--server", server]
    return Process(folder / name, ["site", "fed.yaml", *given, "--out", "out"])


def _free_port() -> int:
    from tskd.listening import listening

    with listening("127.0.0.1", 0) as found:
        return int(found.getsockname()[1])


def _start(hospitals: Path, processes: list[Process]) -> list[Process]:
    port = _free_port()
    given = ["--keys", "keys", "--transfer", "shared", "--host", "127.0.0.1", "--port", str(port), "--out", "out"]
    processes.append(Process(hospitals / "server", ["server", "fed.yaml", *given]))
    processes.extend(_site(hospitals, name, port) for name in ("north", "south"))
    return processes


def test_a_federation_of_processes_ends_as_in_a_simulation_although_server_and_site_are_killed(
    hospitals: Path, processes: list[Process]
) -> None:
    server, _, south = _start(hospitals, processes)
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
        ("fedprox", {"secure_aggregation": True, "clip": 1.0}, {"teacher", "student"}),
        ("fedbn", {}, {"teacher", "student"}),
        ("feddistill", {}, {"student"}),
    ],
)
def test_other_strategies_end_over_processes_as_in_a_simulation(
    hospitals: Path, processes: list[Process], strategy: str, privacy: dict[str, Any], sent: set[str]
) -> None:
    """Bit by bit, under masks too; and the server's run.json has what the simulation's has of each site."""
    federated = {"strategy": strategy, "privacy": privacy, "rounds": 2, "local_steps": 2}
    _write_recipe(hospitals, **federated)
    _start(hospitals, processes)
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
