"""Who may take part: the server's certificate, and a key pair of each site whose public half the server knows.

A private key is made where it is used and stays there; what is passed on (``server.crt``, ``NAME.pub``) is no secret,
but whoever could swap it on its way could take part: hand it over by a way that both sides trust.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tskd.errors import UserError, not_allowed
from tskd.machine.disk import write_atomic

CERTIFICATE, CERTIFICATE_KEY = "server.crt", "server.key"
PRIVATE, PUBLIC = ".key", ".pub"
"""Ends of the names of a site's two files."""
VALID_DAYS = 397
"""As long as browsers accept one."""
_PEM = serialization.Encoding.PEM
Key = TypeVar("Key")


@dataclass(frozen=True)
class NodeKey:
    """The key pair that a site signs its requests with."""

    private: ec.EllipticCurvePrivateKey
    public: ec.EllipticCurvePublicKey


def make_certificate(folder: Path, hosts: Sequence[str]) -> tuple[Path, Path]:
    """Write the server's key and a certificate for its names and addresses; return certificate and key.

    The certificate is its own root: a site trusts it because it was handed over, and no other.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    begins = datetime.now(UTC) - timedelta(minutes=10)  # clocks differ
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return _write_pair(folder, CERTIFICATE_KEY, _private_bytes(key), CERTIFICATE, certificate.public_bytes(_PEM))


def make_site_key(folder: Path, site: str) -> tuple[Path, Path]:
    """Write a site's key pair; return the public file, which the server needs, and the private one."""
    key = ec.generate_private_key(ec.SECP384R1())
    return _write_pair(folder, site + PRIVATE, _private_bytes(key), site + PUBLIC, _public_bytes(key.public_key()))


def require_certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of the server's certificate and its key; UserError where they are missing or unusable."""
    certificate, key = folder / CERTIFICATE, folder / CERTIFICATE_KEY
    read_certificate(certificate)
    _read(key, "the server's private key", _private)
    return certificate, key


def read_certificate(path: Path) -> bytes:
    """Return a certificate's bytes; UserError where it is none, or its time is over."""
    found = _read(path, "the server's certificate", x509.load_pem_x509_certificate)
    if not found.not_valid_before_utc <= datetime.now(UTC) <= found.not_valid_after_utc:
        raise UserError(
            f"{path}: the certificate is valid from {found.not_valid_before_utc:%Y-%m-%d} to "
            f"{found.not_valid_after_utc:%Y-%m-%d}. Look at this machine's clock, or make a new one: tskd federate keys"
        )
    return path.read_bytes()


def read_site_key(path: Path) -> NodeKey:
    """Return a site's key pair from its private file."""
    private = _read(path, "the site's private key", _private)
    return NodeKey(private, private.public_key())


def registered(folder: Path, sites: Iterable[str]) -> dict[str, bytes]:
    """Return site -> its public key as Flower compares them; UserError where one is missing or two are the same."""
    keys = {
        site: _public_bytes(_read(folder / (site + PUBLIC), f"site {site}'s public key", _public)) for site in sites
    }
    owners: dict[bytes, str] = {}
    for site, key in keys.items():
        if (other := owners.setdefault(key, site)) != site:
            raise UserError(f"{folder}: the sites {other} and {site} have the same key. Each makes one of its own.")
    return keys


def _read(path: Path, what: str, load: Callable[[bytes], Key]) -> Key:
    try:
        return load(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file. It is {what}; tskd federate keys makes it.") from error
    except PermissionError as error:
        raise not_allowed(path) from error
    except (ValueError, TypeError) as error:  # the library's for what it cannot parse, and for a key with a password
        raise UserError(f"{path} is not {what}, or it has a password. tskd federate keys makes one.") from error


def _private(content: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(content, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("a key of another kind than an elliptic curve's")
    return key


def _public(content: bytes) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_public_key(content)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("a key of another kind than an elliptic curve's")
    return key


def _private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:  # a name, then
        return _host_name(host)


def _host_name(name: str) -> x509.DNSName:
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise UserError(f"--host {name}: give a name or an address in plain letters, without a port.") from error


def _write_pair(folder: Path, secret: str, private: bytes, open_: str, public: bytes) -> tuple[Path, Path]:
    """Write both files, none over another: the other side would know the old one only."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (secret, open_):
        if (folder / name).exists():
            raise UserError(f"{folder / name} is there already, and others may rely on it. Move it away first.")
    descriptor = os.open(folder / secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(private)
        write_atomic(folder / open_, public)
    except BaseException:  # half a pair would be in the way of the next
        (folder / secret).unlink()
        raise
    return folder / open_, folder / secret
