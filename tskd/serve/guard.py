"""What stands before the interface: who may ask, how much of a request is read, what is never told, what is counted."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tskd.console import warn
from tskd.errors import name_of
from tskd.serve.limits import Limits, Refused
from tskd.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_OPEN = ("/", "/healthz")
"""What may be fetched without the token, beside the page's own files."""
_CHUNK_SECONDS = 30.0
_SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    token: str | None = None
    hosts: frozenset[str] = frozenset({"localhost"})
    """Names by which the server is called; addresses in digits are always right: no name server can point to them."""


class Guard:
    """An ASGI application around another; all its refusals are JSON with one sentence."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], access: Access, limits: Limits,
                 metrics: Metrics) -> None:  # fmt: skip
        self.app, self.access, self.limits, self.metrics = app, access, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        reply = _Reply(send)
        began = time.monotonic()
        try:
            self._require_access(scope)
            await self.app(scope, _Body(receive, self.limits).receive, reply.send)
        except Refused as refusal:
            await reply.refuse(refusal)
        except Exception as error:  # noqa: BLE001 (its text may quote what a file says of a patient)
            warn(f"a request failed: {name_of(error)} in {_place(error)}; this is a defect of tskd")
            await reply.refuse(Refused(500, "The request failed by a defect of the server; its log names the place."))
        finally:
            self.metrics.count(scope, reply.status, time.monotonic() - began)

    def _require_access(self, scope: Scope) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._is_own(host):
            raise Refused(421, "The server is not called so; name it with --allowed-host where it should be.")
        origin = headers.get("origin")
        if scope["method"] not in _SAFE and origin is not None and urlsplit(origin).netloc != host:
            raise Refused(403, "Pages of other servers may not ask this one.")
        path = scope["path"]
        if self.access.token is not None and path not in _OPEN and not path.startswith("/static/"):
            _require_token(headers, self.access.token)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.upload:
            raise _too_large(self.limits)

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.access.hosts
        return True


def _require_token(headers: Mapping[str, str], token: str) -> None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise Refused(401, "A token is needed: Authorization: Bearer TOKEN.", {"www-authenticate": "Bearer"})


class _Body:
    """What is read of a request: never more bytes than allowed, never longer than allowed."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self.source, self.limits = receive, limits
        self.bytes, self.until = 0, time.monotonic() + limits.seconds
        self.is_read = False

    async def receive(self) -> Message:
        if self.is_read:  # what comes next is the end of the connection, whenever that is
            return await self.source()
        left = min(_CHUNK_SECONDS, self.until - time.monotonic())
        try:
            message = await asyncio.wait_for(self.source(), max(left, 0))
        except TimeoutError:
            raise Refused(408, "The upload took too long.", {"connection": "close"}) from None
        self.bytes += len(message.get("body", b""))
        self.is_read = not message.get("more_body", False)
        if self.bytes > self.limits.upload:
            raise _too_large(self.limits)
        return message


class _Reply:
    """Sends what the application answers with the headers that all answers have."""

    def __init__(self, send: Send) -> None:
        self.forward = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *((name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in given),
            ]
        await self.forward(message)

    async def refuse(self, refusal: Refused) -> None:
        """Answer with a refusal, unless an answer has begun already."""
        if self.status:
            return
        body = json.dumps({"error": refusal.why}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"The upload has more than {limits.upload // 2**20} MB.", {"connection": "close"})


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
