"""The live stream of events of a daemon: what it tells, to whom, and what becomes of slow readers."""

import itertools
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

import tmem
from tests.integration.daemon.test_workers import kill_worker
from tests.integration.engine.test_arena_files import corrupt
from tests.lib.daemon import Client, Daemon, daemon
from tests.lib.support import PATIENCE, noise, page
from tmem_proto.v1 import admin_pb2 as pb
from tmem_proto.v1 import tmem_pb2
from tmem_proto.v1.admin_pb2_grpc import TmemAdminStub

RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
DRAIN = 30
"""Seconds that the daemon waits for calls under way, and not for streams that wait for events."""
CHECKING = """
import sys, tmem
with tmem.connect("shm://" + sys.argv[1]) as store:
    store.check()
    print("checking", flush=True)
    while True:
        store.check()
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--max-watchers=2") as running:
        yield running


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)[:64]


class Watch:
    """A stream of events, read by a thread. When it is made it has begun."""

    def __init__(self, admin: TmemAdminStub, pool: str = "") -> None:
        self._stream = admin.Watch(pb.WatchRequest(pool=pool), timeout=2 * PATIENCE)
        assert self._stream.initial_metadata() is not None
        self._events: queue.SimpleQueue[pb.Event | grpc.RpcError | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for event in self._stream:
                self._events.put(event)
        except grpc.RpcError as error:
            self._events.put(error)
        else:
            self._events.put(None)

    def next(self) -> pb.Event:
        event = self._events.get(timeout=PATIENCE)
        assert isinstance(event, pb.Event), event
        return event

    def until(self, wanted: Callable[[pb.Event], bool]) -> list[pb.Event]:
        """The events up to one that is wanted."""
        events = [self.next()]
        while not wanted(events[-1]):
            events.append(self.next())
        return events

    def end(self) -> grpc.StatusCode:
        """The status that the stream ends with, of its own."""
        while isinstance(event := self._events.get(timeout=PATIENCE), pb.Event):
            pass
        return grpc.StatusCode.OK if event is None else code_of(event)

    def cancel(self) -> None:
        self._stream.cancel()


@pytest.fixture
def watch(client: Client, name: str) -> Iterator[Watch]:
    """Of a pool of the test's own."""
    client.open(name)
    watch = Watch(client.admin, name)
    yield watch
    watch.cancel()


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


def total(watch: Watch, kind: pb.EventKind.ValueType, count: int) -> set[tuple[str, str]]:
    """Pools and causes of the events of a kind that come next, which make up `count`."""
    seen, causes = 0, set()
    while seen < count:
        event = watch.next()
        assert event.kind == kind, event
        assert abs(event.time - time.time()) < PATIENCE
        causes.add((event.pool, event.cause))
        seen += event.count
    assert seen == count
    return causes


def test_refusals_are_told_by_reason(client: Client, watch: Watch, name: str) -> None:
    client.admin.SetQuota(pb.SetQuotaRequest(pool=name, quota=4096))
    outcomes = client.put({index: noise(index) for index in range(50)})
    assert total(watch, pb.EVENT_KIND_REFUSED, sum(code != 1 for code in outcomes)) == {(name, "quota")}


def test_freezing_is_told_and_what_it_refuses(client: Client, watch: Watch, name: str) -> None:
    client.admin.Freeze(pb.FreezeRequest(pool=name))
    assert watch.next().kind == pb.EVENT_KIND_POOL_FROZEN
    client.put({1: page(1), 2: page(2)})
    assert total(watch, pb.EVENT_KIND_REFUSED, 2) == {(name, "frozen")}
    client.admin.Thaw(pb.ThawRequest(pool=name))
    thawed = watch.next()
    assert (thawed.kind, thawed.pool) == (pb.EVENT_KIND_POOL_THAWED, name)


def test_evictions_are_told_by_cause(client: Client, name: str) -> None:
    client.open(name, "ephemeral", owner="local")
    client.put({index: noise(index) for index in range(256)})
    watch = Watch(client.admin, name)
    client.admin.Relinquish(pb.RelinquishRequest(size=256 << 10))
    event = watch.next()
    assert (event.kind, event.cause, event.client) == (pb.EVENT_KIND_EVICTED, "relinquish", "local")
    stats = client.admin.GetPool(pb.GetPoolRequest(name=name)).pool.stats.values
    assert event.count == stats["evicted_relinquish"] > 0
    watch.cancel()


