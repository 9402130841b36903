"""A site's end of the wire: it asks the server for work and answers, as Flower's SuperNode does, with our ClientApp.

Flower's own command fetches the code that it runs from the server. Here nothing is fetched but messages: what a site
does is what is installed there.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node as NodeNumber
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from tskd.console import say, warn
from tskd.errors import RunFailed, UserError, name_of
from tskd.federated.keys import NodeKey

PAUSE = 1.0
"""Seconds between two requests where there is no work, or the server does not answer."""
_BUSY = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)
Answer = TypeVar("Answer")


class Forgotten(Exception):
    """The server does not know this connection: it was started anew since."""


class Outdated(Exception):
    """The server no longer wants what this is about."""


class Node:
    """The connection of one site to the server at an address ``HOST:PORT``, whose certificate it has been given."""

    def __init__(self, address: str, certificate: bytes, key: NodeKey) -> None:
        self.address, self._key = address, key
        self._client = FleetHttpClient.from_server_address(
            address, False, certificate,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key.private, key.public),
            ],
        )  # fmt: skip
        self.number = 0

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Be known to the server as connected; it learns when this ends, and within a minute when the process dies."""
        heartbeat = HeartbeatSender(self._beat)
        self.activate()
        heartbeat.start()
        try:
            yield
        finally:
            heartbeat.stop()
            self._leave()

    def activate(self) -> None:
        """Say that the site is there, waiting for a server that is not; UserError where the server refuses the site."""
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(self._key.public), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        try:
            self.number = self._ask(self._client.ActivateNode, request).node_id
        except Forgotten as error:
            raise UserError(
                f"The server at {self.address} does not accept this site's signature. The clocks of both machines may "
                "differ by five minutes at most; set this one's."
            ) from error
        except Outdated as error:
            raise UserError(
                f"The server at {self.address} does not know this site's key: nothing was sent. Give whoever runs it "
                "the site's .pub file, for its folder of keys; it is read when the server starts."
            ) from error

    def receive(self) -> Message | None:
        """Return the next message; None where there is none."""
        response = self._ask(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return None
        metadata = message_from_proto(response.messages_list[0]).metadata
        pull = make_pull_object_fn_protobuf(partial(self._ask, self._client.PullObject), self._node, metadata.run_id)
        tree = response.message_object_trees[0]
        message = pull_and_inflate_object_from_tree(tree, pull, lambda _: None, return_type=Message)
        message.metadata.__dict__["_message_id"] = tree.object_id  # what is sent does not hold its own name
        return message

    def send(self, reply: Message) -> None:
        """Send a reply; only then the message that it answers is taken as received, so that it outlives a crash."""
        run_id = reply.metadata.run_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
            response = self._ask(self._client.PushMessages, request)
            push = make_push_object_fn_protobuf(
                partial(self._ask, self._client.PushObject), self._node, run_id, response.session_id
            )
            push_objects(get_all_nested_objects(reply), push, object_ids_to_push=set(response.objects_to_push))
        received = reply.metadata.reply_to_message_id
        self._ask(
            self._client.ConfirmMessageReceived,
            ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=received),
        )

    @property
    def _node(self) -> NodeNumber:
        return NodeNumber(node_id=self.number)

    def _ask(self, method: Callable[[Any], Answer], request: Any) -> Answer:
        """Return the server's answer, asked until it comes: a server may be away for hours."""
        silent = False
        while True:
            try:
                answer = method(request)
            except httpx.TransportError as error:
                self._require_trusted(error)
                if not silent:
                    warn(f"the server at {self.address} does not answer ({name_of(error)}); this site keeps asking")
                silent = True
            except httpx.HTTPStatusError as error:
                _raise_refusal(error, self.address)
            else:
                if silent:
                    say(f"the server at {self.address} answers again")
                return answer
            time.sleep(PAUSE)

    def _require_trusted(self, error: httpx.TransportError) -> None:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise UserError(
                    f"The server at {self.address} does not show the certificate that this site was given "
                    f"({cause.verify_message}): nothing was sent. Ask whoever runs the server for its server.crt, and "
                    "connect by a name or address that the certificate is for."
                ) from error
            if isinstance(cause, ssl.SSLError):
                raise UserError(f"What answers at {self.address} does not speak TLS; nothing was sent.") from error
            cause = cause.__cause__ or cause.__context__

    def _beat(self) -> bool:
        try:
            request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
            return bool(self._client.SendNodeHeartbeat(request).success)
        except httpx.HTTPError:  # the loop that asks for work meets it too, and says so
            return False

    def _leave(self) -> None:
        with suppress(httpx.HTTPError):  # a server that is gone needs no goodbye
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.number))
        self._client.close()


def _raise_refusal(error: httpx.HTTPStatusError, address: str) -> None:
    """Raise what a refusal means; return where the server is only busy."""
    code = error.response.status_code
    if code in _BUSY:
        return
    if code == httpx.codes.UNAUTHORIZED:
        raise Forgotten from error
    if code in (httpx.codes.FORBIDDEN, httpx.codes.PRECONDITION_FAILED):
        raise Outdated from error
    raise RunFailed(f"What answers at {address} is not the server of a federation (HTTP {code}).") from error


class _Contexts:
    """What the app keeps between two messages of one run; secure aggregation has its keys there, in memory alone."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._last = Context(0, 0, {}, RecordDict(), {})

    def of(self, message: Message) -> Context:
        run_id = message.metadata.run_id
        if (run_id, self._node.number) != (self._last.run_id, self._last.node_id):  # the server was started anew
            self._last = Context(run_id, self._node.number, {}, RecordDict(), {})
        return self._last


def attend(node: Node, app: ClientApp, *, last: str) -> bool:
    """Answer messages until one of the type ``last`` has been; return whether the site could do that one's part."""
    contexts = _Contexts(node)
    with node.connected():
        say(f"connected to {node.address}; waiting for work (stop with Ctrl-C)")
        while True:
            try:
                message = node.receive()
                if message is None:
                    time.sleep(PAUSE)
                    continue
                reply = app(message, contexts.of(message))
                ended, well = message.metadata.message_type == last, not reply.has_error()
                node.send(reply)
                if ended:
                    return well
            except Forgotten:
                say(f"the server at {node.address} was started anew; connecting again")
                node.activate()
            except (Outdated, ObjectPullError, ObjectPushError):
                say("the server no longer waits for this; waiting for the next")
