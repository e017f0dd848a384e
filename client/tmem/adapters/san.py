"""The SAN gateway in this process: what a volume is called in the cache, and the native part, imported on first use.

A shared volume has the same name on every host: a given id, or, of a file, its size, mtime and a sample of its content.
Whose content changes and neither its size nor its mtime must get a new id. A volume of one host has a random name that
the gateway chooses; where it keeps the token of a clean detach, and for which volume, is said here.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tmem._model.errors import EngineMissingError
from tmem._transport.tls import system_authorities

if TYPE_CHECKING:
    from typing import TypeAlias

    import tmem_engine
    from tmem._transport.tls import Tls

    _Path: TypeAlias = str | os.PathLike[str]
    Gateway: TypeAlias = tmem_engine.SanGateway

_SAMPLES = 64
_SAMPLE = 64 << 10
_SCHEMES = ("nbd://", "nbd+unix://", "nbds://", "nbds+unix://")


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What a gateway serves, and how. Sizes in bytes, times in seconds."""

    backing: str
    server: str
    pool: str
    listen: tuple[str, ...]
    shared: bool = False
    volume_id: str | None = None
    state: Path | None = None
    trust_detach: bool = False
    page_size: int = 4096
    max_delay: float = 0.02
    scan: int = 256 << 20
    readahead: int = 1 << 20
    readahead_memory: int = 32 << 20
    threads: int = 32
    tls: Tls | None = None
    san_timeout: float = 60.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    insecure: bool = False
    metrics: str | None = None
    buffers: int = 256 << 20


def open_gateway(settings: GatewaySettings) -> Gateway:
    """Start a gateway. `ValueError` for settings that make no sense, `OSError` where the system refuses."""
    if not settings.listen:
        raise ValueError("a gateway needs at least one address to listen on")
    if not settings.pool:
        raise ValueError("a gateway needs the name of a pool")
    shared = shared_object(settings.backing, settings.volume_id) if settings.shared else None
    return _gateway()(
        settings.backing,
        settings.server,
        settings.pool,
        list(settings.listen),
        page_size=settings.page_size,
        shared_object=shared,
        state=settings.state,
        key=_key(settings),
        trust=settings.trust_detach,
        max_delay=settings.max_delay,
        scan=settings.scan,
        readahead=settings.readahead,
        readahead_memory=settings.readahead_memory,
        threads=settings.threads,
        tls=_files(settings.tls),
        san_timeout=settings.san_timeout,
        own_tls=_own_files(settings),
        insecure=settings.insecure,
        metrics=settings.metrics,
        buffers=settings.buffers,
    )


def _files(tls: Tls | None) -> tuple[_Path, tuple[_Path, _Path] | None] | None:
    if tls is None:
        return None
    ca = tls.ca or system_authorities()
    if ca is None:
        raise ValueError("the system has no certificate authorities: give one for the server")
    return ca, None if tls.cert is None or tls.key is None else (tls.cert, tls.key)


def _own_files(settings: GatewaySettings) -> tuple[_Path, _Path, _Path | None] | None:
    cert, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if cert is not None and key is not None:
        return cert, key, client_ca
    if cert is None and key is None and client_ca is None:
        return None
    raise ValueError("TLS for clients of the volume needs both --tls-cert and --tls-key")


def shared_object(backing: str, volume_id: str | None) -> bytes:
    """The name of a shared volume's pages, 24 bytes: alike on every host that has the same content."""
    if volume_id is not None:
        return _digest(b"id", volume_id.encode())
    if backing.startswith(_SCHEMES) or not stat.S_ISREG(Path(backing).stat().st_mode):
        raise ValueError(
            f"the content of {backing} cannot be identified: name it with --volume-id, the same on all hosts"
        )
    with Path(backing).open("rb") as volume:
        found = os.fstat(volume.fileno())
        size = found.st_size
        parts = [f"{size} {found.st_mtime_ns}".encode()]
        for number in range(_SAMPLES):
            volume.seek(size * number // _SAMPLES)
            parts.append(volume.read(_SAMPLE))
    return _digest(b"content", *parts)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=24, person=b"tmem san 1")
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def _key(settings: GatewaySettings) -> str:
    """What tells a token from those of other volumes, pools and servers."""
    backing = settings.backing
    volume = settings.volume_id or (backing if backing.startswith(_SCHEMES) else str(Path(backing).resolve()))
    return repr((volume, settings.server, settings.pool, settings.page_size))


def _gateway() -> type[Gateway]:
    try:
        import tmem_engine
    except ImportError as error:
        raise EngineMissingError(f"the native module tmem_engine cannot be imported: {error}") from error
    return tmem_engine.SanGateway
