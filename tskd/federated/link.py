"""The server's end of the wire: Flower's SuperLink in this process, with the part that sites talk to and no other.

Flower's own command opens the same port to whoever may start a run, and a run brings code that sites execute. Here no
code travels: each side has installed its own, and of the SuperLink's interfaces only the sites' one is on the network.
Its state is in memory; what must outlast a restart is kept by ``server_app``.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from flwr.app import Error, Message
from flwr.app.message import make_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.date import now
from flwr.supercore.error import http_error_translator
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import HttpGrid
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router
from flwr.superlink.servicer.runtime import runtime_handlers
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

from tskd.console import say, warn
from tskd.errors import RunFailed, UserError
from tskd.federated.keys import registered, require_certificate
from tskd.federated.messages import CONFIG, SITE
from tskd.machine.listening import listening, named

WAIT = 0.5
"""Seconds between two looks whether an answer has come."""
START_SECONDS = 60
"""That the socket may take to be ready."""
GRACE_SECONDS = 5
"""That requests under way have when the server ends."""
MOST_BYTES = 64 * 2**20
"""Of one request: Flower sends arrays in pieces of 5 MB."""
ANOTHER_S = Error(ErrorCode.UNKNOWN, "Another site's name.")


class Nodes(InMemoryLinkState):
    """Who is connected, and what waits for whom. A site that comes back is given again what it has not answered."""

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """Take a node as connected, although it seems to be: its process may have been killed and started anew."""
        with self.lock:
            self.deactivate_node(node_id)
            for message_id, message in self.message_ins_store.items():
                if message.metadata.dst_node_id == node_id and message_id not in self.message_ins_id_to_message_res_id:
                    message.metadata.delivered_at = ""
            return bool(super().activate_node(node_id, heartbeat_interval))

    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """Return what has come, also of a site that has left since: it had answered before."""
        with self.lock:
            for message_id in self.message_ins_id_to_message_res_id.keys() & message_ids:
                node = self.nodes[self.message_ins_store[message_id].metadata.dst_node_id]
                node.online_until = max(node.online_until, now().timestamp() + START_SECONDS)
            return list(super().get_message_res(message_ids, run_id))


class Link(HttpGrid):
    """Flower's grid over machines; it asks the SuperLink's state, which is in this process, without a socket."""

    def __init__(self, sites: Mapping[str, bytes]) -> None:
        super().__init__(token="unused: no request of the server leaves its process")
        self.state = Nodes(NoOpFederationManager(), ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME).store())
        self.names = {
            self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0): site for site, key in sites.items()
        }
        """Number of a node -> the site whose key it has."""
        self._asked: dict[str, int] = {}
        self._connected: frozenset[str] = frozenset()
        run_id = self.state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )  # fmt: skip
        (run,) = self.state.get_run_info(run_ids=[run_id])
        self.set_run(run)
        assert run.primary_task_id is not None
        (task,) = self.state.get_tasks(task_ids=[run.primary_task_id])
        self.state.claim_task(task.task_id)
        self.state.activate_task(task.task_id)
        self.heartbeat = HeartbeatSender(lambda: self.state.acknowledge_task_heartbeat(task.task_id))
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, run_id, SUPERLINK_NODE_ID
        self._here: Any = SimpleNamespace(
            **{name: partial(handler, state=self.state, task=task) for name, handler in _HANDLERS.items()}
        )

    @property
    def _runtime_client(self) -> Any:
        """What Flower's grid sends its requests to: here the functions that would answer them."""
        return self._here

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are connected; say who has come and gone."""
        found = [node for node in super().get_node_ids() if node in self.names]
        names = frozenset(self.names[node] for node in found)
        if names != self._connected:
            self._connected = names
            missing = ", ".join(sorted(set(self.names.values()) - names))
            there = ", ".join(sorted(names)) or "no site"
            say(f"federated: connected: {there}{f'; not: {missing}' if missing else ''}")
        return found

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send, and remember who was asked what."""
        sent = list(messages)
        found = list(super().push_messages(sent))
        self._asked.update({name: one.metadata.dst_node_id for name, one in zip(found, sent, strict=True) if name})
        return [name for name in found if name]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what has come; an error in place of what a site has sent in the name of another."""
        return [self._judged(one) for one in super().pull_messages(list(message_ids))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the answers that came in time; what was not answered by then is asked no longer."""
        waiting = set(self.push_messages(messages))
        until = None if timeout is None else time.monotonic() + timeout
        found: list[Message] = []
        while waiting and (until is None or time.monotonic() < until):
            new = list(self.pull_messages(waiting))
            found += new
            waiting -= {one.metadata.reply_to_message_id for one in new}
            time.sleep(WAIT if waiting else 0)
        self.state.delete_messages(waiting)
        self._asked.clear()
        return found

    def _judged(self, reply: Message) -> Message:
        if reply.has_error():
            return reply
        site = self.names.get(self._asked.get(reply.metadata.reply_to_message_id, -1))  # not what the reply claims
        config: Any = reply.content.get(CONFIG, {})
        if site is not None and config.get(SITE, site) == site:
            return reply
        warn(f"federated: {site or 'a site'} has answered in the name of another site; its answer is left out")
        return make_message(reply.metadata, error=ANOTHER_S)


