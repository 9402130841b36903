"""A command in a network of its own, in which every address is this machine and every packet is counted.

Run as a script inside the namespace it starts the command given as arguments, listens meanwhile and prints one JSON
object: the command's exit code, what it said, and what it asked the network for. Native code is heard like Python's.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_NAMESPACE = ("unshare", "--map-root-user", "--user", "--mount", "--net")
_ROUTES = "ip link set lo up && ip route add local default dev lo"


def _reason_against() -> str | None:
    if missing := [name for name in ("unshare", "ip", "mount") if shutil.which(name) is None]:
        return f"{' and '.join(missing)} not on this machine"
    tried = subprocess.run([*_NAMESPACE, "sh", "-c", _ROUTES], capture_output=True, text=True, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


_AGAINST = _reason_against() if sys.platform == "linux" else "namespaces are Linux's"
needs_namespaces = pytest.mark.skipif(_AGAINST is not None, reason=str(_AGAINST))


@dataclass(frozen=True)
class Heard:
    """How a command ended, and what it wanted of the network."""

    code: int
    said: str
    requests: list[str]
    """Names that were looked up, and addresses that packets were sent to."""


def listen_to(command: Sequence[object], home: Path, **environment: str) -> Heard:
    """Run a command in an empty network with an empty home; the name server it knows is the listener."""
    home.mkdir(parents=True)
    resolver = home.with_name(f"{home.name}.resolv.conf")
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    bind = f"{_ROUTES} && mount --bind {resolver} /etc/resolv.conf"
    line = [*_NAMESPACE, "sh", "-c", f'{bind} && exec "$@"', "sh", sys.executable, __file__, *map(str, command)]
    unset = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR", "HF_HOME", "ORT_DISABLE_TELEMETRY")
    given = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, env={**given, "HOME": str(home), **environment}
    )
    assert done.returncode == 0, done.stderr
    return Heard(**json.loads(done.stdout))


def _name(packet: bytes) -> str:
    """Return the name that a query of the domain name system asks for (RFC 1035, 4.1.2)."""
    labels, place = [], 12
    while packet[place]:
        labels.append(packet[place + 1 : place + 1 + packet[place]].decode("ascii", "replace"))
        place += 1 + packet[place]
    return ".".join(labels)


def _serve_names(server: socket.socket, asked: list[str]) -> None:
    while True:
        query, address = server.recvfrom(4096)
        asked.append(f"name {_name(query)}")
        server.sendto(query[:2] + b"\x81\x83" + query[4:], address)  # there is no such name


def _count_packets(wire: socket.socket, seen: list[str]) -> None:
    """Note where each IPv4 packet goes that is not of the loopback network."""
    while True:
        packet = wire.recv(65535)
        target = socket.inet_ntoa(packet[16:20])
        if not target.startswith("127."):
            seen.append(f"address {target}")


def main(command: list[str]) -> None:
    found: list[str] = []
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    for work, listener in ((_serve_names, server), (_count_packets, wire)):
        threading.Thread(target=work, args=(listener, found), daemon=True).start()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    time.sleep(0.2)  # what the command sent last is still on its way to the threads
    print(json.dumps({"code": done.returncode, "said": done.stdout + done.stderr, "requests": sorted(set(found))}))


if __name__ == "__main__":
    main(sys.argv[1:])
