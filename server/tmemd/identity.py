"""Who calls.

A client is known by the name that its verified certificate bears: the common name, else the first DNS name or URI.
Where the daemon asks for no certificates it is known by where its address lies: `local`, this machine, or `network`. No
certificate stands for either of these.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tmemd.clients import MOST_NAME_BYTES
from tmemd.errors import DeniedError, UnauthenticatedError
from tmemd.flights import Flights
from tmemd.values import is_loopback

if TYPE_CHECKING:
    from grpc.aio import ServicerContext

    from tmemd.config import Config

Said = Mapping[str, Iterable[bytes]]
"""What gRPC tells of a verified certificate."""

LOCAL, NETWORK = "local", "network"
_MOST_KNOWN = 1024
_SAN_TAGS = {"peer_dns": 0x82, "peer_uri": 0x86}


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks."""

    name: str
    administrator: bool

    def must_administer(self) -> None:
        """Raise `DeniedError` unless the client may do everything."""
        if not self.administrator:
            raise DeniedError(f"client {self.name!r} is no administrator")


class Identities:
    """Finds the client of a call. Lives on the event loop.

    What is remembered is what a certificate or an address says, never a connection: the same address and port may be
    another client's a moment later.
    """

    def __init__(self, config: Config) -> None:
        self.flights = Flights(config.max_client_calls)
        self._administrators = config.administrators
        self._by_certificate = config.tls_client_ca is not None
        self._known: dict[bytes | str, Client] = {}
        self._only = None if self._by_certificate or not is_loopback(config.listen) else self._client(LOCAL)

    def reconfigure(self, config: Config) -> None:
        """Know administrators, and how many calls a client may have, as a configuration says by now."""
        self.flights.most = config.max_client_calls
        self._administrators = config.administrators
        self._known.clear()
        if self._only is not None:
            self._only = self._client(LOCAL)

    def of(self, context: ServicerContext[Any, Any]) -> Client:
        """The client of a call.

        Raises:
            UnauthenticatedError: Its certificate does not tell who it is.
        """
        if self._only is not None:
            return self._only
        if not self._by_certificate:
            place = context.peer().rpartition(":")[0]
            return self._known.get(place) or self._remember(place, _located(context.peer()))
        said = context.auth_context()
        certificate = b"".join(said.get("x509_pem_cert", ()))
        return self._known.get(certificate) or self._remember(certificate, _certified(said, certificate))

    def _remember(self, key: bytes | str, name: str) -> Client:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[key] = client = self._client(name)
        return client

    def _client(self, name: str) -> Client:
        return Client(name, name in self._administrators)


def _certified(said: Said, certificate: bytes) -> str:
    found = _name(said, certificate)
    try:
        name = found.decode()
    except UnicodeDecodeError as error:
        raise UnauthenticatedError("the name in the client's certificate is not UTF-8") from error
    if len(found) > MOST_NAME_BYTES or not name.isprintable():
        raise UnauthenticatedError(
            f"the name in the client's certificate is {name!r}; it must be at most {MOST_NAME_BYTES} printable bytes"
        )
    if name in (LOCAL, NETWORK):
        raise UnauthenticatedError(f"the name in the client's certificate is {name!r}, which stands for an address")
    return name


def _name(said: Said, certificate: bytes) -> bytes:
    """The name as it stands in the certificate. gRPC cuts names at a zero byte, and a part of a name is no name."""
    for name in said.get("x509_common_name", ()):
        if rb"\00" in b"".join(said.get("x509_subject", ())):
            raise UnauthenticatedError("the name in the client's certificate has a zero byte")
        if name:
            return name
    for property_name, tag in _SAN_TAGS.items():
        for name in said.get(property_name, ()):
            if bytes((tag, len(name) & 0x7F)) + name not in ssl.PEM_cert_to_DER_cert(certificate.decode()):
                raise UnauthenticatedError("the name in the client's certificate is too long or has a zero byte")
            return name
    raise UnauthenticatedError("the client's certificate has no common name, DNS name or URI")


def _located(peer: str) -> str:
    family, _, address = peer.partition(":")
    return LOCAL if family == "unix" or is_loopback(unquote(address)) else NETWORK
