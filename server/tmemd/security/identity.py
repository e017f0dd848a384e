"""Authenticates callers.

A client is identified by the name in its verified certificate, by the engine's rule, which its NBD server uses too. If
the daemon asks for no certificates, a client is `local` (this machine) or `network`, by its address. No certificate can
bear these two names.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tmemd.base.errors import DeniedError, UnauthenticatedError
from tmemd.base.parsers import is_loopback
from tmemd.security.call_limits import CallLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpc.aio import ServicerContext

    from tmemd.config.settings import Config

LOCAL, NETWORK = "local", "network"
_MOST_KNOWN = 1024


@dataclass(frozen=True, slots=True)
class Client:
    """An authenticated caller."""

    name: str
    administrator: bool

    def must_administer(self) -> None:
        """Raise `DeniedError` unless the client is an administrator."""
        if not self.administrator:
            raise DeniedError(f"client {self.name!r} is not an administrator")


class Identities:
    """Identifies the client of a call. Lives on the event loop.

    Certificates and addresses are cached, never connections: an address and port may soon belong to another client.
    """

    def __init__(self, config: Config, name_of: Callable[[bytes], str]) -> None:
        """`name_of` extracts the name from a certificate in DER, or raises `ValueError`."""
        self._name_of = name_of
        self.call_limits = CallLimits(config.max_client_calls)
        self._administrators = config.administrators
        self._by_certificate = config.tls_client_ca is not None
        self._known: dict[bytes | str, Client] = {}
        self._only = None if self._by_certificate or not is_loopback(config.listen) else self._client(LOCAL)

    def reconfigure(self, config: Config) -> None:
        """Apply the administrators and call limits of a new configuration."""
        self.call_limits.most = config.max_client_calls
        self._administrators = config.administrators
        self._known.clear()
        if self._only is not None:
            self._only = self._client(LOCAL)

    def of(self, context: ServicerContext[Any, Any]) -> Client:
        """The client of a call.

        Raises:
            UnauthenticatedError: Its certificate does not identify it.
        """
        if self._only is not None:
            return self._only
        if not self._by_certificate:
            place = context.peer().rpartition(":")[0]
            return self._known.get(place) or self._remember(place, _located(context.peer()))
        certificate = b"".join(context.auth_context().get("x509_pem_cert", ()))
        return self._known.get(certificate) or self._remember(certificate, self._certified(certificate))

    def _certified(self, certificate: bytes) -> str:
        try:
            return self._name_of(ssl.PEM_cert_to_DER_cert(certificate.decode()))
        except ValueError as error:
            raise UnauthenticatedError(str(error)) from error

    def _remember(self, key: bytes | str, name: str) -> Client:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[key] = client = self._client(name)
        return client

    def _client(self, name: str) -> Client:
        return Client(name, name in self._administrators)


def _located(peer: str) -> str:
    family, _, address = peer.partition(":")
    return LOCAL if family == "unix" or is_loopback(unquote(address)) else NETWORK
