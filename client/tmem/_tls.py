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


def channel_credentials(
    address: str, tls: Tls | None, credentials: grpc.ChannelCredentials | None
) -> grpc.ChannelCredentials | None:
    """What a channel to `address` is made with; None is plain text.

    Raises:
        OSError: A file cannot be read.
        ValueError: The certificate and the key are no pair, or there are both files and credentials.
    """
    if credentials is not None:
        if tls is not None:
            raise ValueError("tls and credentials exclude each other")
        return credentials
    if tls is None and not address.startswith(SECURE):
        return None
    return _credentials(tls or Tls())


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    import grpc

    roots = _system_roots() if tls.ca is None else Path(tls.ca).read_bytes()
    if tls.cert is None or tls.key is None:
        return grpc.ssl_channel_credentials(roots)
    cert, key = Path(tls.cert).read_bytes(), Path(tls.key).read_bytes()
    try:
        # gRPC itself would say nothing until the first call, and then only that the server cannot be reached.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(tls.cert, tls.key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"{tls.cert} and {tls.key} are not a certificate and its key: {error}") from error
    return grpc.ssl_channel_credentials(roots, key, cert)


def _system_roots() -> bytes | None:
    """None leaves it to gRPC, which brings certificates of its own."""
    for path in (ssl.get_default_verify_paths().cafile, *_BUNDLES):
        if path is not None and Path(path).is_file():
            return Path(path).read_bytes()
    return None
