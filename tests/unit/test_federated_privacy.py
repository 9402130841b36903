"""Clipping, noise and epsilon against hand-computed values; masks, the sum under them, and who is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import kstest, norm

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.differential_privacy import compute_clip_model_update
from pydantic import ValidationError

from tests.federations import BEGUN, IMAGES, LEARNED, MadeUp
from tskd.errors import RunFailed
from tskd.federated.client_app import build_client_app
from tskd.federated.messages import as_arrays, as_tensors
from tskd.federated.privacy import clipped, epsilon, noisy, seeded
from tskd.federated.secure import MASKED, STEPS, masks
from tskd.federated.server_app import common
from tskd.federated.simulate import Here, numbered
from tskd.federated.strategies import Rounds, build_rounds
from tskd.recipe.schema import FederatedConfig, PrivacyConfig


def round_of(
    *, dead: str = "", min_sites: int = 2, begin: Callable[[int], Any] | None = None, **privacy: Any
) -> tuple[dict[str, torch.Tensor], Rounds, list[tuple[str, Any]]]:
    """A round of three sites: what comes of it, the strategy, and every message's content."""
    sites: Any = {name: {} for name in LEARNED}
    config = FederatedConfig(sites=sites, transfer={}, min_sites=min_sites, privacy=PrivacyConfig(**privacy))
    heard: list[tuple[str, Any]] = []
    app = app_of(config, dead)
    grid = Here(app, range(1, 4), lambda where, content: heard.append((where, opened(content))))
    more = {} if begin is None else {"noise": begin}
    strategy = build_rounds(config, common("test", "terms"), before=0, **more)
    asked = strategy.configure_train(1, as_arrays(BEGUN), ConfigRecord(), grid)
    averaged, _ = strategy.aggregate_train(1, grid.send_and_receive(asked))
    assert averaged is not None
    return as_tensors(averaged), strategy, heard


def app_of(config: FederatedConfig, dead: str = "") -> ClientApp:
    made = {name: MadeUp(name, config, dies_at="learn" if name == dead else "") for name in LEARNED}
    return build_client_app(numbered(sorted(LEARNED), made.__getitem__))


def opened(content: bytes) -> Any:
    message = message_from_proto(ProtoMessage.FromString(content))
    return message.content if message.has_content() else RecordDict()


def mean_of(names: list[str], weights: list[float]) -> dict[str, torch.Tensor]:
    return {
        key: sum(LEARNED[name][key].double() * weight for name, weight in zip(names, weights)) / sum(weights)
        for key in BEGUN
    }


# --- clipping, noise, epsilon ---


@pytest.mark.parametrize("bound", [0.5, 2.0, 100.0])
def test_clipping_is_flowers(bound: float) -> None:
    """Over all tensors together: clipping each by itself would be another. Single numbers as lists of one: Flower's
    leaves an array without sides as it is."""
    for learned in LEARNED.values():
        theirs = [learned[name].reshape(-1).numpy().copy() for name in BEGUN]
        compute_clip_model_update(theirs, [tensor.reshape(-1).numpy() for tensor in BEGUN.values()], bound)
        ours = clipped(learned, BEGUN, bound)
        for name, array in zip(BEGUN, theirs, strict=True):
            np.testing.assert_allclose(ours[name].reshape(-1).numpy(), array, atol=1e-6)


def test_an_update_of_nothing_is_clipped_to_nothing() -> None:
    assert torch.equal(clipped(BEGUN, BEGUN, 1.0)["a"], BEGUN["a"])


def test_noise_is_gaussian_of_the_deviation_and_of_a_round_of_its_own() -> None:
    still = {"a": torch.full((20_000,), 3.0, dtype=torch.float64)}
    drawn = noisy(still, 0.25, seeded(0, 1))["a"]
    assert kstest(((drawn - 3) / 0.25).numpy(), "norm").pvalue > 0.01
    assert torch.equal(drawn, noisy(still, 0.25, seeded(0, 1))["a"])
    assert not torch.equal(drawn, noisy(still, 0.25, seeded(0, 2))["a"])


