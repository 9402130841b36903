"""A federation end to end on tiny phantoms: what each strategy makes, what leaves a site, and what a stop costs."""

from __future__ import annotations

import csv
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file

pytest.importorskip("flwr")

from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from tests.federations import SETTINGS, SITES, federated_recipe, federated_run
from tskd.artifacts import ARTIFACTS, Artifact, find_damage
from tskd.comparison.grid import GridRun
from tskd.comparison.plan import plan_runs
from tskd.data.phantoms import draw_phantom
from tskd.engine.checkpoints import load_checkpoint
from tskd.errors import RunFailed, UserError
from tskd.experiment.methods import METHODS
from tskd.federated.opening import check_federated, require_alike
from tskd.federated.pipeline import execute
from tskd.federated.run import FederatedRun
from tskd.federated.server_app import Averaging
from tskd.federated.shared import norm_names, trained_tensors
from tskd.federated.site import Site
from tskd.models.registry import load_model
from tskd.recipe.schema import build_recipe
from tskd.run_file import read_run
from tskd.stages.compute import compute_of
from tskd.stages.teacher import FILE

STRATEGIES = ("alone", "pooled", "fedavg", "fedprox", "fedbn", "feddistill")
ONE_FOR_ALL = ("pooled", "fedavg", "fedprox", "feddistill")
"""Strategies that end with one student."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder for all strategies: what they share is made once."""
    return tmp_path_factory.mktemp("federated")


@pytest.fixture(scope="module")
def runs(out: Path) -> Callable[[str], FederatedRun]:
    made: dict[str, FederatedRun] = {}

    def run(strategy: str) -> FederatedRun:
        if strategy not in made:
            made[strategy] = federated_run(out, federated_recipe(strategy=strategy))
            execute(made[strategy])
        return made[strategy]

    return run


def student(run: FederatedRun) -> Artifact:
    return METHODS["task_kd"].model(run)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_ends_with_a_student_that_every_site_has_scored(
    strategy: str, runs: Callable[[str], FederatedRun], out: Path
) -> None:
    run = runs(strategy)
    execute(run)  # run.json is that of the last
    found = read_run(out)  # believes no score that its artifacts do not say
    assert found.federated["strategy"] == strategy
    assert found.federated["sites"]["student"].keys() == SITES.keys()
    models = {run.model_at(student(run), name).digest for name in SITES}
    assert len(models) == (1 if strategy in ONE_FOR_ALL else len(SITES))
    evaluation = Artifact(out / ARTIFACTS / found.evaluations["student"])
    cases = list(csv.DictReader((evaluation.path / "cases.csv").open()))
    dice: dict[str, list[float]] = defaultdict(list)
    for row in cases:
        dice[row["case"]].append(float(row["dice"]))
    mean = np.mean([np.mean(values) for values in dice.values()])
    assert found.metrics["student"]["dice"] == pytest.approx(mean)
    worst = min(SITES, key=lambda name: found.federated["sites"]["student"][name]["dice"])
    assert found.metrics["student"]["worst"] == worst


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_steps_of_the_teacher_are_the_same_at_every_site_whatever_the_strategy(
    strategy: str, runs: Callable[[str], FederatedRun]
) -> None:
    """Operations say it: those of one site alone three times, but for pooled, where one teacher takes them once."""
    run, alone = runs(strategy), runs("alone")
    trained = compute_of(run.teacher, run.used).teacher_gflops
    of_all = compute_of(alone.teacher, alone.used).teacher_gflops
    assert trained == pytest.approx(of_all / 3 if strategy == "pooled" else of_all, rel=1e-3)


def test_fedavg_is_the_weighted_mean_of_what_the_sites_have_learned(tmp_path: Path) -> None:
    """Recomputed from the messages by numpy alone, in double precision."""
    heard: list[tuple[str, bytes]] = []
    run = federated_run(tmp_path, federated_recipe(rounds=1), heard=lambda *one: heard.append(one))
    teacher = load_file(run.teacher.path / FILE)
    replies = [opened_bytes(content) for where, content in heard if where.startswith("from")]
    learned = [content for content in replies if "arrays" in content]
    weights = np.array([content["metrics"]["images"] for content in learned], float)
    assert sorted(weights) == sorted(len(site.own.prepared.rows("train")) for site in run.sites.values())
    assert len(set(weights)) > 1  # or a plain mean would do
    for name in learned[0]["arrays"]:
        values = np.stack([content["arrays"][name].numpy().astype(float) for content in learned])
        mean = np.tensordot(weights / weights.sum(), values, axes=1)
        np.testing.assert_allclose(teacher[name].numpy(), mean, rtol=1e-5, atol=1e-7)


