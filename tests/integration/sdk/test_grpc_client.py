"""The SDK against a real daemon that goes away, comes back, or never answers; and without the native part."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import tmem
import tmem.aio
from tests.lib.daemon import Daemon, daemon
from tests.lib.support import PATIENCE, page, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose pages outlive it."""
    with daemon("--memory", "32MiB", "--arena", str(tmp_path / "arena")) as running:
        yield running


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_acknowledged_pages_outlive_a_killed_daemon_and_the_client_finds_it_again(kept: Daemon) -> None:
    with tmem.connect(kept.address) as store:
        pool = store.pool("swap")
        assert pool.put_range(1, 0, run(0, 500)).all_stored
        kept.kill()
        kept.start()
        assert pool.get_range(1, 0, 500) == (bytearray(run(0, 500)), b"\1" * 500)
        assert pool.put(1, {7: page(8)})[7].replaced
        assert store.client_stats().reopened == 1


def test_a_call_waits_for_a_daemon_that_restarts(kept: Daemon) -> None:
    with tmem.connect(kept.address, timeout=PATIENCE) as store:
        pool = store.pool("swap")
        pool.put(1, {7: page(7)})
        kept.stop()
        starting = threading.Timer(0.3, kept.start)
        starting.start()
        assert pool.get(1, [7]) == {7: page(7)}
        starting.join()


def test_an_asynchronous_client_finds_it_again_too(kept: Daemon) -> None:
    async def story() -> None:
        async with tmem.aio.connect(kept.address, timeout=PATIENCE) as store:
            pool = await store.pool("swap")
            await pool.put(1, {7: page(7)})
            kept.kill()
            kept.start()
            assert await pool.get(1, [7]) == {7: page(7)}

    asyncio.run(story())


def test_without_patience_a_daemon_that_is_away_is_an_error(kept: Daemon) -> None:
    with tmem.connect(kept.address, timeout=2) as store:
        pool = store.pool("swap")
        kept.kill()
        start = time.monotonic()
        with pytest.raises(tmem.UnavailableError, match=kept.address):
            pool.get(1, [7])
        assert time.monotonic() - start < 9


def test_a_cache_goes_on_without_its_daemon_and_shows_nothing_old_afterwards(kept: Daemon) -> None:
    with tmem.connect(kept.address, on_unavailable="miss") as store:
        pool = store.pool("cache", kind="ephemeral", shared=True)
        pool.put_range(1, 0, run(0, 4))
        kept.kill()
        assert pool.get(1, range(4)) == {}
        assert pool.put(1, {0: page(9)})[0].reason == "unavailable"
        assert pool.flush(1, [1]) == 0
        start = time.monotonic()
        for _ in range(1000):
            assert pool.get(1, [2]) == {}
        assert time.monotonic() - start < 9, "calls waited for a server that is away"
        kept.start()
        deadline = time.monotonic() + PATIENCE
        while (found := pool.get(1, range(4))) == {} and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        assert found == {2: page(2), 3: page(3)}


def test_a_server_that_never_answers_costs_the_deadline(silent: str) -> None:
    start = time.monotonic()
    with tmem.connect(silent, timeout=0.5) as store, pytest.raises(tmem.UnavailableError):
        store.pool("swap")
    assert time.monotonic() - start < 9


def test_nobody_listening_is_an_error_that_names_the_address() -> None:
    with tmem.connect("127.0.0.1:1", timeout=0.3) as store:
        for call in (lambda: store.pool("swap"), store.stats, store.pools):
            with pytest.raises(tmem.UnavailableError, match=r"127\.0\.0\.1:1"):
                call()


def test_many_threads_share_a_connection(kept: Daemon) -> None:
    with tmem.connect(kept.address) as store, ThreadPoolExecutor(8) as threads:
        pool = store.pool("swap")

        def work(oid: int) -> bool:
            return pool.put_range(oid, 0, run(oid, 100)).all_stored and pool.get_range(oid, 0, 100)[0] == run(oid, 100)

        assert all(threads.map(work, range(40)))


def test_many_tasks_share_a_connection_and_a_cancelled_one_harms_none(kept: Daemon) -> None:
    async def story() -> None:
        async with tmem.aio.connect(kept.address) as store:
            pool = await store.pool("swap")
            tasks = [asyncio.create_task(pool.put_range(oid, 0, run(oid, 100))) for oid in range(40)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(done[0], asyncio.CancelledError)
            assert all(isinstance(outcomes, tmem.Outcomes) and outcomes.all_stored for outcomes in done[1:])
            for oid in range(1, 40):
                assert (await pool.get_range(oid, 0, 100))[0] == run(oid, 100)

    asyncio.run(story())


def test_two_clients_see_one_shared_pool(kept: Daemon) -> None:
    with tmem.connect(kept.address) as one, tmem.connect(kept.address, encoding="raw") as two:
        here, there = (store.pool("both", kind="ephemeral", shared=True) for store in (one, two))
        here.put(1, {7: page(7)})
        assert there.get(1, [7]) == here.get(1, [7]) == {7: page(7)}
        there.flush(1, [7])
        assert here.get(1, [7]) == {}


def test_frontswap_and_cleancache_work_over_the_network(kept: Daemon) -> None:
    with tmem.connect(kept.address) as store:
        swap = tmem.Frontswap(store.pool("swap"), exclusive=True)
        swap.init(0)
        assert swap.store(0, 7, page(7))
        assert [swap.load(0, 7), swap.load(0, 7)] == [page(7), None]
        cache = tmem.Cleancache(store)
        fs = cache.init_fs()
        cache.put_page(fs, b"k" * 24, 7, page(7))
        assert [cache.get_page(fs, b"k" * 24, 7), cache.get_page(fs, b"k" * 24, 7)] == [page(7), None]


def test_the_remote_sdk_works_without_the_native_part(kept: Daemon) -> None:
    script = f"""
import asyncio, sys
sys.modules["tmem_engine"] = None
import tmem, tmem.aio
with tmem.connect({kept.address!r}) as store:
    pool = store.pool("swap")
    assert pool.put(1, {{7: bytes(4096)}})[7].stored
    assert pool.get(1, [7, 8]) == {{7: bytes(4096)}}
async def story():
    async with tmem.aio.connect({kept.address!r}) as store:
        assert await (await store.pool("swap")).get(1, [7]) == {{7: bytes(4096)}}
asyncio.run(story())
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_flush_carries_no_pages_so_that_large_ones_do_not_count(kept: Daemon) -> None:
    with tmem.connect(kept.address) as store:
        pool = store.pool("large", page_size=262144)
        pool.put(1, {index: bytes(262144) for index in (0, 1, 19_999)})
        before = store.client_stats().calls
        assert pool.flush(1, range(20_000)) == 3
        assert store.client_stats().calls - before < 10
        assert pool.has(1, 0, 20_000) == bytes(20_000)
