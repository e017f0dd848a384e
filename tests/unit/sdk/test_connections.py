"""Retired connections: when each is closed, without any connection."""

from __future__ import annotations

import threading

from tmem._transport.connections import Connections, Counted


def test_a_retired_one_is_closed_when_its_last_user_is_done() -> None:
    first, second = Counted(), Counted()
    pool = Connections(first)
    begun = [pool.acquire(), pool.acquire()]
    assert pool.replace(second) == []
    assert pool.acquire() is second
    assert pool.release(begun[0]) == []
    assert pool.all() == [second, first]
    assert pool.release(second) == []
    assert pool.release(begun[1]) == [first]
    assert pool.all() == [second]


def test_one_that_nobody_uses_is_closed_at_once() -> None:
    first, second = Counted(), Counted()
    pool = Connections(first)
    assert pool.replace(second) == [first]
    assert pool.replace(second) == []
    assert pool.all() == [second]


def test_each_is_closed_once_and_never_in_use() -> None:
    pool = Connections(Counted())
    closed: list[Counted] = []
    in_use: list[Counted] = []
    over = threading.Event()

    def closing(connections: list[Counted]) -> None:
        in_use.extend(one for one in connections if one.users)
        closed.extend(connections)

    def work() -> None:
        while not over.is_set():
            connection = pool.acquire()
            if connection in closed:
                in_use.append(connection)
            closing(pool.release(connection))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        closing(pool.replace(Counted()))
    over.set()
    for thread in threads:
        thread.join()
    closing(pool.release(pool.acquire()))
    assert in_use == []
    assert len(closed) == len(set(map(id, closed))) == 300
    assert len(pool.all()) == 1