@pytest.mark.parametrize(
    ("noise", "rounds", "delta"), [(1.0, 5, 1e-5), (0.1, 4, 1e-5), (4.0, 20, 1e-6), (0.01, 4, 1e-5)]
)
def test_epsilon_is_that_of_the_gaussian_mechanism(noise: float, rounds: int, delta: float) -> None:
    """Rounds of Gaussian noise are one Gaussian mechanism of mean sqrt(rounds) / noise, whose delta is known (Balle and
    Wang 2018, arXiv 1805.06530, theorem 8). Little noise too: an accountant on a grid takes all memory there."""
    mean = math.sqrt(rounds) / noise

    def excess(one: float) -> float:
        return float(norm.cdf(mean / 2 - one / mean) - np.exp(one + norm.logcdf(-mean / 2 - one / mean)) - delta)

    assert epsilon(noise, rounds, delta) == pytest.approx(brentq(excess, 1e-3, 5e4), rel=1e-6)


def test_noise_without_a_bound_is_refused() -> None:
    with pytest.raises(ValidationError, match="noise is told in units of clip"):
        PrivacyConfig(noise=1.0)


def test_with_a_bound_all_sites_weigh_the_same() -> None:
    found, _, _ = round_of(clip=1000.0)
    torch.testing.assert_close(found["a"].double(), mean_of(sorted(LEARNED), [1, 1, 1])["a"])


