"""Streams events to watchers: one sampling task for all of them.

While somebody watches, the arena's statistics are sampled a few times a second, so that events caused by any process
are seen, and passed to every watcher. A watcher's queue is bounded: one that reads too slowly loses the oldest events
and is told how many. Lives on the event loop; samples are taken in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from tmem_proto.v1 import admin_pb2 as pb
from tmemd.base.errors import ClosedError, LimitError, UnknownPoolError
from tmemd.base.logs import RateLimitedErrors
from tmemd.store.names import EXPORTS
from tmemd.telemetry.store_diff import ExportSample, PoolSample, StoreSample, counters, differences

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from tmemd.config.settings import Config
    from tmemd.security.identity import Client
    from tmemd.store.api import Store, StorePool
    from tmemd.telemetry.counters import Counts
    from tmemd.telemetry.processes import Worker, Workers
    from tmemd.telemetry.store_diff import StoreEvent

INTERVAL = 0.25
"""Fewest seconds between samples."""
REST = 15
"""The pause is at least this many times as long as the last sample took: many pools are sampled more rarely."""


class Watcher:
    """A watcher's queue of events. With a pool's id, only events of that pool, until it is destroyed."""

    def __init__(self, pool: int, most: int) -> None:
        self._pool = pool
        self._waiting: deque[pb.Event] = deque(maxlen=most)
        self._missed = 0
        self._gone = False
        self._failed: Exception | None = None
        self._news = asyncio.Event()

    def offer(self, event_of_pool: StoreEvent) -> None:
        """Queue an event; a full queue drops its oldest."""
        pool, event = event_of_pool
        if self._gone or self._pool not in (0, pool):
            return
        self._missed += len(self._waiting) == self._waiting.maxlen
        self._waiting.append(event)
        self._gone = self._pool != 0 and event.kind == pb.EVENT_KIND_POOL_DESTROYED
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Have `next` raise this once the queue is empty."""
        self._failed = error
        self._news.set()

    async def next(self) -> pb.Event | None:
        """The next event, after one for missed events. None once the pool is gone."""
        while True:
            if self._missed:
                missed, self._missed = self._missed, 0
                return pb.Event(time=time.time(), kind=pb.EVENT_KIND_MISSED, count=missed)
            if self._waiting:
                return self._waiting.popleft()
            if self._failed:
                raise self._failed
            if self._gone:
                return None
            self._news.clear()
            await self._news.wait()


class EventBroadcaster:
    """Samples the store, and passes events to all watchers."""

    def __init__(self, store: Store, workers: Workers, config: Config, counts: Callable[[], Awaitable[Counts]]) -> None:
        """`counts` returns the counts of all workers, including exports."""
        self._counts = counts
        self._store = store
        self._workers = workers
        self._config = config
        self._watchers: set[Watcher] = set()
        self._by_client: Counter[Client] = Counter()
        """Watchers per client, including those that are starting."""
        self._sampling = asyncio.Lock()
        self._last: StoreSample | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @asynccontextmanager
    async def watching(self, client: Client, pool: StorePool | None) -> AsyncIterator[Watcher]:
        """A watcher of events from now on, of one pool or all."""
        self._check_room(client)
        self._by_client[client] += 1
        try:
            async with self._joined(pool) as watcher:
                yield watcher
        finally:
            self._by_client[client] -= 1
            self._by_client += Counter()  # drops zeros

    def _check_room(self, client: Client) -> None:
        """Raise if a client may have no further watcher. A quarter of all are reserved for administrators."""
        most, of_one = self._config.max_watchers, self._config.max_client_watchers
        if not client.administrator and self._by_client[client] >= of_one:
            raise LimitError(f"client {client.name!r} has {of_one} watchers, which is the limit")
        tenants = sum(count for one, count in self._by_client.items() if not one.administrator)
        full = self._by_client.total() >= most
        if full or (not client.administrator and tenants >= max(1, most - most // 4)):
            raise LimitError(f"{self._by_client.total()} watchers are connected, which is the limit")

    @asynccontextmanager
    async def _joined(self, pool: StorePool | None) -> AsyncIterator[Watcher]:
        seen = await self._sample()  # earlier events are for earlier watchers
        gone = pool is not None and pool.id not in seen.pools
        del seen  # not kept alive while this one watches
        if self._closed:
            raise ClosedError("the daemon is stopping")
        if pool is not None and gone:
            raise UnknownPoolError(pool.name)
        watcher = Watcher(0 if pool is None else pool.id, self._config.watch_events)
        self._watchers.add(watcher)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            self._stop_if_unwatched()

    def close(self) -> None:
        """End all watchers."""
        self._closed = True
        for watcher in self._watchers:
            watcher.fail(ClosedError("the daemon is stopping"))

    def _stop_if_unwatched(self) -> None:
        if not self._watchers and self._task is not None:
            self._task.cancel()
            self._task = None
            self._last = None

    async def _run(self) -> None:
        spent, faults = 0.0, RateLimitedErrors()
        while not self._closed:
            await asyncio.sleep(max(INTERVAL, spent * REST))
            start = time.monotonic()
            try:
                await self._sample()
            except Exception as error:
                faults.log("cannot sample the store for its watchers", error)
            spent = time.monotonic() - start

    async def _sample(self) -> StoreSample:
        async with self._sampling:
            counts = await self._counts()
            after = await self._store.call(lambda: sample(self._store, self._workers.all))
            before = self._last
            after = self._last = replace(after, exports=_exports(counts, after, before))
            for event_of_pool in differences(before or after, after, time.time()):
                for watcher in self._watchers:
                    watcher.offer(event_of_pool)
        return after


def sample(store: Store, workers: Sequence[Worker]) -> StoreSample:
    """The store as it is now."""
    pools = {}
    for pool in store.pools():
        try:
            pools[pool.id] = PoolSample(pool.name, pool.owner, pool.frozen(), counters(pool.stats()))
        except UnknownPoolError:
            continue  # destroyed since
    replaced = {worker.number: worker.replaced for worker in workers}
    return StoreSample(pools, store.stats()["recoveries"], replaced)


def _exports(counts: Counts, now: StoreSample, before: StoreSample | None) -> dict[str, ExportSample]:
    """Exports by the names of their pools. While worker 0 is being replaced, the last known state stands in."""
    told = {
        EXPORTS + name: ExportSample(
            size=size,
            draining=bool(counts.export_draining[name]),
            clients=counts.export_clients[name],
            attached=counts.exports[name, "attached"],
            refused=counts.exports[name, "refused"],
        )
        for name, size in counts.export_sizes.items()
    }
    there = {pool.name for pool in now.pools.values()}
    kept = before.exports if before is not None else {}
    return {name: seen for name, seen in {**kept, **told}.items() if name in there}
