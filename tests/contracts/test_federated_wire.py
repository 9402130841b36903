"""The wire between server and sites: who is let in, what is redelivered, who may speak for whom. Nothing is trained."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from tests.federations import IMAGES, MadeUp
from tskd.errors import UserError
from tskd.federated import link as link_module
from tskd.federated import node as node_module
from tskd.federated.client_app import build_client_app
from tskd.federated.keys import (
    CERTIFICATE,
    make_certificate,
    make_site_key,
    read_certificate,
    read_site_key,
    registered,
)
from tskd.federated.link import Door, Link, serving
from tskd.federated.messages import ARRAYS, CONFIG, METRICS, SITE, as_arrays, as_tensors
from tskd.federated.node import Node, attend
from tskd.federated.server_app import common
from tskd.federated.strategies import build_rounds
from tskd.recipe.schema import FederatedConfig, PrivacyConfig

SITES = ("north", "south")
LAST = "evaluate.result"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everyone's keys in one folder: tests have no secrets."""
    folder = tmp_path_factory.mktemp("keys")
    make_certificate(folder, ["localhost", "127.0.0.1"])
    for site in (*SITES, "stranger"):
        make_site_key(folder, site)
    return folder


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "PAUSE", 0.05)
    monkeypatch.setattr(link_module, "WAIT", 0.05)
    monkeypatch.setattr(link_module, "GRACE_SECONDS", 1)


@dataclass
class Server:
    link: Link
    port: int

    def ask(self, value: float, kind: str = "train", *, timeout: float = 60) -> dict[str, float]:
        """Send a number to all, and return what each site has answered by its name."""
        self.wait_for(1)
        arrays = ArrayRecord({"x": Array(np.full(3, value))})
        asked = [
            Message(RecordDict({ARRAYS: arrays}), node, kind) for node in sorted(self.link.get_node_ids())
        ]  # fmt: skip
        replies = [one for one in self.link.send_and_receive(asked, timeout=timeout) if not one.has_error()]
        return {one.content[CONFIG][SITE]: float(one.content[ARRAYS]["x"].numpy()[0]) for one in replies}

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + 60
        while len(list(self.link.get_node_ids())) < count:
            assert time.monotonic() < until, "no site has come"
            time.sleep(0.05)


@pytest.fixture
def server(keys: Path) -> Iterator[Server]:
    with open_server(keys) as found:
        yield found


class open_server:
    """A server on a free port, or on the one that another had."""

    def __init__(self, keys: Path, port: int = 0) -> None:
        self.sockets: list[object] = []
        self.inner = serving(Door("127.0.0.1", port, keys), SITES)

    def __enter__(self) -> Server:
        said: list[str] = []
        before, link_module.say = link_module.say, said.append
        try:
            link = self.inner.__enter__()
        finally:
            link_module.say = before
        return Server(link, int(said[-1].partition("127.0.0.1:")[2].partition(",")[0]))

    def __exit__(self, *exc: object) -> None:
        self.inner.__exit__(None, None, None)


@dataclass
class Site:
    """A site in a thread, that answers a number with twice it."""

    name: str
    keys: Path
    port: int
    named: str = ""
    before: Callable[[Message], None] = lambda _: None
    app: ClientApp | None = None
    """Answers in its place."""
    seen: list[float] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        certificate = read_certificate(self.keys / CERTIFICATE)
        self.node = Node(f"127.0.0.1:{self.port}", certificate, read_site_key(self.keys / f"{self.name}.key"))
        self.thread = threading.Thread(target=self._attend, daemon=True)

    def start(self) -> Site:
        self.thread.start()
        return self

    def _attend(self) -> None:
        app = ClientApp()
        app.train()(self._answer)
        app.evaluate("result")(self._answer)
        try:
            attend(self.node, self.app or app, last=LAST)
        except BaseException as error:  # noqa: BLE001 told to the test, which runs in another thread
            self.failed.append(error)

    def _answer(self, message: Message, context: Context) -> Message:
        self.before(message)
        x = message.content[ARRAYS]["x"].numpy()
        self.seen.append(float(x[0]))
        content: Mapping[str, object] = {
            ARRAYS: ArrayRecord({"x": Array(2 * x)}), CONFIG: ConfigRecord({SITE: self.named or self.name}),
            METRICS: MetricRecord({"images": 1}),
        }  # fmt: skip
        return Message(RecordDict(dict(content)), reply_to=message)