@pytest.mark.parametrize("dead", ["", "south"])
def test_noise_is_of_the_sites_that_answered_and_nothing_else_leaves_with_it(dead: str) -> None:
    """Noise times clip over three sites or two; Flower's wrapper would go by three, which is too little for two."""
    rest = [name for name in sorted(LEARNED) if name != dead]
    half = (1 << 63).to_bytes(8, "little")  # just above the median: as good as no noise
    high = int(norm.cdf(1.0) * 2**64).to_bytes(8, "little")  # one standard deviation
    found = [
        round_of(dead=dead, clip=1e6, noise=1e-6, begin=lambda _, one=one: lambda n: one * (n // 8))
        for one in (half, high)
    ]
    deviation = found[1][0]["a"] - found[0][0]["a"]
    torch.testing.assert_close(deviation, torch.full((3,), 1.0 / len(rest)), rtol=1e-4, atol=1e-5)
    for where, content in found[0][2]:
        if where.startswith("from") and "metrics" in content:
            assert dict(content["metrics"]) == {"images": 1}
    assert found[0][1].configure_evaluate(1, as_arrays(BEGUN), ConfigRecord(), None) == []  # type: ignore[arg-type]


# --- secure aggregation ---


def masked_updates(heard: list[tuple[str, Any]]) -> list[np.ndarray]:
    found = [content[MASKED] for where, content in heard if where.startswith("from") and MASKED in content]
    return [np.concatenate([one.numpy().ravel() for one in arrays.values()]) for arrays in found]


@pytest.mark.parametrize("dead", ["", "west"])
def test_the_sum_under_masks_is_the_weighted_mean_within_the_quantisation_step(dead: str) -> None:
    """Each site's numbers are rounded by less than a step of 2 * 8 / 2**30, and so is their mean, by images."""
    names = [name for name in sorted(LEARNED) if name != dead]
    found, strategy, _ = round_of(dead=dead, secure_aggregation=True)
    weights = [IMAGES[name] for name in names]
    step = 16 / STEPS * len(names) * max(weights) / sum(weights)
    for key, mean in mean_of(names, [float(one) for one in weights]).items():
        assert (found[key].double() - mean).abs().max() <= step + 2**-23
    assert strategy.log[0]["sites"].keys() == set(names)
    assert all(one["up"] > 300 and one["down"] > 300 for one in strategy.log[0]["sites"].values())


def test_the_server_gets_no_number_of_a_single_site() -> None:
    """Masked updates look uniform in the ring, are new at each round, and differ from the update in every number."""
    first, second = (masked_updates(round_of(secure_aggregation=True)[2]) for _ in range(2))
    assert len(first) == len(second) == 3
    for one, other in zip(first, second, strict=True):
        assert (one != other).all()  # the same updates under other masks
        assert one.max() > 2**36  # a plain number is below 2**30
    heard = round_of(secure_aggregation=True)[2]
    plain = [tensor.numpy().tobytes() for learned in LEARNED.values() for tensor in learned.values() if tensor.ndim]
    replies = [content for where, content in heard if where.startswith("from")]
    assert not any(
        len(record) for content in replies for name, record in content.array_records.items() if name != MASKED
    )
    assert not any(one in str(dict(content)).encode() for content in replies for one in plain)


def test_masks_depend_on_every_bit_of_a_key_and_flowers_do_not() -> None:
    """Flower folds a key to the exclusive or of its words: two keys with their words exchanged are one to it."""
    from importlib import import_module

    theirs: Any = import_module("flwr.common.secure_aggregation.secaggplus_utils").pseudo_rand_gen
    key, exchanged = bytes(range(32)), bytes(range(4, 8)) + bytes(range(4)) + bytes(range(8, 32))
    assert all(np.array_equal(a, b) for a, b in zip(theirs(key, 2**32, [(9,)]), theirs(exchanged, 2**32, [(9,)])))
    one, other = masks(key, 2**40, [(500,), ()]), masks(exchanged, 2**40, [(500,), ()])
    assert not np.array_equal(one[0], other[0])
    assert one[1].shape == ()
    assert kstest(one[0] / 2**40, "uniform").pvalue > 0.01
    for module in (
        "flwr.client.mod.secure_aggregation.secaggplus_mod",
        "flwr.server.workflow.secure_aggregation.secaggplus_workflow",
    ):
        assert import_module(module).pseudo_rand_gen is masks


def test_too_few_sites_end_a_masked_round_with_what_to_do() -> None:
    with pytest.raises(RunFailed, match="secure aggregation needs 3 of 3"):
        round_of(dead="west", min_sites=3, secure_aggregation=True)


SETUP: dict[str, Any] = {
    "stage": "setup", "sample_num": 3, "share_num": 3, "threshold": 2, "clipping_range": 1.0, "target_range": STEPS,
    "mod_range": 2**40, "max_weight": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**SETUP, "threshold": 1}, "weaker terms"),
        ({**SETUP, "mod_range": 2**31}, "weaker terms"),
        ({**SETUP, "share_num": 2}, "weaker terms"),
        ({"stage": "unmask", "active_nids": [1, 2], "dead_nids": [2]}, "both secrets"),
        ({"stage": "share_keys"}, "started anew within a masked round"),
        (None, "not masked"),
    ],
)
def test_a_site_takes_no_part_where_the_server_could_read_its_update(
    config: dict[str, Any] | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sites: Any = {name: {} for name in LEARNED}
    federated = FederatedConfig(sites=sites, transfer={}, privacy=PrivacyConfig(secure_aggregation=True))
    told = ConfigRecord({"server-round": 1, **common("test", "terms")})
    content = RecordDict({"config": told, "arrays": as_arrays(BEGUN)})
    if config is not None:
        content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(config)})
    grid = Here(app_of(federated), range(1, 4))
    (reply,) = grid.send_and_receive([Message(content, dst_node_id=1, message_type="train")])
    assert reply.has_error()
    assert said in capsys.readouterr().err
    assert isinstance(grid.contexts[1], Context)


def test_a_site_answers_no_secure_aggregation_that_its_recipe_does_not_ask_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sites: Any = {name: {} for name in LEARNED}
    grid = Here(app_of(FederatedConfig(sites=sites, transfer={})), range(1, 4))
    asked = Message(RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(SETUP)}), dst_node_id=1, message_type="train")
    (reply,) = grid.send_and_receive([asked])
    assert reply.has_error()
    assert "the recipe does not" in capsys.readouterr().err
