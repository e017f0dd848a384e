"""Events as differences of two looks, and the bounded queue of a watcher."""

import asyncio
from dataclasses import replace

import pytest

from tmem_proto.v1 import admin_pb2 as pb
from tmemd.base.errors import ClosedError
from tmemd.telemetry.event_watchers import Watcher
from tmemd.telemetry.store_diff import ExportSample, PoolSample, StoreSample, counters, differences

EVICTED, REFUSED, CORRUPT = pb.EVENT_KIND_EVICTED, pb.EVENT_KIND_REFUSED, pb.EVENT_KIND_CORRUPT
POOL = PoolSample("fs0", "me", False, {(EVICTED, "memory"): 10, (REFUSED, "quota"): 3, (CORRUPT, ""): 0})
EMPTY = StoreSample({}, 0, {})


def told(before: StoreSample, after: StoreSample) -> list[tuple[str, str, str, int]]:
    """Kind, pool, cause and count of each event."""
    events = [event for _, event in differences(before, after, 7.5)]
    assert all(event.time == 7.5 for event in events)
    kinds = pb.EventKind.Name
    return [(kinds(event.kind).removeprefix("EVENT_KIND_"), event.pool, event.cause, event.count) for event in events]


def with_counters(**counts: int) -> PoolSample:
    kinds = {"memory": EVICTED, "quota": REFUSED, "corrupt": CORRUPT}
    return replace(POOL, counters={(kinds[name], name.replace("corrupt", "")): n for name, n in counts.items()})


def test_nothing_happened() -> None:
    same = StoreSample({1: POOL}, 5, {0: 2})
    assert told(same, same) == []


def test_counters_that_rose_are_told_by_how_much() -> None:
    after = StoreSample({1: with_counters(memory=14, quota=4, corrupt=2)}, 0, {})
    assert told(StoreSample({1: POOL}, 0, {}), after) == [
        ("EVICTED", "fs0", "memory", 4),
        ("REFUSED", "fs0", "quota", 1),
        ("CORRUPT", "fs0", "", 2),
    ]


def test_counters_that_fell_are_not_told() -> None:
    assert told(StoreSample({1: POOL}, 3, {0: 2}), StoreSample({1: with_counters(memory=1)}, 0, {0: 0})) == []


def test_pools_come_go_freeze_and_thaw() -> None:
    frozen = replace(POOL, frozen=True)
    assert told(EMPTY, StoreSample({1: replace(frozen, counters={(EVICTED, "memory"): 2})}, 0, {})) == [
        ("POOL_CREATED", "fs0", "", 0),
        ("POOL_FROZEN", "fs0", "", 0),
        ("EVICTED", "fs0", "memory", 2),
    ]
    assert told(StoreSample({1: frozen}, 0, {}), StoreSample({1: POOL}, 0, {})) == [("POOL_THAWED", "fs0", "", 0)]
    assert told(StoreSample({1: POOL}, 0, {}), EMPTY) == [("POOL_DESTROYED", "fs0", "", 0)]


def test_a_pool_made_anew_under_an_old_name_is_another() -> None:
    """Its counters begin anew, though they may have passed those of the old one."""
    after = StoreSample({2: with_counters(memory=12)}, 0, {})
    assert told(StoreSample({1: POOL}, 0, {}), after) == [
        ("POOL_DESTROYED", "fs0", "", 0),
        ("POOL_CREATED", "fs0", "", 0),
        ("EVICTED", "fs0", "memory", 12),
    ]


def test_recoveries_and_replaced_workers_concern_the_whole_store() -> None:
    before, after = StoreSample({}, 1, {0: 0, 1: 4}), StoreSample({}, 3, {0: 0, 1: 5, 2: 9})
    assert told(before, after) == [("RECOVERED", "", "", 2), ("WORKER_REPLACED", "", "worker 1", 1)]
    assert [number for number, _ in differences(before, after, 0)] == [0, 0]


