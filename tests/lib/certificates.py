"""An authority of a test's own, the files of the certificates it makes, and channels that use them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """Files of a certificate and its key."""

    cert: Path
    key: Path

    @property
    def pem(self) -> tuple[bytes, bytes]:
        return self.cert.read_bytes(), self.key.read_bytes()


class Authority:
    """A certificate authority with a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made = 0
        self._ca = trustme.CA()
        self.file = directory / "ca.pem"
        directory.mkdir(exist_ok=True)
        self._ca.cert_pem.write_to_path(self.file)

    def server(self, name: str = "server", hosts: tuple[str, ...] = ("localhost", "127.0.0.1")) -> Pair:
        """For a daemon on loopback, or on other hosts."""
        return self._write(name, self._ca.issue_cert(*hosts, common_name=name))

    def client(self, name: str, *, expired: bool = False, also: tuple[str, ...] = ()) -> Pair:
        """For the client of that name; `also` are the certificate's other names."""
        until = datetime.now(UTC) - timedelta(days=1) if expired else None
        made = self._ca.issue_cert(*also, common_name=name or None, not_after=until)
        return self._write(f"client-{self._made}", made)

    def flags(self, server: Pair) -> list[str]:
        """What a daemon is told to serve mutual TLS."""
        return [f"--tls-cert={server.cert}", f"--tls-key={server.key}", f"--tls-client-ca={self.file}"]

    def credentials(self, client: Pair | None) -> grpc.ChannelCredentials:
        if client is None:
            return grpc.ssl_channel_credentials(self.file.read_bytes())
        cert, key = client.pem
        return grpc.ssl_channel_credentials(self.file.read_bytes(), key, cert)

    def signer(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The authority's own certificate and key."""
        key = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()), key

    def odd(
        self, common: str | None, others: Sequence[x509.GeneralName] = (), *, authority: bool = False, usage: str = ""
    ) -> Pair:
        """A certificate as no decent authority makes it, and `usage` of its key."""
        signer, signer_key = self.signer()
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([] if common is None else [x509.NameAttribute(NameOID.COMMON_NAME, common)])
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(signer.subject, subject, key.public_key(), x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        if others:
            made = made.add_extension(x509.SubjectAlternativeName(others), critical=False)
        if authority:
            made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        if usage:
            made = made.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(usage)]), critical=False)
        pair = Pair(self._directory / f"odd-{self._made}.pem", self._directory / f"odd-{self._made}.key")
        self._made += 1
        pair.cert.write_bytes(made.sign(signer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        pair.key.touch(0o600)
        pair.key.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        return pair

    def _write(self, name: str, made: trustme.LeafCert) -> Pair:
        self._made += 1
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        pair.cert.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
        pair.key.touch(0o600)
        made.private_key_pem.write_to_path(pair.key)
        return pair