def opened_bytes(content: bytes) -> Any:
    return message_from_proto(ProtoMessage.FromString(content)).content


def test_the_same_sites_make_the_same_teacher_bit_by_bit_wherever(
    runs: Callable[[str], FederatedRun], tmp_path: Path
) -> None:
    again = federated_run(tmp_path, federated_recipe(strategy="fedavg"))
    assert again.teacher.digest == runs("fedavg").teacher.digest
    other = federated_run(tmp_path, federated_recipe(strategy="fedavg").model_copy(update={"seed": 1}))
    assert other.teacher.digest != again.teacher.digest


def test_with_fedbn_norms_never_leave_and_each_site_keeps_its_own(tmp_path: Path) -> None:
    heard: list[tuple[str, bytes]] = []
    run = federated_run(tmp_path, federated_recipe(strategy="fedbn"), heard=lambda *one: heard.append(one))
    teachers = {name: trained_tensors(load_model(run.model_at(run.teacher, name).path)) for name in SITES}
    norms = norm_names(load_model(run.model_at(run.teacher, "north").path))
    assert norms
    sent = {name for _, content in heard for name in opened_bytes(content).get("arrays", {})}
    assert sent == teachers["north"].keys() - norms
    north, south = teachers["north"], teachers["south"]
    assert all(torch.equal(north[name], south[name]) for name in sent)
    assert not all(torch.equal(north[name], south[name]) for name in norms)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return the digest of the teacher of a federation of three rounds that nothing has stopped."""

    @cache
    def whole(strategy: str) -> str:
        recipe = federated_recipe(strategy=strategy, rounds=3)
        return federated_run(tmp_path_factory.mktemp("whole"), recipe).teacher.digest

    return whole


class Killed(BaseException):
    """What no handler catches, as no handler catches a kill."""


@pytest.mark.parametrize("strategy", ["fedavg", "fedbn"])
@pytest.mark.parametrize("where", ["after a round", "within one"])
def test_a_server_that_was_killed_goes_on_from_its_last_round_and_ends_with_the_same_bits(
    strategy: str, where: str, whole: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = federated_recipe(strategy=strategy, rounds=3)
    count = 0
    if where == "after a round":
        kept = Averaging._keep  # noqa: SLF001 what Flower calls after each round

        def keep(self: Averaging, server_round: int, arrays: Any) -> Any:
            nonlocal count
            kept(self, server_round, arrays)
            if len(self.log) == 2:
                raise Killed

        monkeypatch.setattr(Averaging, "_keep", keep)
    else:
        learn = Site.learn

        def learned(self: Site, task: Any, received: Any) -> Any:
            nonlocal count
            count += 1
            if count == 5:  # the second site of the second round
                raise Killed
            return learn(self, task, received)

        monkeypatch.setattr(Site, "learn", learned)
    with pytest.raises(Killed):
        _ = federated_run(tmp_path / "killed", recipe).teacher
    monkeypatch.undo()
    (partial,) = (tmp_path / "killed" / ARTIFACTS).glob("federated_teacher-*.partial")
    state = load_checkpoint(partial)
    assert state is not None
    assert len(state["log"]) == (2 if where == "after a round" else 1)
    again = federated_run(tmp_path / "killed", recipe)
    assert again.teacher.digest == whole(strategy)
    assert [entry["round"] for entry in again.rounds] == [1, 2, 3]
    assert f"goes on after round {len(state['log'])} of 3" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["fedavg", "feddistill"])
def test_a_site_that_dies_does_not_stop_the_others_and_its_trouble_is_told_to_nobody(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(self: Site) -> None:
        if self.name == "south":
            raise OSError(5, "Input/output error", "/data/patients/SECRET_NAME.dcm")

    for name in ("learn", "answer"):
        usual = getattr(Site, name)
        monkeypatch.setattr(Site, name, lambda self, *a, usual=usual: dies(self) or usual(self, *a))
    heard: list[bytes] = []
    run = federated_run(tmp_path, federated_recipe(strategy=strategy), heard=lambda _, content: heard.append(content))
    found = run.evaluation(student(run), "student")
    assert all(set(entry["sites"]) & {"north", "west"} == {"north", "west"} for entry in run.rounds)
    assert found.metrics["sites"].keys() == SITES.keys()
    assert not any(b"SECRET_NAME" in content or b"Input/output" in content for content in heard)


def test_sites_that_work_by_another_recipe_take_no_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = federated_run(tmp_path)
    for name in ("north", "south"):
        settings = run.recipe.teacher.model_copy(update={"lr": 0.5})
        run.sites[name].recipe = run.recipe.model_copy(update={"teacher": settings})
    with pytest.raises(RunFailed, match="1 of 3 sites answered"):
        _ = run.teacher
    assert "site north: the server works by other settings" in capsys.readouterr().err


# --- what leaves a site ---

MARK = "ZQXPATIENT7"
PATTERN = np.random.default_rng(5).integers(0, 256, (32, 8, 3), dtype=np.uint8)
"""Noise in the first columns of every image; a row of it is 24 bytes that nothing else has."""


def marked_site(folder: Path, seed: int, *, count: int = 16) -> Path:
    """A data folder whose pixels, file names, metadata, description and path bear marks of its own."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    info = PngInfo()
    info.add_text("PatientName", f"{MARK} of {folder.name}")
    for number in range(count):
        phantom = draw_phantom("dermoscopy", number, size=32, seed=seed)
        pixels = phantom.image.copy()
        pixels[:, :8] = PATTERN
        Image.fromarray(pixels).save(folder / "images" / f"{MARK}_{number:02d}.png", pnginfo=info)
        Image.fromarray((phantom.mask > 0).astype(np.uint8)).save(folder / "masks" / f"{MARK}_{number:02d}.png")
    (folder / "dataset.yaml").write_text(f"name: {MARK} clinic\nclasses: [lesion]\n")
    return folder


