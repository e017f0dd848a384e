"""Many threads and processes on one store."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tmem
from tests.lib.support import filled, page
from tmem._model.settings import Kind

THREADS = 4


def in_threads(work: Callable[[int], None]) -> None:
    """Run `work(0)` to `work(THREADS - 1)` at once; a failure of any is raised."""
    barrier = threading.Barrier(THREADS)

    def started(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(THREADS) as executor:
        list(executor.map(started, range(THREADS)))


def test_threads_on_objects_of_their_own(any_pool: tmem.Pool) -> None:
    def work(number: int) -> None:
        for turn in range(20):
            pages = {index: page(number * 100 + (index + turn) % 50) for index in range(0, 200, 3)}
            assert all(any_pool.put(number, pages).values())
            assert any_pool.get(number, range(200)) == pages
            assert any_pool.flush(number, range(100)) == 34
            assert sum(any_pool.has(number, 0, 200)) == 33
            assert any_pool.flush_object(number) == 33

    in_threads(work)


def test_threads_on_the_same_pages_see_whole_pages(store: tmem.Store, kind: Kind) -> None:
    pool = store.pool("contended", kind=kind, inclusive=kind == "ephemeral")

    def work(number: int) -> None:
        for turn in range(200):
            version = number * 200 + turn
            pool.put(1, {index: page(version % 64) for index in range(8)})
            for data in pool.get(1, range(8)).values():
                seed = int(data.partition(b" ")[0])
                assert data == page(seed)
            if turn % 16 == 0:
                pool.flush(1, [turn % 8])

    in_threads(work)


def test_a_private_page_is_given_to_one_thread_only(ephemeral: tmem.Pool) -> None:
    ephemeral.put(1, {index: filled(index.to_bytes(8, "little")) for index in range(1000)})
    taken: list[list[int]] = [[] for _ in range(THREADS)]

    def work(number: int) -> None:
        for index in range(1000):
            taken[number].extend(ephemeral.get(1, [index]))

    in_threads(work)
    assert sorted(itertools.chain(*taken)) == list(range(1000))


def test_one_name_opened_by_many_threads_is_one_pool(store: tmem.Store) -> None:
    def work(number: int) -> None:
        for turn in range(50):
            store.pool(f"pool{turn}").put(number, {7: page(number)})

    in_threads(work)
    assert len(store.pools()) == 50
    assert all(pool.stats()["pages"] == THREADS for pool in store.pools())


def use_until_closed(pool: tmem.Pool, oid: int) -> None:
    while True:
        assert pool.get(1, [7]) == {7: page(7)}
        assert len(pool.put_range(oid, 0, page(1) * 16)) == 16


@pytest.mark.parametrize("_turn", range(10))
def test_a_store_closed_under_its_users_refuses_them_and_waits_for_nobody(store: tmem.Store, _turn: int) -> None:
    pool = store.pool("swap0")
    pool.put(1, {7: page(7)})

    def work(number: int) -> None:
        if number == 0:
            store.close()
        with pytest.raises(tmem.ClosedError):
            use_until_closed(pool, number + 2)

    in_threads(work)


def test_the_gil_is_released_while_the_engine_works(store: tmem.Store) -> None:
    pool = store.pool("slow", codec="zstd:19")
    data = b"".join(page(seed) for seed in range(256))
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        pool.put_range(1, 0, data)
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # from here on a thread runs until it lets go of the GIL by itself
    try:
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        assert not done.is_set()
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert done.is_set()


def test_a_forked_child_shares_the_store(store: tmem.Store) -> None:
    pool = store.pool("swap0")
    pool.put(1, {7: page(7)})
    child = os.fork()
    if child == 0:
        sound = pool.get(1, [7]) == {7: page(7)} and pool.put(1, {8: page(8)})[8].stored
        store.close()
        os._exit(0 if sound else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.get(1, [7, 8]) == {7: page(7), 8: page(8)}
    assert pool.put(1, {9: page(9)})[9].stored


def test_processes_share_an_arena(arena: Path) -> None:
    script = """
import sys, tmem
from tests.lib.support import page
number = int(sys.argv[2])
with tmem.connect(f"shm://{sys.argv[1]}") as store:
    pool = store.find_pool("swap0")
    for turn in range(100):
        pages = {index: page(number * 100 + (index + turn) % 50) for index in range(100)}
        assert all(pool.put(number, pages).values())
        assert pool.get(number, range(200)) == pages
"""
    root = Path(__file__).parents[3]
    with tmem.open(memory="16MiB", arena=arena) as store:
        pool = store.pool("swap0")
        command = [sys.executable, "-W", "error", "-c", script, str(arena)]
        workers = [subprocess.Popen([*command, str(number)], cwd=root) for number in range(1, 4)]
        assert [worker.wait() for worker in workers] == [0, 0, 0]
        for number in range(1, 4):
            assert pool.get(number, range(100)) == {
                index: page(number * 100 + (index + 99) % 50) for index in range(100)
            }
        assert store.check() == []
