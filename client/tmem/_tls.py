"""TLS of a connection to a server: which files, and what gRPC makes of them."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

SECURE = "grpcs://"

# Where systems keep the certificates they trust, if the ssl module knows of no file.
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS for `connect`, by files in PEM. They are read when the connection is made: connect again once they changed.

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


@dataclass(frozen=True, slots=True)
class Security:
    """TLS of a connection, as gRPC has it and as sockets do; without credentials it is plain text.

    Attributes:
        credentials: What a channel is made with.
        context: The same for a socket; None where only gRPC can be told.
    """

    credentials: grpc.ChannelCredentials | None = None
    context: ssl.SSLContext | None = None


def security(address: str, tls: Tls | None, credentials: grpc.ChannelCredentials | None) -> Security:
    """How to connect to `address`.

    Raises:
        OSError: A file cannot be read.
        ValueError: The certificate and the key are no pair, or there are both files and credentials.
    """
    if credentials is not None:
        if tls is not None:
            raise ValueError("tls and credentials exclude each other")
        return Security(credentials)
    if tls is None and not address.startswith(SECURE):
        return Security()
    return _from_files(tls or Tls())


def _from_files(tls: Tls) -> Security:
    import grpc

    roots = _system_roots() if tls.ca is None else Path(tls.ca).read_bytes()
    context = _context(roots)
    if tls.cert is None or tls.key is None:
        return Security(grpc.ssl_channel_credentials(roots), context)
    cert, key = Path(tls.cert).read_bytes(), Path(tls.key).read_bytes()
    try:
        # gRPC itself would say nothing until the first call, and then only that the server cannot be reached.
        (context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)).load_cert_chain(tls.cert, tls.key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"{tls.cert} and {tls.key} are not a certificate and its key: {error}") from error
    return Security(grpc.ssl_channel_credentials(roots, key, cert), context)


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
