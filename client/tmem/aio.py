"""The asynchronous twin of `tmem.connect`, for servers: the same names, outcomes and errors, to be awaited.

```python
async with tmem.aio.connect("ramhost:7717") as store:
    pool = await store.pool("fs0", kind="ephemeral")
    await pool.put(1, {7: page})
    await pool.get(1, [7, 8])  # {7: b"..."}: 8 was a miss
```

What Store and Pool have as properties that ask the server are methods here. A store belongs to the event loop it is
first used in. An operation that is cancelled may still be carried out; nothing of it lands after a later one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

import grpc
import grpc.aio

from tmem import _server
from tmem._channel import OPTIONS, WINDOW, calls, failure, watch
from tmem._errors import ClosedError, UnknownPoolError
from tmem._link import ClientStats, Link, OnUnavailable, Options, parse_target
from tmem._outcome import OUTCOMES, Outcome, Outcomes
from tmem._pool import as_dict
from tmem._remote import RemotePool, RemoteStore
from tmem._settings import PoolOptions, PoolSettings, pool_settings
from tmem._sizes import Size, parse_size
from tmem._steps import Replies, Send, Steps, Wait
from tmem._tls import Tls, channel_credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from tmem._oid import Oid
    from tmem._stats import Compaction, PoolStats, StoreStats
    from tmem._wire import Wire

__all__ = ["AsyncPool", "AsyncStore", "connect"]

_T = TypeVar("_T")
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
    """Connect to a server; the arguments are those of `tmem.connect`. To be called where an event loop runs."""
    if not isinstance(address, str):
        raise TypeError(f"address must be a str, not {type(address).__name__}")
    link = Link(parse_target(address), Options(timeout=timeout, encoding=encoding, on_unavailable=on_unavailable))
    return AsyncStore(_Driver(link, channel_credentials(address, tls, credentials)))


class _Driver:
    """Carries out steps on a channel, for any number of tasks."""

    def __init__(self, link: Link, credentials: grpc.ChannelCredentials | None) -> None:
        self.link = link
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(link.address, OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(link.address, credentials, OPTIONS)
        self._calls = calls(self._channel)

    async def run(self, steps: Steps[_T]) -> _T:
        try:
            step = next(steps)
            while True:
                step = steps.send(await self._carry_out(step))
        except StopIteration as end:
            result: _T = end.value
            return result
        finally:
            steps.close()

    async def watch(self, pool: str | None) -> AsyncIterator[_server.Event]:
        request = _server.watch_request(pool)
        self.link.admit()
        stream: Any = watch(self._channel)(request)
        with suppress(grpc.RpcError):  # which reading tells
            await stream.initial_metadata()
        return self._events(stream)

    async def _events(self, stream: Any) -> AsyncIterator[_server.Event]:
        try:
            async for message in stream:
                yield _server.event(message)
        except grpc.RpcError as error:
            if self.link.closed:
                raise ClosedError("the store is closed") from None
            raise failure(error).exception() from None
        except asyncio.CancelledError:
            self._unless_cancelled()
            raise
        finally:
            stream.cancel()

    async def close(self) -> None:
        self.link.closed = True
        await self._channel.close()

    async def _carry_out(self, step: Send | Wait) -> Replies:
        if isinstance(step, Wait):
            await asyncio.sleep(step.seconds)
            return []
        replies: Replies = []
        flying: deque[Any] = deque()
        try:
            for request in step.requests:
                if len(flying) == WINDOW:
                    replies.append(await self._landed(flying.popleft()))
                flying.append(self._calls[step.method](request, timeout=self.link.options.timeout))
            while flying:
                replies.append(await self._landed(flying.popleft()))
        except grpc.aio.UsageError:
            raise ClosedError("the store is closed") from None
        finally:
            for flight in flying:
                flight.cancel()
        return replies

    async def _landed(self, flight: Any) -> Any:
        try:
            return await flight
        except grpc.RpcError as error:
            if self.link.closed:
                raise ClosedError("the store is closed") from None
            return failure(error)
        except asyncio.CancelledError:
            self._unless_cancelled()
            raise
        finally:
            flight.cancel()

    def _unless_cancelled(self) -> None:
        """Closing the channel cancels its calls; cancelling the task cancels the task."""
        task = asyncio.current_task()
        if self.link.closed and not (task and task.cancelling()):
            raise ClosedError("the store is closed") from None


class AsyncPool:
    """`tmem.Pool`, to be awaited."""

    __slots__ = ("_pool", "_run")

    def __init__(self, pool: RemotePool, driver: _Driver) -> None:
        self._pool = pool
        self._run = driver.run

    async def put(self, oid: Oid, pages: Mapping[int, Buffer]) -> dict[int, Outcome]:
        """As `Pool.put`."""
        batch = as_dict(pages)
        codes = await self._run(self._pool.put(oid, batch))
        return dict(zip(batch, (OUTCOMES[code] for code in codes), strict=True))

    async def put_lz4(self, oid: Oid, blocks: Mapping[int, Buffer]) -> dict[int, Outcome]:
        """As `Pool.put_lz4`."""
        batch = as_dict(blocks)
        codes = await self._run(self._pool.put_lz4(oid, batch))
        return dict(zip(batch, (OUTCOMES[code] for code in codes), strict=True))

    async def put_range(self, oid: Oid, first: int, buffer: Buffer) -> Outcomes:
        """As `Pool.put_range`."""
        return Outcomes(first, await self._run(self._pool.put_range(oid, first, buffer)))

    async def get(self, oid: Oid, indices: Iterable[int], *, exclusive: bool = False) -> dict[int, bytes]:
        """As `Pool.get`."""
        return await self._run(self._pool.get(oid, indices, exclusive))

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
        return await self._run(self._pool.get_range(oid, first, count, into, exclusive))

    async def has(self, oid: Oid, first: int, count: int) -> bytes:
        """As `Pool.has`."""
        return await self._run(self._pool.has(oid, first, count))

    async def flush(self, oid: Oid, indices: Iterable[int]) -> int:
        """As `Pool.flush`."""
        return await self._run(self._pool.flush(oid, indices))

    async def flush_object(self, oid: Oid) -> int:
        """As `Pool.flush_object`."""
        return await self._run(self._pool.flush_object(oid))

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
        """Bytes a page."""
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

    def __repr__(self) -> str:
        return f"<tmem.aio.AsyncPool {self.name!r} page_size={self.page_size}>"


class AsyncStore:
    """`tmem.Store`, to be awaited. Use it in an `async with` block."""

    __slots__ = ("_driver", "_run", "_store")

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver
        self._run = driver.run
        self._store = RemoteStore(driver.link)

    async def pool(self, name: str, **options: Unpack[PoolOptions]) -> AsyncPool:
        """Create a pool, or open the one of that name; the arguments are those of `Store.pool`."""
        return AsyncPool(await self._run(self._store.pool(name, pool_settings(**options))), self._driver)

    async def find_pool(self, name: str) -> AsyncPool:
        """As `Store.find_pool`."""
        found = await self._run(self._store.find_pool(name))
        if found is None:
            raise UnknownPoolError(name)
        return AsyncPool(found, self._driver)

    async def pools(self) -> list[AsyncPool]:
        """As `Store.pools`."""
        return [AsyncPool(pool, self._driver) for pool in await self._run(self._store.pools())]

    async def stats(self) -> StoreStats:
        """As `Store.stats`."""
        return cast("StoreStats", await self._run(self._store.stats()))

    def client_stats(self) -> ClientStats:
        """As `Store.client_stats`."""
        return self._driver.link.counters.stats()

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

    async def clients(self) -> list[_server.Client]:
        """As `Store.clients`."""
        return await self._run(_server.clients(self._driver.link))

    async def workers(self) -> list[_server.Worker]:
        """As `Store.workers`."""
        return await self._run(_server.workers(self._driver.link))

    async def events(self, pool: str | None = None) -> AsyncIterator[_server.Event]:
        """As `Store.events`: `async for event in await store.events()`."""
        return await self._driver.watch(pool)

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
        return self._driver.link.closed

    async def close(self) -> None:
        """Close the connection; operations under way raise `ClosedError`. Closing twice does nothing."""
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<tmem.aio.AsyncStore {'closed' if self.closed else self._driver.link.address}>"
