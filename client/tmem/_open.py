"""The two ways to a store: `open` one in this process, or `connect` to one that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tmem import _local
from tmem._sizes import Size, parse_size
from tmem._store import Store

if TYPE_CHECKING:
    import os

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
    transport = _local.open_arena(
        memory=parse_size(memory, "memory"),
        arena=arena,
        shards=shards,
        mlock=mlock,
        huge_pages=huge_pages,
        accept_threshold=accept_threshold,
    )
    return Store(transport)


def connect(address: str, *, mlock: bool = False) -> Store:
    """Connect to a store that exists.

    Args:
        address: `shm://PATH`, the arena at PATH (taken as it is, with at least one slash: `shm:///dev/shm/tmem`).
        mlock: Keep the arena from being swapped out.

    Raises:
        ArenaError: There is no arena at the path, or it cannot be used.
        EngineMissingError: The native part is not installed.
        ValueError: The address is of a kind that this version does not know.
    """
    if not isinstance(address, str):
        raise TypeError(f"address must be a str, not {type(address).__name__}")
    if not address.startswith(_SHM):
        raise ValueError(f"address is {address!r}; this version connects to shm://PATH only")
    path = address.removeprefix(_SHM)
    if "/" not in path:
        raise ValueError(f"address is {address!r}; expected the path of an arena after {_SHM}, with a slash in it")
    return Store(_local.attach_arena(path, mlock=mlock))
