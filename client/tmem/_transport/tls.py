"""TLS of a connection to a server: which files, and what gRPC makes of them.

Files are read when the store is connected, and again, where they have changed, for a connection that is made later.
Changed files that cannot be used, as when a certificate is there and its key not yet, leave all as it was.
"""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tmem._runtime import forks

if TYPE_CHECKING:
    import grpc

SECURE = "grpcs://"

# Where systems keep the certificates they trust, if the ssl module knows of no file.
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


Stamp: TypeAlias = tuple[tuple[int, int, int, int], ...] | None
"""Changes when a file does; None where they cannot be looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS for `connect`, by files in PEM. They may be renewed: every connection made later reads them again.

    Attributes:
        ca: Certificates that vouch for the server's; None is those that the system trusts.
        cert: This client's certificate, with its chain, for a server that asks for one: it says who the client is.
        key: Its key.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in ("ca", "cert", "key"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str | os.PathLike):
                raise TypeError(f"{name} must be a path, not {type(value).__name__}")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key are a pair: give both or none")


class Security:
    """TLS of all connections of a store; without credentials it is plain text. Safe to use from many threads."""

    def __init__(
        self,
        credentials: grpc.ChannelCredentials | None = None,
        context: ssl.SSLContext | None = None,
        files: Tls | None = None,
        stamp: Stamp = None,
    ) -> None:
        """`context` is for sockets; None where only gRPC can be told. `stamp` is of the files when they were read."""
        self._now = credentials, context
        self._files = files
        self._lock = forks.lock()
        self._seen = stamp

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """What a channel is made with."""
        return self._now[0]

    @property
    def context(self) -> ssl.SSLContext | None:
        """The same for a socket."""
        return self._now[1]

    def renew(self) -> None:
        """Before a connection is made: read the files again, if they have changed."""
        if self._files is None:
            return
        with self._lock:
            stamp = _stamp(self._files)
            if stamp == self._seen:
                return
            try:
                found = _from_files(self._files)
            except (OSError, ValueError):
                return
            if stamp == _stamp(self._files) and (found.context is None) == (self.context is None):
                self._now, self._seen = found._now, stamp


def security(address: str, tls: Tls | None, credentials: grpc.ChannelCredentials | None) -> Security:
    """How to connect to `address`.

    Raises:
        OSError: A file cannot be read.
        ValueError: Others may write a file, certificate and key are no pair, or there are both files and credentials.
    """
    if credentials is not None:
        if tls is not None:
            raise ValueError("give tls or credentials, not both")
        return Security(credentials)
    if tls is None and not address.startswith(SECURE):
        return Security()
    return _from_files(tls or Tls())


def _read(path: str | os.PathLike[str]) -> bytes:
    """A file that nobody but its owner can have written."""
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        groups = found.st_mode & stat.S_IWGRP and os.name == "posix" and found.st_gid not in (0, os.getegid())
        anyone = found.st_mode & stat.S_IWOTH and os.name == "posix"
        if stat.S_ISREG(found.st_mode) and (anyone or groups):
            who = "anyone" if anyone else f"group {found.st_gid}"
            path = os.fspath(path)
            raise ValueError(f"{path}: {who} may write it (mode {found.st_mode & 0o7777:04o}): chmod go-w {path}")
        return file.read()


def _from_files(tls: Tls) -> Security:
    import grpc

    stamp = _stamp(tls)
    roots = _system_roots() if tls.ca is None else _read(tls.ca)
    context = _context(roots)
    if tls.cert is None or tls.key is None:
        return Security(grpc.ssl_channel_credentials(roots), context, tls, stamp)
    cert, key = _read(tls.cert), _read(tls.key)
    try:
        # gRPC itself would say nothing until the first call, and then only that the server cannot be reached.
        (context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)).load_cert_chain(tls.cert, tls.key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"{tls.cert} and {tls.key} are not a certificate and its key: {error}") from error
    return Security(grpc.ssl_channel_credentials(roots, key, cert), context, tls, stamp)


def _stamp(tls: Tls) -> Stamp:
    try:
        found = [os.stat(path) for path in (tls.ca or system_authorities(), tls.cert, tls.key) if path is not None]
    except OSError:
        return None
    return tuple((at.st_dev, at.st_ino, at.st_mtime_ns, at.st_size) for at in found)


def _context(roots: bytes | None) -> ssl.SSLContext | None:
    """What a socket is wrapped in; None where it cannot read what gRPC perhaps can."""
    if roots is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=roots.decode("ascii", errors="ignore"))
    except (ssl.SSLError, ValueError):
        return None
    return context


def _system_roots() -> bytes | None:
    """None leaves it to gRPC, which brings certificates of its own."""
    path = system_authorities()
    return None if path is None else path.read_bytes()


def system_authorities() -> Path | None:
    """The file of the certificates that the system trusts, where there is one."""
    for path in (ssl.get_default_verify_paths().cafile, *_BUNDLES):
        if path is not None and Path(path).is_file():
            return Path(path)
    return None