def test_sites_with_registered_keys_answer_and_end_after_the_last_message(server: Server, keys: Path) -> None:
    sites = [Site(name, keys, server.port).start() for name in SITES]
    server.wait_for(2)
    assert server.ask(4.0) == {"north": 8.0, "south": 8.0}
    assert server.ask(5.0, LAST) == {"north": 10.0, "south": 10.0}
    for site in sites:
        site.thread.join(30)
        assert not site.thread.is_alive()
        assert not site.failed
    assert list(server.link.get_node_ids()) == []  # they have said goodbye


def test_a_key_that_is_not_registered_is_refused(server: Server, keys: Path) -> None:
    stranger = Site("stranger", keys, server.port).start()
    stranger.thread.join(60)
    (error,) = stranger.failed
    assert isinstance(error, UserError)
    assert "does not know this site's key" in str(error)
    assert list(server.link.get_node_ids()) == []


def test_a_request_without_a_signature_or_with_anothers_is_refused(
    server: Server, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """South signs what claims to be north's node: it may not fetch north's messages."""
    north, south = (Site(name, keys, server.port) for name in SITES)
    north.node.activate()
    south.node.activate()
    south.node.number = north.node.number
    with pytest.raises(node_module.Forgotten):
        south.node.receive()
    with httpx.Client(verify=str(keys / CERTIFICATE)) as bare:
        url = f"https://127.0.0.1:{server.port}/v1/fleet/pull-messages"
        headers = {"content-type": PROTOBUF_MEDIA_TYPE}
        assert bare.post(url, content=b"", headers=headers).status_code == 401
        monkeypatch.setattr(link_module, "MOST_BYTES", 1000)
        assert bare.post(url, content=bytes(1001), headers=headers).status_code == 413  # without being read


@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/runtime/pull-messages", "/docs", "/openapi.json"])
def test_no_other_interface_of_the_superlink_is_on_the_network(server: Server, keys: Path, path: str) -> None:
    """Who could start a run could make every site execute code."""
    with httpx.Client(verify=str(keys / CERTIFICATE)) as client:
        url, headers = f"https://127.0.0.1:{server.port}{path}", {"content-type": PROTOBUF_MEDIA_TYPE}
        assert client.post(url, content=b"", headers=headers).status_code == 404


def test_without_tls_nothing_is_answered(server: Server) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://127.0.0.1:{server.port}/v1/fleet/pull-messages", content=b"")


def test_a_server_with_another_certificate_is_not_trusted(server: Server, keys: Path, tmp_path: Path) -> None:
    shutil.copy(keys / "north.key", tmp_path)
    make_certificate(tmp_path, ["127.0.0.1"])  # for the same address, and not the one that was handed over
    site = Site("north", tmp_path, server.port).start()
    site.thread.join(60)
    (error,) = site.failed
    assert isinstance(error, UserError)
    assert "certificate" in str(error)


def test_a_server_under_a_name_that_its_certificate_is_not_for_is_not_trusted(keys: Path, tmp_path: Path) -> None:
    shutil.copytree(keys, tmp_path / "keys")
    for name in (CERTIFICATE, "server.key"):
        (tmp_path / "keys" / name).unlink()
    make_certificate(tmp_path / "keys", ["fed.example.org"])
    with open_server(tmp_path / "keys") as server:
        site = Site("north", tmp_path / "keys", server.port).start()
        site.thread.join(60)
    (error,) = site.failed
    assert "certificate" in str(error)


def test_a_site_cannot_answer_in_the_name_of_another(server: Server, keys: Path, capsys: pytest.CaptureFixture) -> None:
    """South alone says that it is north, which would weigh north's tensors wrongly or stop the round."""
    sites = [Site("north", keys, server.port).start(), Site("south", keys, server.port, named="north").start()]
    server.wait_for(2)
    assert server.ask(1.0) == {"north": 2.0}
    assert "south has answered in the name of another site" in capsys.readouterr().err
    assert [site.seen for site in sites] == [[1.0], [1.0]]


def test_what_a_killed_site_has_not_answered_is_given_to_it_again(server: Server, keys: Path) -> None:
    """Killed: no goodbye is said, and the message was fetched. The round has the site's answer all the same."""
    killed = Site("north", keys, server.port)
    killed.node.activate()
    answers: list[dict[str, float]] = []
    asking = threading.Thread(target=lambda: answers.append(server.ask(3.0)))
    asking.start()
    until = time.monotonic() + 60
    while killed.node.receive() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    Site("north", keys, server.port).start()
    asking.join(60)
    assert answers == [{"north": 6.0}]


def test_a_site_that_is_killed_and_stays_away_holds_the_round_up_no_longer_than_its_sign_of_life_is_good_for(
    server: Server, keys: Path
) -> None:
    killed = Site("south", keys, server.port)
    killed.node.activate()
    Site("north", keys, server.port).start()
    server.wait_for(2)

    def lapse() -> None:  # what a minute without a sign of life does
        time.sleep(1)
        server.link.state.nodes[killed.node.number].online_until = time.time() - 1

    threading.Thread(target=lapse).start()
    began = time.monotonic()
    assert server.ask(1.0, timeout=120) == {"north": 2.0}
    assert time.monotonic() - began < 60


def test_a_slow_site_does_not_hold_up_the_others_and_what_it_sends_late_is_not_taken(
    server: Server, keys: Path
) -> None:
    may_answer = threading.Event()
    slow = Site("south", keys, server.port, before=lambda _: may_answer.wait(60)).start()
    Site("north", keys, server.port).start()
    server.wait_for(2)
    assert server.ask(1.0, timeout=3) == {"north": 2.0}
    may_answer.set()
    assert server.ask(2.0) == {"north": 4.0, "south": 4.0}
    assert slow.seen == [1.0, 2.0]


def test_a_site_goes_on_with_a_server_that_was_started_anew(keys: Path) -> None:
    with open_server(keys) as server:
        site = Site("north", keys, server.port).start()
        assert server.ask(1.0) == {"north": 2.0}
    with open_server(keys, server.port) as again:
        assert again.ask(2.0) == {"north": 4.0}
    assert not site.failed


def test_the_sum_under_masks_crosses_the_wire_in_pieces(
    server: Server, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four exchanges, between which a site keeps its keys; a million masked numbers are 8 MB, more than a request may
    hold."""
    monkeypatch.setattr(link_module, "MOST_BYTES", 6 * 2**20)
    sites: Any = {name: {} for name in SITES}
    config = FederatedConfig(sites=sites, transfer={}, privacy=PrivacyConfig(secure_aggregation=True))
    learned = {name: {"a": torch.full((1_000_000,), value)} for name, value in (("north", 1.0), ("south", -3.0))}
    for name in SITES:
        made = MadeUp(name, config, learned=learned[name])
        Site(name, keys, server.port, app=build_client_app(lambda _, one=made: one)).start()
    server.wait_for(2)
    strategy = build_rounds(config, common("test", "terms"), before=0)
    for number in (1, 2):  # the second with new keys
        begun = as_arrays({"a": torch.zeros(1_000_000)})
        asked = strategy.configure_train(number, begun, ConfigRecord(), server.link)
        averaged, _ = strategy.aggregate_train(number, server.link.send_and_receive(asked))
        assert averaged is not None
        mean = (IMAGES["north"] - 3 * IMAGES["south"]) / (IMAGES["north"] + IMAGES["south"])
        np.testing.assert_allclose(as_tensors(averaged)["a"].numpy(), mean, atol=1e-6)


def test_private_keys_are_readable_by_their_owner_alone_and_nothing_is_written_over(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        public, private = make_site_key(tmp_path, "north")
    finally:
        os.umask(before)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"PRIVATE" not in public.read_bytes()
    kept = private.read_bytes()
    with pytest.raises(UserError, match="there already"):
        make_site_key(tmp_path, "north")
    assert private.read_bytes() == kept


def test_keys_that_cannot_be_used_are_told_with_the_file(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"west\.pub: there is no such file"):
        registered(keys, ["north", "west"])
    shutil.copytree(keys, tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "north.pub", tmp_path / "south.pub")
    with pytest.raises(UserError, match="the same key"):
        registered(tmp_path, SITES)
    shutil.copy(tmp_path / "north.key", tmp_path / "south.pub")  # a slip that would publish a secret
    with pytest.raises(UserError, match=r"south\.pub is not"):
        registered(tmp_path, SITES)
    (tmp_path / CERTIFICATE).write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(UserError, match=r"server\.crt is not"):
        read_certificate(tmp_path / CERTIFICATE)
