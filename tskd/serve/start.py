"""A server on a socket: where it listens, who may ask, and how it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from tskd.console import say
from tskd.data.dicom_pixels import POOL
from tskd.deploy.bundle import open_bundle
from tskd.errors import UserError, until_terminated
from tskd.machine.listening import is_loopback, listening, named
from tskd.serve.app import Service, create_app
from tskd.serve.corrections import Corrections
from tskd.serve.guard import Access
from tskd.serve.limits import Limits

TOKEN_VARIABLE = "TSKD_SERVE_TOKEN"
_SHORTEST_TOKEN = 16
_IDLE_SECONDS, _GRACE_SECONDS = 15, 10


@dataclass(frozen=True)
class Address:
    """Where a server listens and under which names."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    allowed_hosts: Sequence[str] = field(default_factory=tuple)


def serve(
    model: Path,
    address: Address,
    limits: Limits,
    *,
    threads: int | None = None,
    corrections: Path | None = None,
    pool: Path | None = None,
) -> None:
    """Serve a bundle until Ctrl-C or SIGTERM; what is being worked on is finished first.

    Raises UserError before anything is answered: for what is no bundle, a port that is taken, an address other than
    this machine's own without a token, or a folder that corrections do not fit.
    """
    access = access_for(address)
    if pool is not None and corrections is None:
        raise UserError("--pool lists what to label next; say where labels go with --corrections DIR.")
    bundle = open_bundle(model)
    if corrections is not None:
        bundle.refuse_inside(corrections, "--corrections")
    kept = None if corrections is None else Corrections(corrections, bundle.classes)
    service = Service(bundle, limits, access, threads, kept, pool)
    with listening(address.host, address.port) as listener:
        say(f"serving {model} on http://{named(listener)} (stop with Ctrl-C)")
        config = uvicorn.Config(
            create_app(service), log_level="critical", access_log=False, server_header=False, ws="none",
            timeout_keep_alive=_IDLE_SECONDS, timeout_graceful_shutdown=_GRACE_SECONDS, proxy_headers=False,
        )  # fmt: skip
        try:
            with until_terminated():  # so that SIGTERM ends the command as Ctrl-C does, once uvicorn has passed it on
                uvicorn.Server(config).run(sockets=[listener])
        finally:
            POOL.close()


def access_for(address: Address) -> Access:
    """Return who may ask; raises UserError where others could reach the server and no token protects it."""
    token = _token(address.token_file)
    is_local = is_loopback(address.host)
    if not is_local and token is None:
        raise UserError(
            f"--host {address.host} lets other machines reach the server: it needs a token. Give a file that holds one "
            f"with --token-file, or set {TOKEN_VARIABLE}."
        )
    names = {"localhost", *address.allowed_hosts}
    if not is_local:
        names |= {address.host.lower(), socket.gethostname().lower()}
    return Access(token, frozenset(name.lower() for name in names))


def _token(path: Path | None) -> str | None:
    """Return the token, of the file before the environment's; raises UserError for one that is guessed too easily."""
    if path is not None:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file. Give one that holds the token.")
        token, source = path.read_text(encoding="utf-8", errors="replace").strip(), str(path)
    else:
        token, source = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not token:
            return None
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{source}: a token has {_SHORTEST_TOKEN} or more plain characters, without spaces. "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one."
        )
    return token
