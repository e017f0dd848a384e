"""The SDK's Exchange stream against a real daemon: commands that are late, fail, or break with the stream."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest

import tmem
import tmem.aio
from tests.lib.daemon import Daemon, daemon
from tests.lib.support import PATIENCE, page
from tmem_proto.v1 import admin_pb2 as admin
from tmem_proto.v1.admin_pb2_grpc import TmemAdminStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

UNAVAILABLE = 14
SHORT = 2
"""Seconds that a client waits where its command is to be late."""
LATE = 5.0
"""Seconds after which such a command is carried out."""


@pytest.fixture
def server() -> Iterator[Daemon]:
    with daemon("--memory", "32MiB", "--inject", "") as running:
        yield running


@pytest.fixture
def inject(server: Daemon) -> Iterator[Callable[..., None]]:
    with grpc.insecure_channel(server.address) as channel:
        stub = TmemAdminStub(channel)

        def injected(**what: object) -> None:
            request = admin.InjectRequest(injections=[admin.Injection(**what)] if what else [])  # type: ignore[arg-type]
            stub.Inject(request, timeout=PATIENCE)

        yield injected


def streams() -> int:
    return sum(thread.name == "tmem-exchange" for thread in threading.enumerate())


def test_a_put_whose_answer_is_late_never_lands_after_the_next(server: Daemon, inject: Callable[..., None]) -> None:
    with tmem.connect(server.address, timeout=SHORT) as store:
        pool = store.pool("swap")
        pool.put(1, {7: page(1)})
        inject(method="Exchange.put", delay_ms=int(LATE * 1000))
        start = time.monotonic()
        with pytest.raises(tmem.UnavailableError, match=f"no answer within {SHORT} s"):
            pool.put(1, {7: page(2)})
        inject()
        deadline, failed = time.monotonic() + PATIENCE, 1
        while True:
            try:
                assert pool.put(1, {7: page(3)})[7].replaced
                break
            except tmem.UnavailableError:
                assert time.monotonic() < deadline
                failed += 1
        assert 1 <= store.client_stats().new_epochs <= failed
        while time.monotonic() < start + LATE + 0.5:
            assert pool.get(1, [7]) == {7: page(3)}


def test_a_command_whose_reply_was_lost_is_sent_again_in_a_new_epoch(
    server: Daemon, inject: Callable[..., None]
) -> None:
    with tmem.connect(server.address) as store:
        pool = store.pool("swap")
        pool.put(1, {7: page(1)})
        inject(method="Exchange.put", code=UNAVAILABLE, after=True)
        threading.Timer(0.1, inject).start()
        assert pool.put(1, {7: page(2)})[7].replaced
        assert store.client_stats().new_epochs >= 1
        assert pool.get(1, [7]) == {7: page(2)}


def test_threads_that_find_the_stream_busy_go_another_way(server: Daemon, inject: Callable[..., None]) -> None:
    with tmem.connect(server.address) as store:
        pool = store.pool("swap")
        pool.put(1, {7: page(1)})
        inject(method="Exchange.get", delay_ms=3000)
        deadline = time.monotonic() + PATIENCE
        while True:
            slow = threading.Thread(target=pool.get, args=(1, [7]))
            slow.start()
            assert pool.get(1, [7]) == {7: page(1)}
            if slow.is_alive():
                break
            # This one was the first on the stream, and the other went another way.
            assert time.monotonic() < deadline
        slow.join()


def test_exclusive_gets_are_acknowledged_once_they_are_sound(server: Daemon, inject: Callable[..., None]) -> None:
    with tmem.connect(server.address) as store:
        pool = store.pool("swap")
        pool.put(1, {7: page(7)})
        inject(method="Exchange.get", code=UNAVAILABLE)
        assert pool.get(1, [7], exclusive=True) == {7: page(7)}
        inject()
        assert pool.get(1, [7]) == {}


def test_a_stream_that_nobody_uses_ends_and_another_is_opened(server: Daemon) -> None:
    with tmem.connect(server.address) as store:
        pool = store.pool("swap")
        before = streams()
        pool.put(1, {7: page(7)})
        assert streams() == before + 1
        deadline = time.monotonic() + PATIENCE
        while streams() > before:
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        assert pool.get(1, [7]) == {7: page(7)}


def test_the_reply_to_a_tasks_late_command_is_dropped(server: Daemon, inject: Callable[..., None]) -> None:
    async def story() -> None:
        async with tmem.aio.connect(server.address, timeout=SHORT) as store:
            pool = await store.pool("swap")
            await pool.put(1, {7: page(1)})
            inject(method="Exchange.put", delay_ms=int(LATE * 1000))
            start = time.monotonic()
            with pytest.raises(tmem.UnavailableError, match="no answer"):
                await pool.put(1, {7: page(2)})
            inject()
            failed = 1
            while time.monotonic() < start + LATE + 0.5:
                try:
                    assert await pool.get(1, [7]) == {7: page(1)}
                except tmem.UnavailableError:
                    failed += 1
            assert await pool.get(1, [7]) == {7: page(1)}
            assert 1 <= store.client_stats().new_epochs <= failed

    asyncio.run(story())


def test_tasks_go_on_after_their_stream_broke(tmp_path: Path) -> None:
    async def story() -> None:
        with daemon("--memory", "32MiB", "--arena", str(tmp_path / "arena")) as running:
            async with tmem.aio.connect(running.address, timeout=PATIENCE) as store:
                pool = await store.pool("swap")
                tasks = [asyncio.create_task(pool.put(oid, {7: page(oid)})) for oid in range(200)]
                while not any(task.done() for task in tasks):
                    await asyncio.sleep(0)
                running.kill()
                running.start()
                assert all(outcomes[7].stored for outcomes in await asyncio.gather(*tasks))
                found = await asyncio.gather(*(pool.get(oid, [7]) for oid in range(200)))
                assert found == [{7: page(oid)} for oid in range(200)]

    asyncio.run(story())


def test_a_daemon_that_stops_does_not_wait_for_clients_that_go_on(tmp_path: Path) -> None:
    with (
        daemon("--memory", "32MiB", "--arena", str(tmp_path / "arena"), "--drain", "60") as running,
        tmem.connect(running.address, timeout=PATIENCE) as store,
    ):
        pool, ending = store.pool("swap"), threading.Event()

        def go_on() -> int:
            at = 0
            while not ending.is_set():
                at += 1
                assert pool.put(1, {at % 100: page(at % 100)})[at % 100].stored
            return at

        with ThreadPoolExecutor() as threads:
            busy = threads.submit(go_on)
            try:
                while not (streams() or busy.done()):
                    threading.Event().wait(0.01)
                start = time.monotonic()
                running.stop()
                assert time.monotonic() - start < 30
                running.start()
            finally:
                ending.set()
            assert busy.result(PATIENCE)


def test_closing_ends_a_command_under_way(server: Daemon, inject: Callable[..., None]) -> None:
    store = tmem.connect(server.address)
    pool = store.pool("swap")
    inject(method="Exchange.get", delay_ms=60_000)
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            pool.get(1, [7])
        except tmem.ClosedError as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while not streams():
        threading.Event().wait(0.01)
    store.close()
    asking.join(PATIENCE / 2)
    assert len(failed) == 1


def test_a_recreated_pool_is_not_the_pool_of_old_handles(server: Daemon) -> None:
    with tmem.connect(server.address) as one, tmem.connect(server.address) as two:
        old = one.pool("swap")
        old.put(1, {7: page(1)})
        two.pool("swap").destroy()
        new = two.pool("swap")
        new.put(1, {7: page(2)})

        def weigh() -> None:
            old.weight = 7

        for call in (lambda: old.get(1, [7]), lambda: old.put(1, {7: page(3)}), weigh, old.freeze, old.destroy):
            with pytest.raises(tmem.UnknownPoolError, match="'swap'"):
                call()
        assert (new.get(1, [7]), new.weight, new.frozen) == ({7: page(2)}, 1, False)
        assert one.pool("swap").get(1, [7]) == {7: page(2)}


def test_care_for_a_pool_made_anew_is_refused_to_old_handles(server: Daemon) -> None:
    with tmem.connect(server.address) as one, tmem.connect(server.address) as two:
        old = one.pool("swap")
        two.pool("swap").destroy()
        two.pool("swap").put(1, {7: page(7)})
        with pytest.raises(tmem.UnknownPoolError):
            old.destroy()
        assert two.pool("swap").get(1, [7]) == {7: page(7)}


def test_a_connection_moves_to_the_worker_that_it_is_given() -> None:
    with daemon("--memory", "32MiB", "--workers", "2") as running, contextlib.ExitStack() as stack:
        stores = [stack.enter_context(tmem.connect(running.address)) for _ in range(4)]
        for at, store in enumerate(stores):
            store.pool("swap").put(1, {at: page(at)})
        assert all(store.pool("swap").get(1, range(4)) == {at: page(at) for at in range(4)} for store in stores)
        ports = {worker.port for worker in stores[0].workers()}
        transports: list[Any] = [store._transport for store in stores]
        assert {int(transport._driver._placement.address.rpartition(":")[2]) for transport in transports} == ports


def test_a_connection_to_a_worker_that_is_no_more_is_closed(tmp_path: Path) -> None:
    arena = ("--memory", "32MiB", "--arena", str(tmp_path / "arena"))
    with daemon(*arena, "--workers", "2") as running, contextlib.ExitStack() as stack:
        stores = [stack.enter_context(tmem.connect(running.address)) for _ in range(4)]
        for store in stores:
            store.pool("swap").put(1, {7: page(7)})
        transports: list[Any] = [store._transport for store in stores]
        drivers: list[Any] = [transport._driver for transport in transports]
        before = [driver._connections.current for driver in drivers]
        running.stop()
        running.flags = arena
        running.start()
        for store in stores:
            assert store.pool("swap").get(1, [7]) == {7: page(7)}
        assert any(driver._connections.current is not was for driver, was in zip(drivers, before, strict=True))
        assert all(len(driver._connections.all()) == 1 for driver in drivers)
