"""What a site tells of its scores: means and totals, once, and nothing that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Message, RecordDict

from tests.federations import MadeUp, federated_recipe
from tskd.artifacts import Store
from tskd.engine import open_runtime
from tskd.errors import UserError
from tskd.experiment.run import Run
from tskd.federated import client_app
from tskd.federated.client_app import build_client_app
from tskd.federated.messages import SCORES, as_arrays, opened
from tskd.federated.privacy import SYSTEM
from tskd.federated.reported import build, numbers_told, summary_told
from tskd.federated.server_run import ServerRun
from tskd.federated.simulate import Here
from tskd.recipe.schema import FederatedConfig, PrivacyConfig
from tskd.stages.evaluation_files import read_cases

COUNTS = {"n_cases": 4, "scored": 4, "missed": 1, "false_positive": 0, "both_empty": 0}
NORTH: dict[str, Any] = {"dice": 0.5, "dice_ci95": [0.25, 0.75], "iou": 0.4, "level": "image", **COUNTS}
SOUTH: dict[str, Any] = {**NORTH, "dice": 0.8, "dice_ci95": None, "iou": 0.7, "n_cases": 12}
NOTHING: dict[str, Any] = {**NORTH, "dice": None, "dice_ci95": None, "iou": None, "n_cases": 2, "scored": 0}


@pytest.mark.parametrize("scores", [NORTH, SOUTH, NOTHING, {**NORTH, "level": "volume"}])
def test_what_is_told_is_what_was_scored(scores: dict[str, Any]) -> None:
    more = {**scores, "path": "/data/patients", "cases": {"Doe": 0.1}}
    told = numbers_told({"student": more, "teacher": SOUTH})
    assert told.keys() <= SCORES
    assert summary_told(told, "student") == scores
    assert summary_told(told, "teacher") == SOUTH
    assert summary_told({"images": 3}, "student") is None


@pytest.mark.parametrize(
    "change", [{"student-dice": 1.5}, {"student-iou": -0.1}, {"student-low": np.nan}, {"student-n_cases": 2.5},
               {"student-missed": -1.0}, {"student-n_cases": np.inf}],
)  # fmt: skip
def test_what_can_be_no_score_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"that are none|that is none"):
        summary_told({**numbers_told({"student": NORTH}), **change}, "student")


def test_means_over_sites_weigh_their_cases_and_the_worst_is_named(tmp_path: Path) -> None:
    """(4 x 0.5 + 12 x 0.8) / 16 = 0.725 by hand; a site with nothing to find has no part."""
    run = Run(federated_recipe(), tmp_path, open_runtime(federated_recipe().engine))
    model = Store(tmp_path / "elsewhere").build("made_up", lambda _: {}, config={}, inputs={}, seed=0, version=1)
    sites = {"north": NORTH, "south": SOUTH, "west": NOTHING}
    found = build(run.bench, sites, model, title="student")
    assert found.metrics["dice"] == 0.725
    assert found.metrics["dice_of_sites"] == 0.65
    assert (found.metrics["worst"], found.metrics["n_cases"], found.metrics["missed"]) == ("north", 18, 3)
    assert found.metrics["sites"]["north"]["dice_ci95"] == [0.25, 0.75]
    assert read_cases(found.path) == []  # no case of any site is known
    again = build(run.bench, {"north": SOUTH}, model, title="student")
    assert again.path != found.path  # what sites tell now is not taken for what they told before


def reply_to_the_result(monkeypatch: pytest.MonkeyPatch, privacy: PrivacyConfig) -> Message:
    monkeypatch.setattr(client_app, "keep_result", lambda *_: {"student": NORTH})
    sites: Any = {"north": {}, "south": {}}
    site: Any = MadeUp("north", FederatedConfig(sites=sites, transfer={}, privacy=privacy))
    site.labelled = 12
    grid = Here(build_client_app(lambda _: site), [1])
    told = ConfigRecord({"server-round": 1, "federation": "test", "terms": "terms"})
    content = RecordDict({"config": told, "arrays": as_arrays({})})
    (reply,) = grid.send_and_receive([Message(content, dst_node_id=1, message_type="evaluate.result")])
    return reply


def test_scores_are_taken_with_the_result_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = reply_to_the_result(monkeypatch, PrivacyConfig())
    sites = frozenset({"north"})
    assert opened(reply, sites=sites, also=SCORES).numbers == {"images": 12.0, **numbers_told({"student": NORTH})}
    with pytest.raises(UserError, match="no site sends"):
        opened(reply, sites=sites)


def test_under_noise_a_site_tells_nothing_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither scores nor how many it trains on: noise covers none of it."""
    reply = reply_to_the_result(monkeypatch, PrivacyConfig(clip=1.0, noise=0.1))
    assert dict(reply.content["metrics"]) == {"images": 1}


def test_a_server_draws_noise_that_nobody_can_draw_again(tmp_path: Path) -> None:
    """A simulation's comes from the seed, which every site has: over machines each could take it off."""
    recipe = federated_recipe(privacy={"clip": 1.0, "noise": 0.1})
    run = ServerRun(recipe, tmp_path, open_runtime(recipe.engine))
    assert run._noise(1) is SYSTEM  # noqa: SLF001 what nothing else shows
    assert run.privacy["noise_from"] == "system"
