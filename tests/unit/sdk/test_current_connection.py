"""Connections that are left: when each is closed, without any connection."""

from __future__ import annotations

import threading

from tmem._transport.current import Present, Used


def test_one_that_is_left_is_closed_when_the_last_is_done() -> None:
    first, second = Used(), Used()
    present = Present(first)
    begun = [present.begin(), present.begin()]
    assert present.move(second) == []
    assert present.begin() is second
    assert present.done(begun[0]) == []
    assert present.all() == [second, first]
    assert present.done(second) == []
    assert present.done(begun[1]) == [first]
    assert present.all() == [second]


def test_one_that_nobody_uses_is_closed_at_once() -> None:
    first, second = Used(), Used()
    present = Present(first)
    assert present.move(second) == [first]
    assert present.move(second) == []
    assert present.all() == [second]


def test_each_is_closed_once_and_never_in_use() -> None:
    present = Present(Used())
    closed: list[Used] = []
    in_use: list[Used] = []
    over = threading.Event()

    def closing(connections: list[Used]) -> None:
        in_use.extend(one for one in connections if one.users)
        closed.extend(connections)

    def work() -> None:
        while not over.is_set():
            connection = present.begin()
            if connection in closed:
                in_use.append(connection)
            closing(present.done(connection))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        closing(present.move(Used()))
    over.set()
    for thread in threads:
        thread.join()
    closing(present.done(present.begin()))
    assert in_use == []
    assert len(closed) == len(set(map(id, closed))) == 300
    assert len(present.all()) == 1