def marks() -> dict[str, bytes]:
    """The marks as they would look in a message or file that bears them."""
    rows = PATTERN[3]
    return {
        "name": MARK.encode(),
        "pixels": rows.tobytes(),
        "pixels as float32": (rows.astype(np.float32) / 255).tobytes(),
        "pixels as float16": (rows.astype(np.float16) / 255).tobytes(),
        "planes as float32": (rows.T.astype(np.float32) / 255)[0].tobytes(),
    }


@pytest.mark.parametrize("strategy", ["fedavg", "fedbn", "feddistill"])
def test_no_mark_of_a_site_is_in_any_message_log_or_file_outside_of_it(
    strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    north = marked_site(tmp_path / f"data {MARK}", seed=1)
    sites = {"north": {"root": str(north)}, "south": SITES["south"], "west": SITES["west"]}
    sites |= {name: {**sites[name], "classes": ["lesion"]} for name in sites}
    recipe = federated_recipe(sites, strategy=strategy)
    recipe = build_recipe(
        {**recipe.model_dump(mode="json"), "data": {**SETTINGS["data"], "classes": ["lesion"]}}, "test"
    )
    heard: list[tuple[str, bytes]] = []
    out = tmp_path / "out"
    execute(federated_run(out, recipe, heard=lambda *one: heard.append(one)))
    sent = b"".join(content for where, content in heard if where == "from 1")
    assert len(sent) > 1000  # node 1 is north
    inside = b"".join(path.read_bytes() for path in (out / "sites/north").rglob("*") if path.is_file())
    assert {name for name, mark in marks().items() if mark in inside} >= {"name", "pixels"}  # the search can find them
    (out / "run.json").write_text(json.dumps(without_recipe(json.loads((out / "run.json").read_text()))))
    outside = [
        path for path in out.rglob("*") if path.is_file() and not path.is_relative_to(out / "sites/north")
    ]  # fmt: skip
    places = {**dict(enumerate(content for _, content in heard)), **{path: path.read_bytes() for path in outside}}
    places["log"] = "".join(capsys.readouterr()).encode()
    found = {(place, name) for place, content in places.items() for name, mark in marks().items() if mark in content}
    assert found == set()
    pictures = [path for path in (out / ARTIFACTS).rglob("*.png") if "phantoms-" not in str(path)]
    assert pictures == []  # compressed, marks would not show
    assert not [path for path in outside if MARK in str(path.relative_to(out))]


def without_recipe(run: dict[str, Any]) -> dict[str, Any]:
    """Who simulates has told the folders of all sites, and run.json keeps the recipe for that person."""
    return {key: value for key, value in run.items() if key not in ("recipe", "seal")}


def test_messages_hold_what_the_how_to_lists_and_nothing_else(tmp_path: Path) -> None:
    heard: list[tuple[str, bytes]] = []
    run = federated_run(tmp_path, federated_recipe(strategy="fedavg", rounds=1), heard=lambda *one: heard.append(one))
    trained = set(trained_tensors(load_model(run.teacher.path)))
    for where, content in heard:
        records = opened_bytes(content)
        if where.startswith("to"):
            assert set(records["config"]) <= {"server-round", "federation", "terms", "proximal-mu"}
            assert set(records) == {"arrays", "config"}
        else:
            assert dict(records["config"]).keys() == {"site"}
            assert set(records["metrics"]) <= {"images", "loss", "score"}
            assert set(records) <= {"arrays", "config", "metrics"}
        assert set(records.get("arrays", {})) in (set(), trained)


# --- what is refused, and the comparison ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "scratch"}, "the server has no labels"),
        ({"baselines": ["unet"]}, "with baselines"),
        ({"teacher": {**SETTINGS["teacher"], "members": 2}}, "averages one teacher"),
        ({"teacher": {**SETTINGS["teacher"], "unlabelled": "cut_mix"}}, "learn from labels alone"),
        ({"transfer": {"augmented": 3}}, "no labelled images"),
        ({"evaluate": {"data": {}}}, "tested at its sites"),
        ({"engine": {"devices": 2}}, "one device"),
    ],
)
def test_settings_that_no_federation_can_work_by_are_refused_first(changes: dict[str, Any], said: str) -> None:
    values = federated_recipe().model_dump(mode="json")
    with pytest.raises(UserError, match=said):
        check_federated(build_recipe({**values, **changes}, "test"))


