"""Derives events from two samples of a store.

Counters of the arena only rise, so their differences show what all processes did. A counter that falls, as after a
rebuilt shard, yields no event. Events of an export carry the name of its pool, which is created and destroyed with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tmem_proto.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Counter = tuple["pb.EventKind.ValueType", str]
"""What a counter counts: a kind of event and its cause."""

StoreEvent = tuple[int, pb.Event]
"""An event, and the id of its pool; 0 is the whole store."""

_SPLIT = (("evicted_", pb.EVENT_KIND_EVICTED), ("refused_", pb.EVENT_KIND_REFUSED))
_TOTALS = {"evicted_pages", "evicted_frames"}


@dataclass(frozen=True, slots=True)
class PoolSample:
    """A pool in one sample."""

    name: str
    client: str
    frozen: bool
    counters: Mapping[Counter, int]


@dataclass(frozen=True, slots=True)
class ExportSample:
    """An export in one sample: its clients now, and how many were ever let in or refused."""

    size: int
    draining: bool
    clients: int
    attached: int
    refused: int


@dataclass(frozen=True, slots=True)
class StoreSample:
    """A store in one sample: pools by id, shards ever rebuilt, replacements per worker, exports by pool."""

    pools: Mapping[int, PoolSample]
    recoveries: int
    replaced: Mapping[int, int]
    exports: Mapping[str, ExportSample] = field(default_factory=dict)


def counters(stats: Mapping[str, Any]) -> dict[Counter, int]:
    """The counters among a pool's statistics that yield events."""
    found = {
        (kind, key.removeprefix(prefix)): value
        for prefix, kind in _SPLIT
        for key, value in stats.items()
        if key.startswith(prefix) and key not in _TOTALS
    }
    return {**found, (pb.EVENT_KIND_CORRUPT, ""): stats["gets_corrupt"]}


def differences(before: StoreSample, after: StoreSample, time: float) -> Iterator[StoreEvent]:
    """The events, destroyed pools first: a new pool may have the name of a destroyed one."""
    for number in before.pools.keys() - after.pools.keys():
        yield number, _event(before.pools[number], pb.EVENT_KIND_POOL_DESTROYED, time)
    for number, pool in after.pools.items():
        for event in _of_pool(before.pools.get(number), pool, time):
            yield number, event
    yield from _of_exports(before, after, time)
    if after.recoveries > before.recoveries:
        yield 0, pb.Event(time=time, kind=pb.EVENT_KIND_RECOVERED, count=after.recoveries - before.recoveries)
    for worker, times in after.replaced.items():
        new = times - before.replaced.get(worker, times)
        if new > 0:
            yield 0, pb.Event(time=time, kind=pb.EVENT_KIND_WORKER_REPLACED, cause=f"worker {worker}", count=new)


def _of_pool(before: PoolSample | None, after: PoolSample, time: float) -> Iterator[pb.Event]:
    if before is None:
        yield _event(after, pb.EVENT_KIND_POOL_CREATED, time)
        before = PoolSample(after.name, after.client, False, {})
    if after.frozen != before.frozen:
        yield _event(after, pb.EVENT_KIND_POOL_FROZEN if after.frozen else pb.EVENT_KIND_POOL_THAWED, time)
    for (kind, cause), count in after.counters.items():
        new = count - before.counters.get((kind, cause), 0)
        if new > 0:
            yield _event(after, kind, time, cause, new)


def _of_exports(before: StoreSample, after: StoreSample, time: float) -> Iterator[StoreEvent]:
    """Events of exports that were there before."""
    for number in before.pools.keys() & after.pools.keys():
        pool = after.pools[number]
        was, now = before.exports.get(pool.name), after.exports.get(pool.name)
        if was is not None and now is not None:
            for kind, count in _changes(was, now):
                yield number, _event(pool, kind, time, count=count)


def _changes(was: ExportSample, now: ExportSample) -> Iterator[tuple[pb.EventKind.ValueType, int]]:
    if now.size != was.size:
        yield pb.EVENT_KIND_EXPORT_RESIZED, now.size
    if now.draining != was.draining:
        yield pb.EVENT_KIND_EXPORT_DRAINED if now.draining else pb.EVENT_KIND_EXPORT_UNDRAINED, 0
    came = max(now.attached - was.attached, 0)
    for kind, count in (
        (pb.EVENT_KIND_EXPORT_ATTACHED, came),
        (pb.EVENT_KIND_EXPORT_DETACHED, was.clients + came - now.clients),
        (pb.EVENT_KIND_EXPORT_REFUSED, now.refused - was.refused),
    ):
        if count > 0:
            yield kind, count


def _event(pool: PoolSample, kind: pb.EventKind.ValueType, time: float, cause: str = "", count: int = 0) -> pb.Event:
    return pb.Event(time=time, kind=kind, pool=pool.name, client=pool.client, cause=cause, count=count)
