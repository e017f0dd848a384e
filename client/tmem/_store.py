"""A store: pools by name, and what concerns all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from tmem._model.errors import TmemError, UnknownPoolError
from tmem._model.settings import Allocator, Kind, pool_settings
from tmem._model.sizes import Size, format_size, parse_size
from tmem._pool import Pool
from tmem._protocol.connection import ClientStats

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Any, Self

    from tmem._model.stats import Compaction, StoreStats
    from tmem._protocol.admin_ops import Client, Event, Worker
    from tmem._protocol.export_ops import Export
    from tmem._transport.api import StoreTransport


class Store:
    """An open store, from `tmem.open` or `tmem.connect`. Safe to use from many threads; use it in a `with` block.

    After `close` every method, here and on the pools, raises `ClosedError`.
    """

    __slots__ = ("_transport",)

    def __init__(self, transport: StoreTransport) -> None:
        self._transport = transport

    def pool(
        self,
        name: str,
        *,
        kind: Kind = "persistent",
        codec: str = "lz4",
        allocator: Allocator | None = None,
        page_size: Size = 4096,
        quota: Size | None = None,
        weight: int = 1,
        shared: bool = False,
        inclusive: bool = False,
        max_zpage: Size = 0,
        owner: str = "",
    ) -> Pool:
        """Create a pool, or open the one of that name.

        Args:
            name: 1 to 64 bytes of UTF-8. Pools live in the arena and outlast the process.
            kind: `"persistent"`: a page that was stored stays until it is flushed. `"ephemeral"`: the store may forget
                a page at any time, and a get takes the page out unless the pool is `shared` or `inclusive`.
            codec: `"lz4"`, `"lz4:ACCELERATION"` (1 to 65537), `"lz4hc"`, `"lz4hc:LEVEL"` (3 to 12: smaller LZ4
                blocks, slow to make), `"zstd"`, `"zstd:LEVEL"` (-7 to 19) or `"raw"`.
            allocator: `"zsmalloc"` or `"zbud"`; None is zsmalloc for persistent pools and zbud for ephemeral ones.
            page_size: Bytes a page: 4096, 8192, 16384, 32768, 65536, 131072 or 262144.
            quota: The most memory the pool may use, in bytes of footprint; None or 0 is no quota.
            weight: Share of the memory relative to other ephemeral pools, at least 1. Where it is 1 a server may give
                this client's new pools another.
            shared: An ephemeral pool used by many clients: a get keeps the page.
            inclusive: An ephemeral pool of one client in which a get keeps the page all the same.
            max_zpage: Refuse pages that compress to more bytes than this; 0 refuses none.
            owner: The client the pool belongs to, at most 64 bytes of UTF-8; on a server this client, if empty.

        Raises:
            MismatchError: The pool exists with other settings; the message names the difference.
            ExhaustedError: The arena holds as many pools as it can.
            ValueError: A setting makes no sense.
        """
        settings = pool_settings(
            kind=kind,
            codec=codec,
            allocator=allocator,
            page_size=page_size,
            quota=quota,
            weight=weight,
            shared=shared,
            inclusive=inclusive,
            max_zpage=max_zpage,
            owner=owner,
        )
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
        stats: ClientStats = getattr(self._transport, "client_stats", ClientStats)()
        return stats

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
        return cast("list[Client]", self._served("clients")())

    def workers(self) -> list[Worker]:
        """The processes of the server."""
        return cast("list[Worker]", self._served("workers")())

    def events(self, pool: str | None = None) -> Iterator[Event]:
        """What happens on the server from now on, as it happens, of one pool or of all.

        The iterator waits for the next event, and stops when the pool is destroyed. It ends with `UnavailableError`
        when the server goes away, with `ClosedError` when the store is closed, and by its `close` method.
        """
        return cast("Iterator[Event]", self._served("events")(pool))

    def exports(self) -> list[Export]:
        """The block devices that the server exports over NBD, with what they hold and who has them open.

        Raises:
            TmemError: The store is an arena in this process; so it is with the other methods of exports.
        """
        return cast("list[Export]", self._served("exports")())

    def create_export(
        self,
        name: str,
        size: Size,
        *,
        reserve: Size = 0,
        codec: str = "lz4",
        multi_conn: bool = False,
        allow: Sequence[str] | None = None,
        block_size: Size = 4096,
    ) -> Export:
        """Make a block device of `size`, empty, with a pool of its own.

        Args:
            name: 1 to 57 letters, digits, `.`, `_` and `-`, the first a letter or digit.
            size: A multiple of 4096. It is a promise, kept as far as there is memory.
            reserve: Memory that it is sure of.
            codec: As of a pool.
            multi_conn: Let several connections have it open at once; else a second client is refused, which keeps two
                hosts from swapping to one device.
            allow: Names of the clients that may open it: those in their certificates, `local` or `network`; `*` is
                anybody whom the address lets in. None: the server's default, which is the creator, administrators and
                `local` where clients have certificates, else anybody.
            block_size: Bytes that are compressed together, and read and written as a whole: a power of two from 4096 to
                262144. Larger ones are denser; a request for a part of one costs as much as the whole.

        Raises:
            MismatchError: There is an export of the name.
            ExhaustedError: The reserve cannot be kept; the message has the numbers.
        """
        settings = reserve, codec, multi_conn, allow, block_size
        return cast("Export", self._served("create_export")(name, size, *settings))

    def remove_export(self, name: str, *, force: bool = False) -> int:
        """Remove an export with all it holds; returns the number of pages dropped.

        Raises:
            UnknownExportError: There is none of the name.
            MismatchError: A client has it open, and is not cut off by `force`.
        """
        return cast("int", self._served("remove_export")(name, force))

    def resize_export(self, name: str, size: Size) -> Export:
        """Give an export another size. Clients see it when they connect anew.

        Raises:
            MismatchError: It would be smaller, and holds data beyond the new end or is in use.
        """
        return cast("Export", self._served("resize_export")(name, size))

    def drain_export(self, name: str, *, undo: bool = False) -> Export:
        """Let no new client of an export in; those that are there go on. Restarts do not end it, `undo` does."""
        return cast("Export", self._served("drain_export")(name, undo))

    def allow_export(self, name: str, *clients: str, undo: bool = False, anyone: bool = False) -> Export:
        """Let these clients open an export too, or no longer (`undo`), or let in whom the address lets in (`anyone`).

        Where anybody might open it, only these may from now on. Connections of those who may no longer have ended when
        this returns.
        """
        return cast("Export", self._served("allow_export")(name, clients, undo, anyone))

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

    def _served(self, what: str) -> Any:
        """A method that the transport has where there is a server."""
        method = getattr(self._transport, what, None)
        if method is None:
            raise TmemError(f"{what} are a server's, and this store is an arena in this process")
        return method

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<tmem.Store closed>"
        address = getattr(self._transport, "address", None)
        if address is not None:
            return f"<tmem.Store {address}>"
        return f"<tmem.Store {self.arena or 'private'} memory={format_size(self.memory)}>"


def is_local(store: Store) -> bool:
    """Whether the store is in this process or in shared memory, where a call cannot wait for another machine."""
    return getattr(store._transport, "address", None) is None
