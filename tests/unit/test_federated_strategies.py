"""The rounds: who is asked, how replies become an average, who is left out, and what is written down of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message

from tskd.errors import RunFailed
from tskd.federated.messages import as_arrays, as_tensors, failed, reply
from tskd.federated.server_app import common
from tskd.federated.simulate import Here
from tskd.federated.strategies import Rounds, build_rounds
from tskd.recipe.schema import FederatedConfig

Answer = Callable[[Message], Message]
W = torch.tensor([1.0, 2.0])


def settings(**changes: Any) -> FederatedConfig:
    sites: Any = {"north": {}, "south": {}, "west": {}}
    return FederatedConfig(**{"sites": sites, "transfer": {}, "min_sites": 1, "timeout": 5.0, **changes})


def federation(answers: Sequence[Answer], **changes: Any) -> tuple[Rounds, Here]:
    """A strategy, and a grid of nodes that answer so."""

    def app(message: Message, context: Context) -> Message:
        return answers[context.node_id - 1](message)

    strategy = build_rounds(settings(**changes), common("test", "terms"), before=0)
    return strategy, Here(app, range(1, len(answers) + 1))  # type: ignore[arg-type]


def says(site: str, value: Any, images: int, **numbers: float) -> Answer:
    arrays = ArrayRecord({"w": Array(np.asarray(value, np.float32))})
    return lambda message: reply(message, site, arrays, {"images": images, **numbers})


def one_round(strategy: Rounds, grid: Here) -> torch.Tensor:
    asked = strategy.configure_train(1, as_arrays({"w": W}), ConfigRecord(), grid)
    averaged, _ = strategy.aggregate_train(1, grid.send_and_receive(asked, timeout=strategy.config.timeout))
    assert averaged is not None
    return as_tensors(averaged)["w"]


def test_the_average_weighs_by_images() -> None:
    """(1 * 10 + 3 * 20 + 1 * 40) / 70 by hand, not the plain mean 1.67."""
    strategy, grid = federation([says("north", [1, 1], 10), says("south", [3, 0], 20), says("west", [1, 7], 40)])
    torch.testing.assert_close(one_round(strategy, grid), torch.tensor([110 / 70, 290 / 70]))


def test_the_average_is_the_same_to_the_last_bit_in_whichever_order_sites_answer() -> None:
    """Sums of floats depend on the order; values over ten orders of magnitude make that show."""
    draws = np.random.default_rng(0).normal(size=(3, 2)) * 10.0 ** np.arange(-5, 5, 4)[:, None]
    answers = [
        says(name, value, 7 + place) for place, (name, value) in enumerate(zip(("north", "south", "west"), draws))
    ]
    orders = [[0, 1, 2], [2, 1, 0], [1, 2, 0]]
    found = [one_round(*federation([answers[place] for place in order])) for order in orders]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def broken(message: Message) -> Message:
    return failed(message)


@pytest.mark.parametrize(
    "odd",
    [
        broken,
        says("west", [1, math.inf], 5),
        says("west", [1, 2, 3], 5),
        says("nowhere", [9, 9], 5),
        says("west", 3, 5),
    ],
    ids=["dead", "not finite", "another shape", "a stranger", "a scalar"],
)
def test_a_site_that_fails_or_sends_nonsense_is_left_out_and_the_round_goes_on(
    odd: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy, grid = federation([says("north", [2, 2], 1), says("south", [4, 4], 1), odd])
    assert one_round(strategy, grid).tolist() == [3, 3]
    assert set(strategy.log[0]["sites"]) == {"north", "south"}
    assert "left out" in (said := capsys.readouterr().err) or "no answer of west" in said


def test_a_site_that_answers_too_late_is_left_out() -> None:
    def late(message: Message) -> Message:
        import time

        time.sleep(0.3)
        return says("west", [90, 90], 1)(message)

    strategy, grid = federation([says("north", [2, 2], 1), says("south", [4, 4], 1), late], timeout=0.2)
    assert one_round(strategy, grid).tolist() == [3, 3]


def test_too_few_sites_end_the_round_with_what_to_do() -> None:
    with pytest.raises(RunFailed, match=r"round 1: 1 of 3 sites answered, and federated.min_sites is 2"):
        one_round(*federation([says("north", [2, 2], 1), broken, broken], min_sites=2))


def test_two_nodes_that_call_themselves_by_one_name_are_a_mistake_that_is_told() -> None:
    with pytest.raises(RunFailed, match="two nodes answer as site north"):
        one_round(*federation([says("north", [2, 2], 1), says("north", [4, 4], 1), says("west", [4, 4], 1)]))


def test_what_is_sent_is_counted_site_by_site_both_ways() -> None:
    strategy, grid = federation([says("north", [2, 2], 3, loss=0.25), says("south", [4, 4], 1), broken])
    one_round(strategy, grid)
    asked = strategy.configure_evaluate(1, as_arrays({"w": W}), ConfigRecord(), grid)
    before = {site: dict(one) for site, one in strategy.log[0]["sites"].items()}
    strategy.aggregate_evaluate(1, grid.send_and_receive(asked))
    (entry,) = strategy.log
    assert entry["sites"]["north"]["loss"] == 0.25
    assert all(entry["sites"][site][way] > before[site][way] > 100 for site in before for way in ("up", "down"))


def test_the_validation_score_is_weighted_too_and_there_is_none_where_a_site_has_none() -> None:
    strategy, grid = federation(
        [says("north", W, 3, score=0.8), says("south", W, 1, score=0.4), says("west", W, 4, score=0)]
    )
    one_round(strategy, grid)
    strategy.aggregate_evaluate(
        1, grid.send_and_receive(strategy.configure_evaluate(1, as_arrays({"w": W}), ConfigRecord(), grid))
    )
    assert strategy.log[0]["score"] == pytest.approx((3 * 0.8 + 0.4) / 8)
    strategy, grid = federation([says("north", W, 3, score=0.8), says("south", W, 1, score=math.nan), broken])
    one_round(strategy, grid)
    strategy.aggregate_evaluate(
        1, grid.send_and_receive(strategy.configure_evaluate(1, as_arrays({"w": W}), ConfigRecord(), grid))
    )
    assert strategy.log[0]["score"] is None


def test_fedprox_tells_the_sites_its_weight_and_fedavg_does_not() -> None:
    heard: list[Any] = []

    def listens(message: Message) -> Message:
        heard.append(message.content["config"].get("proximal-mu"))
        return says(f"{('north', 'south', 'west')[len(heard) % 3]}", W, 1)(message)

    one_round(*federation([listens] * 3, strategy="fedprox", proximal=0.3))
    one_round(*federation([listens] * 3, strategy="fedavg", proximal=0.3))
    assert heard == [0.3] * 3 + [None] * 3