def test_a_watch_of_all_sees_pools_come_and_go(client: Client, name: str) -> None:
    watch = Watch(client.admin)
    client.open(name)
    created = watch.until(lambda event: event.kind == pb.EVENT_KIND_POOL_CREATED)[-1]
    client.admin.DestroyPool(pb.DestroyPoolRequest(name=name))
    destroyed = watch.until(lambda event: event.kind == pb.EVENT_KIND_POOL_DESTROYED)[-1]
    assert created.pool == destroyed.pool == name
    watch.cancel()


def test_what_happened_before_is_not_told_to_those_who_come_later(client: Client, name: str) -> None:
    first = Watch(client.admin)
    client.open(name, quota=4096)
    client.put({index: noise(index) for index in range(50)})
    second = Watch(client.admin, name)
    client.admin.Freeze(pb.FreezeRequest(pool=name))
    assert second.next().kind == pb.EVENT_KIND_POOL_FROZEN
    kinds = [event.kind for event in first.until(lambda event: event.kind == pb.EVENT_KIND_POOL_FROZEN)]
    assert set(kinds) >= {pb.EVENT_KIND_POOL_CREATED, pb.EVENT_KIND_REFUSED}
    first.cancel()
    second.cancel()


def test_a_watch_of_a_pool_ends_with_it(client: Client, watch: Watch, name: str) -> None:
    client.admin.DestroyPool(pb.DestroyPoolRequest(name=name))
    assert watch.next().kind == pb.EVENT_KIND_POOL_DESTROYED
    assert watch.end() == grpc.StatusCode.OK
    with pytest.raises(grpc.RpcError) as caught:
        next(client.admin.Watch(pb.WatchRequest(pool=name), timeout=PATIENCE))
    assert code_of(caught.value) == grpc.StatusCode.NOT_FOUND


def test_watchers_are_limited_and_one_that_went_leaves_its_place(client: Client) -> None:
    watches = [Watch(client.admin), Watch(client.admin)]
    with pytest.raises(grpc.RpcError) as caught:
        next(client.admin.Watch(pb.WatchRequest(), timeout=PATIENCE))
    assert code_of(caught.value) == RESOURCE_EXHAUSTED
    for watch in watches:
        watch.cancel()
    deadline = time.monotonic() + PATIENCE
    while True:
        stream = client.admin.Watch(pb.WatchRequest(), timeout=PATIENCE)
        if stream.initial_metadata() is not None and stream.is_active():
            break
        assert stream.code() == RESOURCE_EXHAUSTED
        assert time.monotonic() < deadline
    stream.cancel()


def test_what_another_process_does_with_the_arena_is_told(arena: Path) -> None:
    with daemon(f"--arena={arena}") as running:
        client = Client(running.address)
        watch = Watch(client.admin)
        with tmem.connect(f"shm://{arena}") as store:
            store.pool("there", quota=4096).put(1, {index: noise(index) for index in range(50)})
        events = watch.until(lambda event: event.kind == pb.EVENT_KIND_REFUSED)
        assert [event.kind for event in events] == [pb.EVENT_KIND_POOL_CREATED, pb.EVENT_KIND_REFUSED]
        assert events[-1].pool == "there"
        client.close()


def test_corrupt_pages_are_told(arena: Path) -> None:
    with daemon(f"--arena={arena}", memory="4MiB") as running:
        client = Client(running.address)
        client.open("rotten", codec="raw")
        client.put({7: noise(7)})
        corrupt(arena, noise(7))
        watch = Watch(client.admin, "rotten")
        client.get([7])
        assert total(watch, pb.EVENT_KIND_CORRUPT, 1) == {("rotten", "")}
        client.close()


