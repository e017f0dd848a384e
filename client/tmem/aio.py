"""The asynchronous twin of `tmem.connect`, for servers: the same names, outcomes and errors, to be awaited.

```python
async with tmem.aio.connect("ramhost:7717") as store:
    pool = await store.pool("fs0", kind="ephemeral")
    await pool.put(1, {7: page})
    await pool.get(1, [7, 8])  # {7: b"..."}: 8 was a miss
```

What Store and Pool have as properties that ask the server are methods here. A store belongs to the event loop it is
first used in. Any number of tasks may use a pool at once: their small calls go together where they can, and operations
on one page are carried out in the order in which they were called. One that is cancelled may still be carried out;
nothing of it lands after a later one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, Unpack, cast, overload

from tmem._model import checks
from tmem._model.errors import UnknownPoolError
from tmem._model.keywords import takes
from tmem._model.outcome import OUTCOMES, Outcome, Outcomes
from tmem._model.settings import ExportOptions, ExportSpec, PoolOptions, PoolSettings, export_spec, pool_settings
from tmem._model.sizes import Size, parse_size
from tmem._pool import as_dict
from tmem._protocol import admin_ops, export_ops
from tmem._protocol.connection import ClientStats, OnUnavailable, Options, ServerState, parse_target
from tmem._protocol.lanes import SMALL, Lanes
from tmem._protocol.page_ops import RemotePool, RemoteStore
from tmem._runtime import forks
from tmem._transport.tls import Tls, security

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from types import TracebackType
    from typing import Self

    import grpc
    from typing_extensions import Buffer

    from tmem._model.oid import Oid
    from tmem._model.stats import Compaction, PoolStats, StoreStats
    from tmem._protocol.messages import Wire
    from tmem._transport.aio_runner import Driver

__all__ = ["AsyncPool", "AsyncStore", "connect"]

_Target = TypeVar("_Target", bound="Buffer")


def connect(
    address: str,
    *,
    timeout: float = 10.0,
    encoding: Wire = "lz4",
    on_unavailable: OnUnavailable = "raise",
    tls: Tls | None = None,
    credentials: grpc.ChannelCredentials | None = None,
) -> AsyncStore:
    """Connect to a server; the arguments are those of `tmem.connect`. Needs no running event loop."""
    if not isinstance(address, str):
        raise TypeError(f"address must be a str, not {type(address).__name__}")
    server = ServerState(
        parse_target(address), Options(timeout=timeout, encoding=encoding, on_unavailable=on_unavailable)
    )
    with forks.importing_grpc_for_aio():
        from tmem._transport.aio_runner import Driver
    return AsyncStore(Driver(server, security(address, tls, credentials)))


class AsyncPool:
    """The asynchronous `tmem.Pool`."""

    __slots__ = ("_lanes", "_pool", "_run")

    def __init__(self, pool: RemotePool, driver: Driver, lanes: Lanes) -> None:
        self._pool = pool
        self._run = driver.run
        self._lanes = lanes

    async def put(self, oid: Oid, pages: Mapping[int, Buffer]) -> dict[int, Outcome]:
        """As `Pool.put`."""
        batch = as_dict(pages)
        key = checks.oid_bytes(oid)
        checks.pages(batch, self.page_size)
        if 0 < len(batch) <= SMALL:
            codes = await self._lanes.put(key, batch)
        else:
            async with self._lanes.turn(key, batch.keys(), changes=True):
                codes = await self._run(self._pool.put(key, batch))
        return dict(zip(batch, map(OUTCOMES.__getitem__, codes), strict=True))

    async def put_lz4(self, oid: Oid, blocks: Mapping[int, Buffer]) -> dict[int, Outcome]:
        """As `Pool.put_lz4`."""
        batch = as_dict(blocks)
        key = checks.oid_bytes(oid)
        async with self._lanes.turn(key, batch.keys(), changes=True):
            codes = await self._run(self._pool.put_lz4(key, batch))
        return dict(zip(batch, map(OUTCOMES.__getitem__, codes), strict=True))

    async def put_range(self, oid: Oid, first: int, buffer: Buffer) -> Outcomes:
        """As `Pool.put_range`."""
        key, wanted = checks.oid_bytes(oid), checks.range_of(first, buffer, self.page_size)
        async with self._lanes.turn(key, wanted, changes=True):
            return Outcomes(first, await self._run(self._pool.put_range(key, first, buffer)))

    async def get(self, oid: Oid, indices: Iterable[int], *, exclusive: bool = False) -> dict[int, bytes]:
        """As `Pool.get`."""
        key, wanted = checks.oid_bytes(oid), checks.index_list(indices)
        if 0 < len(wanted) <= SMALL and exclusive is False:
            return await self._lanes.get(key, wanted)
        async with self._lanes.turn(key, wanted, changes=self._takes(exclusive)):
            return await self._run(self._pool.get(key, wanted, exclusive))

    @overload
    async def get_range(
        self, oid: Oid, first: int, count: int, into: None = None, *, exclusive: bool = False
    ) -> tuple[bytearray, bytes]: ...
    @overload
    async def get_range(
        self, oid: Oid, first: int, count: int, into: _Target, *, exclusive: bool = False
    ) -> tuple[_Target, bytes]: ...
    async def get_range(
        self, oid: Oid, first: int, count: int, into: Buffer | None = None, *, exclusive: bool = False
    ) -> tuple[Buffer, bytes]:
        """As `Pool.get_range`."""
        key, wanted = checks.oid_bytes(oid), checks.span(first, count)
        async with self._lanes.turn(key, wanted, changes=self._takes(exclusive)):
            return await self._run(self._pool.get_range(key, first, count, into, exclusive))

    async def has(self, oid: Oid, first: int, count: int) -> bytes:
        """As `Pool.has`."""
        key, wanted = checks.oid_bytes(oid), checks.span(first, count)
        async with self._lanes.turn(key, wanted, changes=False):
            return await self._run(self._pool.has(key, first, count))

    async def flush(self, oid: Oid, indices: Iterable[int]) -> int:
        """As `Pool.flush`."""
        key, wanted = checks.oid_bytes(oid), checks.index_list(indices)
        async with self._lanes.turn(key, wanted, changes=True):
            return await self._run(self._pool.flush(key, wanted))

    async def flush_object(self, oid: Oid) -> int:
        """As `Pool.flush_object`."""
        key = checks.oid_bytes(oid)
        async with self._lanes.turn(key, None, changes=True):
            return await self._run(self._pool.flush_object(key))

    async def destroy(self) -> int:
        """As `Pool.destroy`."""
        return await self._run(self._pool.destroy())

    async def freeze(self) -> None:
        """As `Pool.freeze`."""
        await self._run(self._pool.freeze())

    async def thaw(self) -> None:
        """As `Pool.thaw`."""
        await self._run(self._pool.thaw())

    async def frozen(self) -> bool:
        """Whether the pool is frozen."""
        return await self._run(self._pool.frozen())

    @property
    def name(self) -> str:
        """The name of the pool."""
        return self._pool.name

    @property
    def page_size(self) -> int:
        """Bytes per page."""
        return self._pool.page_size

    async def settings(self) -> PoolSettings:
        """The settings of the pool, with its quota and weight as they are now."""
        return PoolSettings(**await self._run(self._pool.settings()))

    async def set_quota(self, size: Size | None) -> None:
        """Set the most memory the pool may use; None is no quota."""
        await self._run(self._pool.set_quota(0 if size is None else parse_size(size, "quota")))

    async def set_weight(self, weight: int) -> None:
        """Set the share of the memory relative to other ephemeral pools, at least 1."""
        await self._run(self._pool.set_weight(weight))

    async def stats(self) -> PoolStats:
        """As `Pool.stats`."""
        return cast("PoolStats", await self._run(self._pool.stats()))

    def _takes(self, exclusive: bool) -> bool:
        return bool(exclusive) or self._pool.session.gives_away

    def __repr__(self) -> str:
        return f"<tmem.aio.AsyncPool {self.name!r} page_size={self.page_size}>"


class AsyncStore:
    """The asynchronous `tmem.Store`. Use it in an `async with` block."""

    __slots__ = ("_driver", "_lanes", "_run", "_store")

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._run = driver.run
        self._store = RemoteStore(driver.server)
        self._lanes: dict[str, Lanes] = {}

    @takes(PoolOptions, PoolSettings)
    async def pool(self, name: str, **options: Unpack[PoolOptions]) -> AsyncPool:
        """As `Store.pool`."""
        return self._pool(await self._run(self._store.pool(name, pool_settings(**options))))

    async def find_pool(self, name: str) -> AsyncPool:
        """As `Store.find_pool`."""
        found = await self._run(self._store.find_pool(name))
        if found is None:
            raise UnknownPoolError(name)
        return self._pool(found)

    async def pools(self) -> list[AsyncPool]:
        """As `Store.pools`."""
        return [self._pool(pool) for pool in await self._run(self._store.pools())]

    async def stats(self) -> StoreStats:
        """As `Store.stats`."""
        return cast("StoreStats", await self._run(self._store.stats()))

    def client_stats(self) -> ClientStats:
        """As `Store.client_stats`."""
        return self._driver.server.counters.stats()

    async def compact(self) -> Compaction:
        """As `Store.compact`."""
        return cast("Compaction", await self._run(self._store.compact()))

    async def relinquish(self, size: Size) -> int:
        """As `Store.relinquish`."""
        return await self._run(self._store.relinquish(parse_size(size, "size")))

    async def resize(self, memory: Size) -> None:
        """As `Store.resize`."""
        await self._run(self._store.resize(parse_size(memory, "memory")))

    async def check(self) -> list[str]:
        """As `Store.check`."""
        return await self._run(self._store.check())

    async def clients(self) -> list[admin_ops.Client]:
        """As `Store.clients`."""
        return await self._run(admin_ops.clients(self._driver.server))

    async def workers(self) -> list[admin_ops.Worker]:
        """As `Store.workers`."""
        return await self._run(admin_ops.workers(self._driver.server))

    async def events(self, pool: str | None = None) -> AsyncIterator[admin_ops.Event]:
        """As `Store.events`: `async for event in await store.events()`."""
        return await self._driver.watch(pool)

    async def exports(self) -> list[export_ops.Export]:
        """As `Store.exports`."""
        return await self._run(export_ops.exports(self._driver.server))

    @takes(ExportOptions, ExportSpec)
    async def create_export(self, name: str, size: Size, **options: Unpack[ExportOptions]) -> export_ops.Export:
        """As `Store.create_export`."""
        return await self._run(export_ops.create(self._driver.server, export_spec(name, size, **options)))

    async def remove_export(self, name: str, *, force: bool = False) -> int:
        """As `Store.remove_export`."""
        return await self._run(export_ops.remove(self._driver.server, name, force))

    async def resize_export(self, name: str, size: Size) -> export_ops.Export:
        """As `Store.resize_export`."""
        return await self._run(export_ops.resize(self._driver.server, name, size))

    async def drain_export(self, name: str, *, undo: bool = False) -> export_ops.Export:
        """As `Store.drain_export`."""
        return await self._run(export_ops.drain(self._driver.server, name, undo))

    async def allow_export(
        self, name: str, *clients: str, undo: bool = False, anyone: bool = False
    ) -> export_ops.Export:
        """As `Store.allow_export`."""
        return await self._run(export_ops.allow(self._driver.server, name, clients, undo, anyone))

    async def memory(self) -> int:
        """The most memory the store may use, in bytes."""
        memory: int = (await self._run(self._store.info()))["memory"]
        return memory

    async def arena(self) -> str | None:
        """The path of the arena's file on the server; None when it is private."""
        arena: str | None = (await self._run(self._store.info()))["arena"]
        return arena

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._driver.server.closed

    def _pool(self, pool: RemotePool) -> AsyncPool:
        """All handles of a pool have the same lanes."""
        lanes = self._lanes.get(pool.name)
        if lanes is None or lanes.pool.session is not pool.session:
            lanes = self._lanes[pool.name] = Lanes(pool, self._run)
        return AsyncPool(pool, self._driver, lanes)

    async def close(self) -> None:
        """Close the connection; operations in flight raise `ClosedError`. Closing twice does nothing."""
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<tmem.aio.AsyncStore {'closed' if self.closed else self._driver.server.address}>"