def test_counters_are_split_by_cause_and_totals_left_out() -> None:
    stats = {"evicted_memory": 1, "evicted_pages": 1, "evicted_frames": 1, "refused_quota": 2, "gets_corrupt": 3}
    stats |= {"pages": 9, "gets_hit": 9, "puts_old_flushed": 9}
    assert counters(stats) == {(EVICTED, "memory"): 1, (REFUSED, "quota"): 2, (CORRUPT, ""): 3}


def event(count: int, kind: pb.EventKind.ValueType = EVICTED) -> pb.Event:
    return pb.Event(kind=kind, count=count)


def taken(watcher: Watcher, most: int) -> list[pb.Event | None]:
    """What waits, at most so many."""

    async def take() -> list[pb.Event | None]:
        return [await asyncio.wait_for(watcher.next(), 5) for _ in range(most)]

    return asyncio.run(take())


def test_a_slow_watcher_loses_the_oldest_and_is_told_how_many() -> None:
    watcher = Watcher(0, 3)
    for count in range(5):
        watcher.offer((1, event(count)))
    missed, *rest = taken(watcher, 4)
    assert missed is not None
    assert (missed.kind, missed.count) == (pb.EVENT_KIND_MISSED, 2)
    assert rest == [event(2), event(3), event(4)]
    watcher.offer((1, event(9)))
    assert taken(watcher, 1) == [event(9)]


def test_a_watcher_of_a_pool_sees_that_pool_alone_until_it_is_gone() -> None:
    watcher = Watcher(1, 10)
    gone = event(0, pb.EVENT_KIND_POOL_DESTROYED)
    for happening in ((2, event(1)), (0, event(2)), (1, event(3)), (2, gone), (1, gone), (1, event(4))):
        watcher.offer(happening)
    assert taken(watcher, 3) == [event(3), gone, None]


def test_a_watcher_that_fails_has_what_waits_first() -> None:
    watcher = Watcher(0, 10)
    watcher.offer((1, event(1)))
    watcher.fail(ClosedError("stopping"))
    assert taken(watcher, 1) == [event(1)]
    with pytest.raises(ClosedError):
        taken(watcher, 1)


def test_what_happens_to_an_export_is_told_under_the_name_of_its_pool() -> None:
    pools = {1: replace(POOL, name="export/disk", counters={}), 2: replace(POOL, counters={})}
    was = ExportSample(size=4096, draining=False, clients=2, attached=5, refused=1)

    def after(now: ExportSample) -> list[tuple[str, str, str, int]]:
        return told(StoreSample(pools, 0, {}, {"export/disk": was}), StoreSample(pools, 0, {}, {"export/disk": now}))

    assert after(was) == []
    assert after(replace(was, size=8192)) == [("EXPORT_RESIZED", "export/disk", "", 8192)]
    assert after(replace(was, draining=True, refused=4)) == [
        ("EXPORT_DRAINED", "export/disk", "", 0),
        ("EXPORT_REFUSED", "export/disk", "", 3),
    ]
    assert after(replace(was, attached=8, clients=1)) == [
        ("EXPORT_ATTACHED", "export/disk", "", 3),
        ("EXPORT_DETACHED", "export/disk", "", 4),
    ]
    assert after(replace(was, clients=0, attached=0, refused=0)) == [("EXPORT_DETACHED", "export/disk", "", 2)]


def test_an_export_made_anew_is_not_compared_with_the_one_before() -> None:
    seen = ExportSample(size=4096, draining=False, clients=2, attached=5, refused=1)
    pool = replace(POOL, name="export/disk", counters={})
    before = StoreSample({1: pool}, 0, {}, {"export/disk": seen})
    after = StoreSample({2: pool}, 0, {}, {"export/disk": replace(seen, size=8192)})
    assert [kind for kind, *_ in told(before, after)] == ["POOL_DESTROYED", "POOL_CREATED"]
