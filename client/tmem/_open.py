"""The two ways to a store: `open` one in this process, or `connect` to one that is there."""

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

    Any number of processes may have one arena open at once. After a fork parent and child share the store, a private
    one too, like two processes that attached to it.

    Args:
        memory: The most memory the store may use, everything counted: bytes, or a string such as "2GiB".
        arena: The file that holds everything, best on tmpfs (`/dev/shm`). It is created, or attached where it exists,
            and stays when the store is closed. None is a private arena, which goes with the process.
        shards: The number of separately locked parts, a power of two; None chooses by `memory`.
        mlock: Keep the arena from being swapped out.
        huge_pages: Ask for transparent huge pages.
        accept_threshold: Per cent of `memory` below which a store that was full accepts pages again; 100 is at once.

    Raises:
        MismatchError: The arena exists with other settings; the message names the difference.
        ArenaError: The file is not an arena, is another version's, is damaged, or the operating system refused.
        EngineMissingError: The native part is not installed.
        ValueError: An argument makes no sense.
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
    """Connect to a store that exists.

    A connection to a server is made by the first call, and again by itself after it broke or the server restarted.

    Args:
        address: `HOST:PORT` or `grpc://HOST:PORT`, a server; `grpcs://HOST:PORT`, the same over TLS; without a port it
            is 7717, without a host (`:7718`) this machine. Or `shm://PATH`, the arena at PATH on this machine (taken as
            it is, with at least one slash: `shm:///dev/shm/tmem`).
        mlock: `shm://` only: keep the arena from being swapped out.
        timeout: Server only, as all below: seconds that one call may take, and that an operation goes on trying while
            the server is away. An operation of many calls may take longer as long as calls come back.
        encoding: `"lz4"`: pages are compressed and decompressed here; `"raw"`: there.
        on_unavailable: What happens while the server is away. `"raise"`: `UnavailableError` after `timeout`, and at
            once until the server is tried again. `"miss"`: at once, gets of ephemeral pools miss, puts are refused as
            `"unavailable"`, and flushes find nothing; the pages concerned are flushed before anything else once the
            server is back, so none that was refused or flushed is seen again. A get of a persistent pool raises all
            the same: its page is not lost.
        tls: TLS, with these files; None is plain text, unless the address begins with `grpcs://`, which trusts whom the
            system trusts.
        credentials: TLS as gRPC has it, from `grpc.ssl_channel_credentials`, instead of `tls`.

    Raises:
        ArenaError: There is no arena at the path, or it cannot be used.
        EngineMissingError: The native part is not installed (`shm://` only).
        OSError: A file of `tls` cannot be read.
        ValueError: The address is of a kind that this version does not know, or an option makes no sense.
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
