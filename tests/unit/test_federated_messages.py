"""What may be in a message, how answers are packed, and which replies are refused: by hand-made messages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from tskd.errors import UserError
from tskd.federated.answers import packed, unpacked
from tskd.federated.messages import SAID_OF_ERRORS, as_arrays, as_tensors, failed, opened, reply, size
from tskd.federated.run import weights_of
from tskd.federated.simulate import Here
from tskd.federated.site import Task
from tskd.models.ensemble import probabilities_of

SITES = frozenset({"north", "south"})


@pytest.fixture
def asked() -> Message:
    """A message of the server to a node."""
    Here(lambda message, context: message, [1])  # type: ignore[arg-type]  # it gives this process Flower's identity
    return Message(RecordDict({"config": ConfigRecord({"server-round": 1})}), dst_node_id=1, message_type="train")


def content(**changes: object) -> RecordDict:
    records = {"config": ConfigRecord({"site": "north"}), "metrics": MetricRecord({"images": 3, "loss": 0.5})}
    return RecordDict({**records, **changes})  # type: ignore[dict-item]


def test_tensors_arrive_bit_by_bit_in_their_type() -> None:
    sent = {"b": torch.randn(2, 3), "a": torch.randn(4).half(), "scalar": torch.tensor(7)}
    found = as_tensors(as_arrays(sent))
    assert list(found) == ["a", "b", "scalar"]  # one order, whoever sends
    assert all(torch.equal(found[name], one) and found[name].dtype == one.dtype for name, one in sent.items())


@pytest.mark.parametrize("name", ["dice_of_case_7", "n_cases", "path"])
def test_a_site_can_send_no_number_that_is_not_on_the_list(asked: Message, name: str) -> None:
    with pytest.raises(AssertionError, match="may not leave"):
        reply(asked, "north", None, {"images": 3, name: 0.5})


def test_an_error_says_nothing_but_that_it_was_one(asked: Message) -> None:
    assert failed(asked).error.reason == SAID_OF_ERRORS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": ArrayRecord({"pixels": Array(np.zeros(3))})}, "records"),
        ({"config": ConfigRecord({"site": "elsewhere"})}, "does not name"),
        ({"config": ConfigRecord({"site": "north", "path": "/data/patients"})}, "does not name"),
        ({"metrics": MetricRecord({"images": 3, "cases": 2})}, "no site sends"),
        ({"metrics": MetricRecord({"images": [3, 4]})}, "no site sends"),
        ({"metrics": MetricRecord({"loss": 0.1})}, "number of images"),
        ({"metrics": MetricRecord({"images": math.inf})}, "number of images"),
        ({"arrays": ArrayRecord({"w": Array(np.array([1.0, math.nan]))})}, "not finite"),
    ],
)
def test_replies_that_no_site_of_the_federation_sends_are_refused(
    asked: Message, changes: dict[str, object], said: str
) -> None:
    """One poisoned value would be in the average, and so in every site's teacher, from then on."""
    with pytest.raises(UserError, match=said):
        opened(Message(content(**changes), reply_to=asked), sites=SITES)
    assert opened(Message(content(), reply_to=asked), sites=SITES).numbers == {"images": 3, "loss": 0.5}


def test_bytes_are_those_of_the_numbers_and_little_more() -> None:
    """A megabyte of float32 is a megabyte: a count of elements, or of tensors, would be far from it."""
    sent = size(RecordDict({"arrays": as_arrays({"w": torch.zeros(250_000)})}))
    assert 1_000_000 < sent < 1_001_000


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "x" * 81, "A B"])
def test_a_server_cannot_choose_where_a_site_writes(name: str) -> None:
    with pytest.raises(UserError, match="nothing was done"):
        Task(name, 1)


def test_answers_in_half_precision_are_the_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float16)
    sent = packed(logits, "float16")
    assert sent["logits"] is logits
    torch.testing.assert_close(unpacked(sent, slice(1, 3), 2), probabilities_of(torch.from_numpy(logits[1:])))


def test_the_top_class_keeps_its_probability_and_the_others_share_the_rest() -> None:
    """Logits 0 (background), 2 and -1 by hand: e^2 / (1 + e^2 + e^-1) = 0.8438 for class 1."""
    logits = np.array([2.0, -1.0], np.float16).reshape(1, 2, 1, 1)
    sent = packed(logits, "top")
    assert (sent["classes"].item(), sent["probabilities"].item()) == (1, round(255 * 0.84380))
    top = 215 / 255
    found = unpacked(sent, slice(None), 2).flatten().tolist()
    assert found == pytest.approx([(1 - top) / 2, top, (1 - top) / 2])


def test_sites_answers_weigh_by_their_validation_and_alike_where_one_has_none() -> None:
    assert weights_of({"north": 0.6, "south": 0.2}) == pytest.approx({"north": 0.75, "south": 0.25})
    assert weights_of({"north": 0.6, "south": math.nan}) == {"north": 0.5, "south": 0.5}
