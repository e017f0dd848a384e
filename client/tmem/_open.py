"""The two ways to a store: `open` one in this process, or `connect` to an existing one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tmem._model.sizes import Size, parse_size
from tmem._protocol.connection import OnUnavailable, Options, parse_target
from tmem._store import Store
from tmem._transport import local
from tmem._transport.tls import Tls, security

if TYPE_CHECKING:
    import os

    import grpc

    from tmem._protocol.messages import Wire

_SHM = "shm://"


def open(
    *,
    memory: Size = "256MiB",
    arena: str | os.PathLike[str] | None = None,
    shards: int | None = None,
    mlock: bool = False,
    huge_pages: bool = False,
    accept_threshold: int = 90,
) -> Store:
    """Open a store in this process, with the engine embedded.

    Any number of processes can have one arena open at once. After a fork, parent and child share the store (even a
    private one), like two processes that attached to it.

    Args:
        memory: The most memory the store may use, everything counted: bytes, or a string such as "2GiB".
        arena: The file that holds everything, best on tmpfs (`/dev/shm`). It is created, or attached if it exists,
            and stays when the store is closed. None is a private arena, which ends with the process.
        shards: The number of separately locked parts, a power of two; None chooses by `memory`.
        mlock: Lock the arena in memory, so that it is never swapped out.
        huge_pages: Ask for transparent huge pages.
        accept_threshold: A full store accepts pages again once it uses less than this per cent of `memory`.

    Raises:
        MismatchError: The arena exists with different settings; the message names them.
        ArenaError: The file is not an arena, is another version's, is damaged, or the operating system refused.
        EngineMissingError: The native part is not installed.
        ValueError: An argument is invalid.
    """
    transport = local.open_arena(
        memory=parse_size(memory, "memory"),
        arena=arena,
        shards=shards,
        mlock=mlock,
        huge_pages=huge_pages,
        accept_threshold=accept_threshold,
    )
    return Store(transport)


def connect(
    address: str,
    *,
    mlock: bool = False,
    timeout: float = 10.0,
    encoding: Wire = "lz4",
    on_unavailable: OnUnavailable = "raise",
    tls: Tls | None = None,
    credentials: grpc.ChannelCredentials | None = None,
) -> Store:
    """Connect to an existing store.

    The first call connects to the server; after a failure or a restart of the server, the next call reconnects.

    Args:
        address: `HOST:PORT` or `grpc://HOST:PORT`, a server; `grpcs://HOST:PORT`, the same over TLS; without a port it
            is 7717, without a host (`:7718`) this machine. Or `shm://PATH`, the arena at PATH on this machine (taken as
            it is, with at least one slash: `shm:///dev/shm/tmem`).
        mlock: `shm://` only: lock the arena in memory, so that it is never swapped out.
        timeout: Server only, like all below: seconds that one call may take, and that an operation keeps retrying while
            the server is unavailable. An operation of many calls may take longer while replies keep arriving.
        encoding: `"lz4"`: the client compresses and decompresses pages; `"raw"`: the server does.
        on_unavailable: What to do while the server is unavailable. `"raise"`: raise `UnavailableError`, after `timeout`
            or, until the next attempt is due, at once. `"miss"`: at once, gets of ephemeral pools miss, puts are
            refused as `"unavailable"` and flushes find nothing. Once the server is back, the pages concerned are
            flushed before anything else, so that nothing refused or flushed is ever returned. A get of a persistent
            pool raises even so: its page is not lost.
        tls: TLS with these files. None is plain text, or for `grpcs://` TLS with the system's authorities.
        credentials: gRPC's own credentials, from `grpc.ssl_channel_credentials`, instead of `tls`.

    Raises:
        ArenaError: There is no usable arena at the path.
        EngineMissingError: The native part is not installed (`shm://` only).
        OSError: A file of `tls` cannot be read.
        ValueError: The address or an option is invalid.
    """
    if not isinstance(address, str):
        raise TypeError(f"address must be a str, not {type(address).__name__}")
    if address.startswith(_SHM):
        return Store(local.attach_arena(_arena_path(address), mlock=mlock))
    target = parse_target(address)
    options = Options(timeout=timeout, encoding=encoding, on_unavailable=on_unavailable)
    secure = security(address, tls, credentials)
    # gRPC is slow to import, and a store in this process does without.
    from tmem._transport.grpc import GrpcStore

    transport = GrpcStore(target, options, secure)
    return Store(transport, transport.server)


def _arena_path(address: str) -> str:
    path = address.removeprefix(_SHM)
    if "/" not in path:
        raise ValueError(f"address is {address!r}; expected the path of an arena after {_SHM}, with a slash in it")
    return path
