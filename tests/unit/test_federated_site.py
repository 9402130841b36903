"""A site's part without Flower: FedProx's term, the place of a round in the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.federations import federated_recipe
from tskd.artifacts import read_log
from tskd.engine import Training, fit, open_runtime
from tskd.engine.schedules import learning_rate_factor
from tskd.errors import UserError
from tskd.experiment.methods import check_names
from tskd.experiment.opening import open_run
from tskd.federated.shared import near, norm_names, put, trained_tensors
from tskd.federated.site import own_recipe, terms
from tskd.models.description import NetworkDescription
from tskd.recipe.files import as_site
from tskd.recipe.schema import EngineConfig, Recipe, TrainConfig, build_recipe
from tskd.stages.teacher import TeacherSource
from tskd.types import Batch

BATCH = Batch(torch.zeros(1), torch.zeros(1))


def test_the_term_of_fedprox_pulls_back_by_its_weight_times_the_distance() -> None:
    """Loss 3 + 0.25 / 2 * (2^2 + 1^2) = 3.625 and gradient 0.25 * (2, -1), by hand; what is frozen has no part."""
    model = nn.Linear(2, 1)
    model.weight.data = torch.tensor([[1.0, 1.0]])
    model.bias.requires_grad_(False)
    step = near(lambda module, batch: {"loss": torch.tensor(3.0)}, model, 0.25)
    model.weight.data += torch.tensor([[2.0, -1.0]])
    model.bias.data += 50
    losses = step(model, BATCH)
    losses["loss"].backward()
    assert losses["loss"].item() == pytest.approx(3.625)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.5, -0.25]]))
    assert model.bias.grad is None


def test_a_round_learns_at_the_rate_of_its_place_in_the_whole(tmp_path: Path) -> None:
    """Two rounds of three steps have the rates of six steps; a schedule a round would begin and end twice."""
    settings = TrainConfig(steps=3, lr=0.1, batch_size=1)
    rates = []
    for round_ in range(2):
        folder = tmp_path / str(round_)
        folder.mkdir()
        model = nn.Linear(1, 1)

        def step(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
            return {"loss": module(torch.ones(1, 1)).square().sum()}

        training = Training("test", model, step, lambda *_: BATCH, settings, 0, place=(3 * round_, 6))
        fit(training, folder, open_runtime(EngineConfig(accelerator="cpu")))
        rates.append(read_log(folder)[-1]["lr"])
    assert rates == pytest.approx([0.1 * learning_rate_factor(step, 6, settings.warmup) for step in (2, 5)], rel=1e-5)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
        self.head = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))


def test_norms_are_known_by_their_kind_and_their_statistics_belong_to_them() -> None:
    model = Small()
    assert norm_names(model) == {
        "encoder.1.weight", "encoder.1.bias", "encoder.1.running_mean", "encoder.1.running_var", "encoder.2.weight",
        "encoder.2.bias", "head.0.weight", "head.0.bias",
    }  # fmt: skip
    model.encoder.requires_grad_(False)
    assert "encoder.0.weight" not in trained_tensors(model)


def test_tensors_of_another_teacher_are_refused_and_nothing_is_changed() -> None:
    model = Small()
    before = trained_tensors(model)
    with pytest.raises(UserError, match="do not belong to this teacher"):
        put(model, {"head.1.bias": torch.ones(2), "head.1.weight": torch.ones(7, 7)})
    assert all(torch.equal(one, before[name]) for name, one in trained_tensors(model).items())


def source() -> TeacherSource:
    return TeacherSource("x", NetworkDescription("timm", {"backbone": "x"}, ("lesion",), 32), "digest")


def changed(**sections: Any) -> Recipe:
    return build_recipe({**federated_recipe().model_dump(mode="json"), **sections}, "test")


def test_terms_are_what_all_must_agree_on_and_nothing_that_is_a_sites_own() -> None:
    recipe = federated_recipe()
    teacher = recipe.teacher.model_dump(mode="json")
    same = [
        changed(engine={"accelerator": "cpu", "threads": 1}),
        changed(teacher={**teacher, "accumulate": 2}),
        federated_recipe({name: {"root": f"/data/{name}"} for name in ("north", "south", "west")}),
    ]
    assert {terms(one, source()) for one in [recipe, *same]} == {terms(recipe, source())}
    two_sites = federated_recipe({"north": {}, "south": {"split_seed": 1}})
    others = [changed(seed=1), changed(teacher={**teacher, "lr": 0.5}), federated_recipe(local_steps=7), two_sites]
    others.append(federated_recipe(strategy="fedbn"))
    assert len({terms(one, source()) for one in [recipe, *others]}) == 1 + len(others)
    assert terms(recipe, source()._replace(digest="other weights")) != terms(recipe, source())


def test_a_sites_settings_are_those_of_data_but_for_what_it_states() -> None:
    recipe = changed(data={"image_size": 48, "labels": 9, "phantom": {"train": 30, "size": 40}})
    north, west = recipe.site_data("north"), recipe.site_data("west")
    assert (north.image_size, north.labels, north.phantom.train, north.phantom.size) == (48, 9, 14, 40)
    assert west.phantom.train == 30
    assert own_recipe(recipe, "north").teacher.steps == 6


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"sites": {"north": {"rot": "x"}}}, "rot"),
        ({"sites": {"../north": {}}}, "names a site and its folder"),
        ({"sites": {}}, "sites"),
        ({"sites": {"a": {}, "b": {}}, "min_sites": 3}, "there are 2 sites"),
        ({"strategy": "fedsgd"}, "fedsgd"),
        ({"transfer": {"image_size": 7}}, "image_size"),
    ],
)
def test_settings_that_do_not_fit_are_named(section: dict[str, Any], said: str) -> None:
    values = federated_recipe().model_dump(mode="json")
    with pytest.raises(UserError, match=said):
        build_recipe({**values, "federated": {**values["federated"], **section}}, "test")


def test_a_site_on_the_command_line_is_a_name_and_a_folder() -> None:
    assert as_site("north=/data/a=b") == ("federated.sites.north.root", "/data/a=b")
    for wrong in ("north", "=/data", "north="):
        with pytest.raises(UserError, match="NAME=FOLDER"):
            as_site(wrong)


def test_a_recipe_without_the_section_keeps_its_name_and_flower_is_never_imported() -> None:
    """Comparisons made before there were federations find their runs; and the ordinary installation has no Flower."""
    from tskd.recipe.schema import NAMING

    assert "federated" not in Recipe().model_dump(mode="json", context=NAMING)
    check_names(Recipe())
    code = (
        "import sys, tskd, tskd.cli, tskd.comparison.workflow, tskd.experiment.pipeline, tskd.federated.opening, "
        "tskd.federated.run, tskd.federated.pipeline, tskd.stages.public; print('flwr' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_neither_flower_nor_ray_reports_its_use() -> None:
    """Flower's default is to report every start of a simulation; the flag is read when it is imported."""
    pytest.importorskip("flwr")
    code = (
        "import os; [os.environ.pop(n, None) for n in ('FLWR_TELEMETRY_ENABLED', 'RAY_USAGE_STATS_ENABLED')]\n"
        "import tskd.federated.simulate, tskd.federated.strategies\n"
        "from flwr.supercore import telemetry as its\n"
        "print(its.FLWR_TELEMETRY_ENABLED, os.environ['RAY_USAGE_STATS_ENABLED'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0 0\n"


def test_a_run_of_one_place_does_not_pass_over_the_section(tmp_path: Path) -> None:
    """It would train on the phantoms that the section data names by default, and say nothing."""
    with pytest.raises(UserError, match="tskd federate simulate"):
        open_run(federated_recipe(), tmp_path)
