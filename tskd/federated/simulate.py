"""A federation on one machine: messages pass as the bytes they would be sent as, here or between Ray's processes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from tskd.federated.client_app import OpenSite

Backend = Literal["here", "ray"]
PARTITION = "partition-id"
"""Key of a node's settings by which Flower's simulation numbers nodes."""
Heard = Callable[[str, bytes], None]
"""Is told every message, as its bytes, with ``to`` or ``from`` and the node it goes to or comes from."""


class Here(Grid):
    """Flower's grid within this process: one site after the other, each message serialised and parsed again.

    An answer that took longer than the round waits is dropped, as a grid of machines would drop it.
    """

    def __init__(self, app: ClientApp, nodes: Sequence[int], heard: Heard | None = None) -> None:
        self.app, self.heard = app, heard
        self.contexts = {
            node: Context(1, node, {PARTITION: place, "num-partitions": len(nodes)}, RecordDict(), {})
            for place, node in enumerate(nodes)
        }
        self._run = Run.create_empty(run_id=1)
        self._replies: dict[str, Message] = {}
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None:
        """Take the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message; Flower's own constructor does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes: here none goes away."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let each node answer at once; its reply waits to be pulled."""
        return [self._pass(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that wait."""
        return [self._replies.pop(one) for one in list(message_ids) if one in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the replies that came in time."""
        replies: list[Message] = []
        for message in messages:
            began = time.monotonic()
            (reply,) = self.pull_messages([self._pass(message)])
            if timeout is None or time.monotonic() - began <= timeout:
                replies.append(reply)
        return replies

    def _pass(self, message: Message) -> str:
        message_id = str(uuid4())
        _identify(message, message_id)
        node = message.metadata.dst_node_id
        reply = self.app(self._over_the_wire(message, f"to {node}"), self.contexts[node])
        _identify(reply, str(uuid4()))
        self._replies[message_id] = self._over_the_wire(reply, f"from {node}")
        return message_id

    def _over_the_wire(self, message: Message, where: str) -> Message:
        content = message_to_proto(message).SerializeToString(deterministic=True)
        if self.heard is not None:
            self.heard(where, content)
        return message_from_proto(ProtoMessage.FromString(content))


def _identify(message: Message, name: str) -> None:
    """Give a message its name: Flower's links do it the same way, there is no other."""
    message.metadata.__dict__["_message_id"] = name


def run_apps(
    server: ServerApp, client: ClientApp, *, sites: int, backend: Backend = "here", heard: Heard | None = None
) -> None:
    """Run a ServerApp and as many nodes of the ClientApp as there are sites, to the end."""
    if backend == "here":
        nodes = range(1, sites + 1)
        server(Here(client, nodes, heard), Context(1, SUPERLINK_NODE_ID, {}, RecordDict(), {}))
        return
    os.environ |= {"RAY_worker_niceness": "0"}  # before the import: at Ray's own 15 a busy machine starves the sites
    from flwr.simulation import run_simulation

    quiet: Any = {"logging_level": logging.ERROR, "log_to_driver": True, "include_dashboard": False}
    resources = {"init_args": quiet, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, num_supernodes=sites, backend_config=resources)


def numbered(names: Sequence[str], open_site: Callable[[str], Any]) -> OpenSite:
    """Return what opens the site that stands at a node's number among the names."""

    def of_context(context: Context) -> Any:
        return open_site(names[int(context.node_config[PARTITION])])

    return of_context