def test_two_sites_of_one_folder_are_refused_and_so_are_images_that_cross_over(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="have the same images"):
        check_federated(federated_recipe({"north": {"split_seed": 4}, "south": {"split_seed": 4}}))
    first, second = marked_site(tmp_path / "a", seed=1), tmp_path / "b"
    shutil.copytree(first, second)
    sites = {"north": {"root": str(first), "split_seed": 1}, "south": {"root": str(second), "split_seed": 2}}
    recipe = federated_recipe({name: {**one, "classes": ["lesion"]} for name, one in sites.items()})
    data = {**SETTINGS["data"], "classes": ["lesion"]}
    run = federated_run(tmp_path / "out", build_recipe({**recipe.model_dump(mode="json"), "data": data}, "test"))
    with pytest.raises(UserError, match=r"test images of site .* are among the training images of site"):
        require_alike(run)


def test_sites_of_other_classes_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    sites = {"north": SITES["north"], "south": {**SITES["south"], "phantom": {"family": "oral_ulcer", "train": 12}}}
    with pytest.raises(UserError, match="site south has the classes"):
        execute(federated_run(tmp_path, federated_recipe(sites)))
    assert not list((tmp_path / ARTIFACTS).glob("federated_*"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_plan_names_what_the_run_makes(
    strategy: str, runs: Callable[[str], FederatedRun], out: Path, tmp_path: Path
) -> None:
    recipe = federated_recipe(strategy=strategy)
    done = runs(strategy)
    (plan,) = plan_runs([GridRun("x", {}, recipe)], out)
    assert plan.missing == ()
    assert plan.complete
    assert plan.images == done.source_digest
    (fresh,) = plan_runs([GridRun("x", {}, recipe)], tmp_path)
    stages = {artifact.path.name.rpartition("-")[0] for artifact in done.used}
    assert {part.stage for part in fresh.missing} <= stages
    assert {"distill", "evaluate"} <= {part.stage for part in fresh.missing} or not fresh.complete
    assert not list(tmp_path.rglob("*.safetensors"))


def test_strategies_are_tested_on_the_same_cases_in_one_order(runs: Callable[[str], FederatedRun]) -> None:
    cases = []
    for strategy in STRATEGIES:
        evaluation = runs(strategy).evaluation(student(runs(strategy)), METHODS["task_kd"].title)
        cases.append([row["image"] for row in csv.DictReader((evaluation.path / "cases.csv").open())])
        assert not any(find_damage(evaluation))
    assert all(one == other for one, other in pairwise(cases))
    assert {name.partition("/")[0] for name in cases[0]} == SITES.keys()


def test_answers_of_an_ensemble_are_not_taken_for_those_of_one_teacher(tmp_path: Path) -> None:
    """What the sites' teachers are made of is in the name of their mean answer; planned, nothing is made."""
    names: set[str] = set()
    several: tuple[dict[str, Any], ...] = ({}, {"members": 2}, {"members": 2, "folds": False})
    for teacher in several:
        recipe = federated_recipe(strategy="feddistill")
        changed = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update=teacher)})
        (plan,) = plan_runs([GridRun("one", {}, changed)], tmp_path)
        names |= {part.name for part in plan.missing if part.stage == "federated_answers"}
    assert len(names) == 3
