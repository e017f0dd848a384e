"""A store: pools by name, and what concerns all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack, cast

from tmem._model.errors import TmemError, UnknownPoolError
from tmem._model.keywords import takes
from tmem._model.settings import ExportOptions, ExportSpec, PoolOptions, PoolSettings, export_spec, pool_settings
from tmem._model.sizes import Size, format_size, parse_size
from tmem._pool import Pool
from tmem._protocol.connection import ClientStats

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from tmem._model.stats import Compaction, StoreStats
    from tmem._protocol.admin_ops import Client, Event, Worker
    from tmem._protocol.export_ops import Export
    from tmem._transport.api import ServerOps, StoreTransport


class Store:
    """An open store, from `tmem.open` or `tmem.connect`. Safe to use from many threads; use it in a `with` block.

    After `close` every method, here and on the pools, raises `ClosedError`.
    """

    __slots__ = ("_server", "_transport")

    def __init__(self, transport: StoreTransport, server: ServerOps | None = None) -> None:
        self._transport = transport
        self._server = server

    @takes(PoolOptions, PoolSettings)
    def pool(self, name: str, **options: Unpack[PoolOptions]) -> Pool:
        """Create a pool, or open the existing one of that name.

        Args:
            name: 1 to 64 bytes of UTF-8. Pools live in the arena and outlast the process.
            **options: The fields of `PoolSettings`, with their defaults.

        Raises:
            MismatchError: The pool exists with different settings; the message names them.
            ExhaustedError: The arena cannot hold more pools.
            ValueError: A setting is invalid.
        """
        settings = pool_settings(**options)
        self._check_free(name)
        return Pool(self._transport.pool(name, settings))

    def find_pool(self, name: str) -> Pool:
        """The existing pool of that name, whatever its settings.

        Raises:
            UnknownPoolError: There is none.
        """
        self._check_free(name)
        found = self._transport.find_pool(name)
        if found is None:
            raise UnknownPoolError(name)
        return Pool(found)

    def pools(self) -> list[Pool]:
        """All pools of the store."""
        return [Pool(transport) for transport in self._transport.pools()]

    def stats(self) -> StoreStats:
        """Counters and gauges of the whole store; sizes in bytes, totals since the arena was created."""
        return cast("StoreStats", self._transport.stats())

    def client_stats(self) -> ClientStats:
        """Counters of this client's connection; all zero without a connection."""
        return self._server.client_stats() if self._server else ClientStats()

    def compact(self) -> Compaction:
        """Compact the store: move pages together and return the freed memory to the system."""
        return cast("Compaction", self._transport.compact())

    def relinquish(self, size: Size) -> int:
        """Evict ephemeral pages to return up to `size` of memory to the system; returns the bytes returned."""
        return self._transport.relinquish(parse_size(size, "size"))

    def resize(self, memory: Size) -> None:
        """Raise the most memory the store may use.

        Raises:
            ValueError: `memory` is less than it was.
            ArenaError: The file cannot grow.
        """
        self._transport.resize(parse_size(memory, "memory"))

    def check(self) -> list[str]:
        """Check the consistency of the whole arena. Returns the violations found, none if it is intact."""
        return self._transport.check()

    def clients(self) -> list[Client]:
        """The clients of the server, with their limits and usage.

        Raises:
            TmemError: The store has no server; `workers` and `events` raise it too.
        """
        return self._served.clients()

    def workers(self) -> list[Worker]:
        """The worker processes of the server."""
        return self._served.workers()

    def events(self, pool: str | None = None) -> Iterator[Event]:
        """Events of the server as they happen from now on, of one pool or of all.

        The iterator waits for the next event and stops when the pool is destroyed. It raises `UnavailableError` when
        the server goes away and `ClosedError` when the store is closed; its `close` method ends it.
        """
        return self._served.events(pool)

    def exports(self) -> list[Export]:
        """The block devices that the server exports over NBD, with their contents and connected clients.

        Raises:
            TmemError: The store has no server; the other methods on exports raise it too.
        """
        return self._served.exports()

    @takes(ExportOptions, ExportSpec)
    def create_export(self, name: str, size: Size, **options: Unpack[ExportOptions]) -> Export:
        """Create an empty block device of `size`, with a pool of its own.

        Args:
            name: 1 to 57 letters, digits, `.`, `_` and `-`, the first a letter or digit.
            size: A multiple of 4096. It is a promise, kept as far as there is memory.
            **options: The other fields of `ExportSpec`, with their defaults.

        Raises:
            MismatchError: An export of that name exists.
            ExhaustedError: The memory cannot be reserved; the message has the numbers.
        """
        return self._served.create_export(export_spec(name, size, **options))

    def remove_export(self, name: str, *, force: bool = False) -> int:
        """Remove an export with all its data; returns the number of pages dropped.

        Raises:
            UnknownExportError: There is no export of that name.
            MismatchError: A client has it open; `force` disconnects it instead.
        """
        return self._served.remove_export(name, force)

    def resize_export(self, name: str, size: Size) -> Export:
        """Resize an export. Clients see the new size when they reconnect.

        Raises:
            MismatchError: It would shrink, but holds data beyond the new end or is in use.
        """
        return self._served.resize_export(name, size)

    def drain_export(self, name: str, *, undo: bool = False) -> Export:
        """Admit no new clients to an export; connected ones continue. This survives restarts; `undo` ends it."""
        return self._served.drain_export(name, undo)

    def allow_export(self, name: str, *clients: str, undo: bool = False, anyone: bool = False) -> Export:
        """Allow these clients to open an export, revoke that (`undo`), or allow everyone who can reach it (`anyone`).

        If anyone could open it, only these clients can from now on. Connections of clients that lost the right are
        closed when this returns.
        """
        return self._served.allow_export(name, clients, undo, anyone)

    @property
    def memory(self) -> int:
        """The most memory the store may use, in bytes."""
        memory: int = self._transport.info()["memory"]
        return memory

    @property
    def arena(self) -> str | None:
        """The path of the arena's file; None when it is private."""
        arena: str | None = self._transport.info()["arena"]
        return arena

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._transport.closed

    def close(self) -> None:
        """Detach from the arena, or close the connection; closing twice does nothing.

        Calls in flight in other threads complete on an arena, and raise `ClosedError` on a connection.
        """
        self._transport.close()

    def _check_free(self, name: str) -> None:
        """A server protects its own pools itself."""
        if name.startswith(".") and is_local(self):
            raise ValueError(f"pool {name!r}: names beginning with '.' are reserved for the server")

    @property
    def _served(self) -> ServerOps:
        if self._server is None:
            raise TmemError("this needs a server; the store is an arena in this process")
        return self._server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<tmem.Store closed>"
        if self._server is not None:
            return f"<tmem.Store {self._server.address}>"
        return f"<tmem.Store {self.arena or 'private'} memory={format_size(self.memory)}>"


def is_local(store: Store) -> bool:
    """Whether the store is in this process or in shared memory, where a call cannot wait for another machine."""
    return store._server is None
