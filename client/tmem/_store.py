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
        """Create a pool, or open the one of that name.

        Args:
            name: 1 to 64 bytes of UTF-8. Pools live in the arena and outlast the process.
            **options: The fields of `PoolSettings`, with their defaults.

        Raises:
            MismatchError: The pool exists with other settings; the message names the difference.
            ExhaustedError: The arena holds as many pools as it can.
            ValueError: A setting makes no sense.
        """
        settings = pool_settings(**options)
        self._check_free(name)
        return Pool(self._transport.pool(name, settings))

    def find_pool(self, name: str) -> Pool:
        """The pool of that name, with the settings it has.

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
        """What this side of the connection has counted; all zero where there is no connection."""
        return self._server.client_stats() if self._server else ClientStats()

    def compact(self) -> Compaction:
        """Move pages together and give the memory that frees back to the system."""
        return cast("Compaction", self._transport.compact())

    def relinquish(self, size: Size) -> int:
        """Give back up to `size` of memory by evicting ephemeral pages; returns the bytes given back."""
        return self._transport.relinquish(parse_size(size, "size"))

    def resize(self, memory: Size) -> None:
        """Raise the most memory the store may use.

        Raises:
            ValueError: `memory` is less than it was.
            ArenaError: The file cannot grow.
        """
        self._transport.resize(parse_size(memory, "memory"))

    def check(self) -> list[str]:
        """Check the whole arena for consistency. Returns the violations found: empty when it is sound."""
        return self._transport.check()

    def clients(self) -> list[Client]:
        """The clients of the server, with what they have and use.

        Raises:
            TmemError: The store is an arena in this process; so it is with `workers` and `events`.
        """
        return self._served.clients()

    def workers(self) -> list[Worker]:
        """The processes of the server."""
        return self._served.workers()

    def events(self, pool: str | None = None) -> Iterator[Event]:
        """What happens on the server from now on, as it happens, of one pool or of all.

        The iterator waits for the next event, and stops when the pool is destroyed. It ends with `UnavailableError`
        when the server goes away, with `ClosedError` when the store is closed, and by its `close` method.
        """
        return self._served.events(pool)

    def exports(self) -> list[Export]:
        """The block devices that the server exports over NBD, with what they hold and who has them open.

        Raises:
            TmemError: The store is an arena in this process; so it is with the other methods of exports.
        """
        return self._served.exports()

    @takes(ExportOptions, ExportSpec)
    def create_export(self, name: str, size: Size, **options: Unpack[ExportOptions]) -> Export:
        """Make a block device of `size`, empty, with a pool of its own.

        Args:
            name: 1 to 57 letters, digits, `.`, `_` and `-`, the first a letter or digit.
            size: A multiple of 4096. It is a promise, kept as far as there is memory.
            **options: The other fields of `ExportSpec`, with their defaults.

        Raises:
            MismatchError: There is an export of the name.
            ExhaustedError: The reserve cannot be kept; the message has the numbers.
        """
        return self._served.create_export(export_spec(name, size, **options))

    def remove_export(self, name: str, *, force: bool = False) -> int:
        """Remove an export with all it holds; returns the number of pages dropped.

        Raises:
            UnknownExportError: There is none of the name.
            MismatchError: A client has it open, and is not cut off by `force`.
        """
        return self._served.remove_export(name, force)

    def resize_export(self, name: str, size: Size) -> Export:
        """Give an export another size. Clients see it when they connect anew.

        Raises:
            MismatchError: It would be smaller, and holds data beyond the new end or is in use.
        """
        return self._served.resize_export(name, size)

    def drain_export(self, name: str, *, undo: bool = False) -> Export:
        """Let no new client of an export in; those that are there go on. Restarts do not end it, `undo` does."""
        return self._served.drain_export(name, undo)

    def allow_export(self, name: str, *clients: str, undo: bool = False, anyone: bool = False) -> Export:
        """Let these clients open an export too, or no longer (`undo`), or let in whom the address lets in (`anyone`).

        Where anybody might open it, only these may from now on. Connections of those who may no longer have ended when
        this returns.
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
        """Let go of the arena, or close the connection; closing twice does nothing.

        Calls under way in other threads end as usual on an arena, and with `ClosedError` on a connection.
        """
        self._transport.close()

    def _check_free(self, name: str) -> None:
        """A server looks to its own pools itself."""
        if name.startswith(".") and is_local(self):
            raise ValueError(f"pool {name!r}: names that begin with '.' are for pools of the server itself")

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
