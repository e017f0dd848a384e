"""TLS for the daemon's ports, with credentials that follow their files.

Before each handshake the files are checked, and reloaded if they have changed: existing connections go on, new ones use
the new certificates. Unusable files change nothing and are logged once. gRPC asks from its own threads, hence the lock.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from typing import TYPE_CHECKING, NamedTuple, cast

import grpc

from tmemd.base.errors import ConfigError
from tmemd.base.os_errors import why_unreadable
from tmemd.base.trusted_files import check_writers, readable_by_anyone

if TYPE_CHECKING:
    from collections.abc import Callable

    from tmemd.config.settings import Config
    from tmemd.store.api import Pem

log = logging.getLogger("tmemd")

Stamp = tuple[tuple[int, int, int, int], ...] | str
"""Changes when a file does; text where the files cannot be looked at."""


class Loaded(NamedTuple):
    """Usable contents of the files."""

    configuration: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext
    pem: Pem


class Certificates:
    """The daemon's certificate and key, and the authorities for clients; one object per port."""

    def __init__(self, cert: str, key: str, client_ca: str | None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._lock = threading.Lock()
        self._seen: Stamp | None = None
        self._sound: Loaded | None = None

    def load(self) -> Loaded:
        """Load the files for the first time.

        Raises:
            ConfigError: They are unusable.
        """
        self._seen = self._stamp()
        try:
            self._sound = self._read()
        except ValueError as error:
            raise ConfigError(f"TLS: {error}") from error
        if why := readable_by_anyone(self._key):
            log.warning("TLS: %s", why)
        return self._sound

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for a gRPC port. Raises as `load` does."""
        sound = self.load()
        # The stub always wants a configuration; gRPC's documentation says that None means no change.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._changed)
        return grpc.dynamic_ssl_server_credentials(sound.configuration, fetch, self._client_ca is not None)

    def first(self) -> Pem:
        """The certificates for a server that polls `renewed` for changes."""
        return self.load().pem

    def context(self) -> ssl.SSLContext:
        """The context for the next connection of a Python server."""
        self._changed()
        return (self._sound or self.load()).context

    def renewed(self) -> Pem | None:
        """Changed certificates for the next connection; None if nothing has changed."""
        return None if self._changed() is None or self._sound is None else self._sound.pem

    def refused(self, why: str) -> None:
        """A server could not use the new certificates, and keeps its previous ones."""
        log.error("NBD keeps using its previous certificates: %s", why)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """New credentials; None if nothing has changed."""
        with self._lock:
            stamp = self._stamp()
            if stamp == self._seen:
                return None
            try:
                now = self._read()
            except ValueError as error:
                self._seen = stamp
                log.error("TLS keeps using its previous certificates: %s", error)
                return None
            if self._stamp() != stamp:
                return None  # they are changing right now: the next handshake checks again
            self._seen, self._sound = stamp, now
        log.info("TLS: certificates reloaded")
        return now.configuration

    def _stamp(self) -> Stamp:
        try:
            found = [os.stat(path) for path in (self._cert, self._key, self._client_ca) if path]
        except OSError as error:
            return str(error)
        return tuple((at.st_dev, at.st_ino, at.st_mtime_ns, at.st_size) for at in found)

    def _read(self) -> Loaded:
        cert, key = _bytes(self._cert), _bytes(self._key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert, self._key, password="")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self._cert} and {self._key} are not a certificate and its key: {_why(error)}"
            ) from error
        if self._client_ca is None:
            return Loaded(grpc.ssl_server_certificate_configuration([(key, cert)]), context, (cert, key, None))
        roots = _bytes(self._client_ca)
        try:
            context.load_verify_locations(cadata=roots.decode())
        except (OSError, ValueError) as error:
            raise ValueError(f"{self._client_ca} has no valid certificates: {_why(error)}") from error
        context.verify_mode = ssl.CERT_OPTIONAL  # the server decides who must show one
        configuration = grpc.ssl_server_certificate_configuration([(key, cert)], roots)
        return Loaded(configuration, context, (cert, key, roots))


def certificates(config: Config) -> Certificates | None:
    """The certificates of a configuration, if it has any."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    return Certificates(config.tls_cert, config.tls_key, config.tls_client_ca)


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            check_writers(file, path)
            return file.read()
    except OSError as error:
        raise ValueError(why_unreadable(path, error)) from error


def _why(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)
