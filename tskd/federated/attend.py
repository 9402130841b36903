"""A site of a federation on several machines, from its command to the result."""

from __future__ import annotations

from pathlib import Path

from tskd.console import say
from tskd.errors import RunFailed, UserError
from tskd.federated.client_app import build_client_app
from tskd.federated.keys import CERTIFICATE, PRIVATE, read_certificate, read_site_key
from tskd.federated.messages import RESULT
from tskd.federated.node import Node, attend
from tskd.federated.site import Site


def attend_as(site: Site, address: str, keys: Path) -> None:
    """Answer the server at ``HOST:PORT`` until the result is here.

    Raises UserError for keys or an address that cannot be used and a server that is not the one or refuses the site,
    RunFailed where the result could not be kept.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in address:
        raise UserError(f"--server {address}: give HOST:PORT, for example fed.example.org:9092")
    node = Node(address, read_certificate(keys / CERTIFICATE), read_site_key(keys / f"{site.name}{PRIVATE}"))
    say(f"{site.name}: {site.labelled} labelled images to train on; they stay in this machine")
    if not attend(node, build_client_app(lambda _: site), last=f"evaluate.{RESULT}"):
        raise RunFailed(f"{site.name}: the result has come and could not be kept; what was wrong is said above.")
    say(f"{site.name}: done; everything is in {site.folder}")