_HANDLERS: Mapping[str, Any] = {
    "GetNodes": runtime_handlers.get_nodes,
    "PushMessages": runtime_handlers.push_messages,
    "PullMessages": runtime_handlers.pull_messages,
    "PushObject": runtime_handlers.push_object,
    "PullObject": runtime_handlers.pull_object,
    "ConfirmMessageReceived": runtime_handlers.confirm_message_received,
}
"""Flower's functions behind the requests of a grid."""


@dataclass(frozen=True)
class Door:
    """Where the server listens, and the folder of its certificate, key and the sites' public keys."""

    host: str
    port: int
    keys: Path


@contextmanager
def serving(door: Door, sites: Iterable[str]) -> Iterator[Link]:
    """Open the port to the sites whose keys are registered, by TLS alone; yield the grid that reaches them."""
    certificate, key = require_certificate(door.keys)
    link = Link(registered(door.keys, sorted(sites)))
    with listening(door.host, door.port) as listener:
        server = _server(link, certificate, key)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        link.heartbeat.start()
        try:
            _wait_for(server, thread)
            say(f"federated: listening on {named(listener)}, by TLS (stop with Ctrl-C)")
            yield link
        finally:
            link.heartbeat.stop()
            server.should_exit = True
            thread.join(2 * GRACE_SECONDS)


def create_app(link: Link) -> FastAPI:
    """Return the web application that sites talk to: Flower's Fleet interface, every request of it signed."""
    states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, link.state.federation_manager, ObjectStoreFactory())
    states.state_instance = link.state
    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(BaseHTTPMiddleware, dispatch=_of_sane_size),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
        ],
    )  # fmt: skip
    app.state.linkstate_factory, app.state.enable_supernode_auth = states, True
    app.include_router(router)
    return app


async def _of_sane_size(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Refuse a body before it is read that no site sends: reading comes before the signature is looked at."""
    said = request.headers.get("content-length", "")
    if not said.isdecimal() or int(said) > MOST_BYTES:
        return Response(status_code=413)
    return await call_next(request)


def _server(link: Link, certificate: Path, key: Path) -> uvicorn.Server:
    config = uvicorn.Config(
        create_app(link), log_level="critical", access_log=False, server_header=False, ws="none", lifespan="off",
        ssl_certfile=certificate, ssl_keyfile=key, proxy_headers=False, timeout_graceful_shutdown=GRACE_SECONDS,
    )  # fmt: skip
    try:
        config.load()
    except ssl.SSLError as error:
        raise UserError(f"{key} is not the key of {certificate}. Take both from one `tskd federate keys`.") from error
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return uvicorn.Server(config)


def _wait_for(server: uvicorn.Server, thread: threading.Thread) -> None:
    until = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until:
            raise RunFailed("The server could not be started on its port; nothing was sent.")
        time.sleep(0.05)