def test_shards_rebuilt_after_a_process_died_in_them_are_told(arena: Path) -> None:
    """Whoever checks an arena holds its shard nearly all the time, and is killed until it died so."""
    with daemon(f"--arena={arena}", "--shards=1") as running:
        client = Client(running.address)
        client.open(codec="raw")
        for number in range(40):
            client.put({index: noise(index) for index in range(256)}, oid=number.to_bytes(24, "big"))
        watch = Watch(client.admin)
        give_up_at = time.monotonic() + PATIENCE
        while not client.admin.Stats(pb.StatsRequest(), timeout=PATIENCE).store["recoveries"]:
            assert time.monotonic() < give_up_at
            with subprocess.Popen([sys.executable, "-c", CHECKING, str(arena)], stdout=subprocess.PIPE) as checking:
                assert checking.stdout is not None
                assert checking.stdout.readline() == b"checking\n"
                checking.kill()
            client.get([7])  # takes the lock
        told = watch.until(lambda event: event.kind == pb.EVENT_KIND_RECOVERED)[-1]
        assert (told.pool, told.count) == ("", 1)
        client.close()


def test_a_replaced_worker_is_told_by_the_others() -> None:
    with daemon("--workers=2") as running:
        client = Client(running.addresses[1])
        watch = Watch(client.admin)
        kill_worker(running, 0)
        event = watch.next()
        assert (event.kind, event.cause, event.count) == (pb.EVENT_KIND_WORKER_REPLACED, "worker 0", 1)
        client.close()


def test_streams_end_at_once_when_the_daemon_stops() -> None:
    with daemon(f"--drain={DRAIN}") as running:
        client = Client(running.address)
        client.open()
        watches = [Watch(client.admin), Watch(client.admin, "pool")]
        start = time.monotonic()
        running.process.terminate()
        assert [watch.end() for watch in watches] == [grpc.StatusCode.UNAVAILABLE] * 2
        client.close()
        assert running.stop() == 0
        assert time.monotonic() - start < DRAIN


def test_a_slow_reader_loses_the_oldest_events_and_is_told() -> None:
    """It does not read while pools come and go: more events than the connection and its queue take up."""
    names = [f"{number:064}" for number in range(300)]
    settings = tmem_pb2.PoolSettings(kind="ephemeral", owner="o" * 64)
    with daemon("--watch-events=320", "--shards=1") as running:
        client = Client(running.address)
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        with grpc.insecure_channel(running.address, options) as channel:
            slow = TmemAdminStub(channel).Watch(pb.WatchRequest(), timeout=2 * PATIENCE)
            assert slow.initial_metadata() is not None
            quick = Watch(client.admin)
            seen: list[pb.Event] = []
            for _ in range(2):
                for name in names:
                    client.admin.CreatePool(pb.CreatePoolRequest(name=name, settings=settings))
                seen += [quick.next() for _ in names]
                for name in names:
                    client.admin.DestroyPool(pb.DestroyPoolRequest(name=name))
                seen += [quick.next() for _ in names]
            client.admin.CreatePool(pb.CreatePoolRequest(name="last", settings=settings))
            assert quick.next().pool == "last"
            told = list(itertools.takewhile(lambda event: event.pool != "last", slow))
        client.close()
    assert not any(event.kind == pb.EVENT_KIND_MISSED for event in seen)
    missed = sum(event.count for event in told if event.kind == pb.EVENT_KIND_MISSED)
    assert missed > 0
    assert missed + sum(event.kind != pb.EVENT_KIND_MISSED for event in told) == len(seen) == 4 * len(names)


def test_a_watcher_of_many_pools_costs_little() -> None:
    """A look at 512 pools is near a megabyte; it is the look-out's, and no watcher has one of its own."""
    watchers = 40
    with daemon(f"--max-watchers={watchers}") as running, tmem.connect(running.address, timeout=PATIENCE) as store:
        for number in range(512):
            store.pool(f"pool{number}")
        client = Client(running.address)
        first = Watch(client.admin)
        before = resident(running.process.pid)
        others = [Watch(client.admin) for _ in range(watchers - 1)]
        assert resident(running.process.pid) - before < 12 << 20
        store.find_pool("pool0").freeze()
        for watch in (first, *others):
            assert watch.next().kind == pb.EVENT_KIND_POOL_FROZEN
        client.close()


def resident(process: int) -> int:
    """Bytes of a process's memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
