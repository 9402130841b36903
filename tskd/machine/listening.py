"""A socket that a server listens on, or one sentence why it cannot; and what an address says."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from tskd.errors import UserError, refused_by_system


def listening(host: str, port: int) -> socket.socket:
    """Return a bound socket; raises UserError where the address is taken or none of this machine's."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UserError(f"--host {host}: there is no such address. Give one of this machine's.") from error
    family, _, _, _, place = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # on Windows it would let a second server take the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(128)  # a second server on the port is refused here, not after its model is loaded
    except OSError as error:
        listener.close()
        raise UserError(_unbindable(host, port, error)) from error
    return listener


def named(listener: socket.socket) -> str:
    """Return where a socket listens, ``HOST:PORT``."""
    host, port = listener.getsockname()[:2]
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address is this machine's own, which no other reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _unbindable(host: str, port: int, error: OSError) -> str:
    where = f"port {port} of {host}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is taken by another program. Choose another with --port, or 0 for any that is free."
    if error.errno == errno.EACCES:
        return f"{where} may not be used by this user. Choose one from 1024 on with --port."
    return f"{where} cannot be listened on: {refused_by_system(error)}"
