"""What takes pages out: flushes, exclusive gets, private ephemeral gets, destroyed and frozen pools."""

from collections.abc import Callable
from typing import TypeAlias

import pytest

import tmem
from tests.lib.support import page, run
from tmem import Outcome
from tmem._model.settings import Kind

Call: TypeAlias = Callable[[], object]


def test_flush_removes_and_counts_what_it_found(any_pool: tmem.Pool) -> None:
    any_pool.put_range(1, 0, run(0, 4))
    assert any_pool.flush(1, [1, 2, 9]) == 2
    assert any_pool.has(1, 0, 4) == b"\1\0\0\1"


def test_flushes_are_idempotent(any_pool: tmem.Pool) -> None:
    any_pool.put_range(1, 0, run(0, 4))
    assert [any_pool.flush(1, [0]), any_pool.flush(1, [0])] == [1, 0]
    assert [any_pool.flush_object(1), any_pool.flush_object(1)] == [3, 0]


def test_flush_object_is_complete_and_leaves_the_others(any_pool: tmem.Pool) -> None:
    for oid in (1, 2):
        any_pool.put(oid, {index: page(index % 20) for index in range(0, 6400, 16)})
    assert any_pool.flush_object(1) == 400
    assert sum(any_pool.has(1, 0, 6400)) == 0
    assert sum(any_pool.has(2, 0, 6400)) == 400


def test_a_persistent_get_keeps_the_page(persistent: tmem.Pool) -> None:
    persistent.put(1, {7: page(7)})
    assert persistent.get(1, [7]) == persistent.get(1, [7]) == {7: page(7)}


def test_a_private_ephemeral_get_gives_the_page_away(ephemeral: tmem.Pool) -> None:
    ephemeral.put(1, {7: page(7)})
    assert ephemeral.get(1, [7]) == {7: page(7)}
    assert ephemeral.get(1, [7]) == {}
    ephemeral.put(1, {7: page(8)})
    assert ephemeral.get(1, [7]) == {7: page(8)}


@pytest.mark.parametrize("option", ["shared", "inclusive"])
def test_a_shared_or_inclusive_get_keeps_the_page(store: tmem.Store, option: str) -> None:
    pool = store.pool("kept", kind="ephemeral", shared=option == "shared", inclusive=option == "inclusive")
    pool.put(1, {7: page(7)})
    assert pool.get(1, [7]) == pool.get(1, [7]) == {7: page(7)}


def test_an_exclusive_get_takes_the_page_out(any_pool: tmem.Pool) -> None:
    any_pool.put(1, {7: page(7), 8: page(8)})
    assert any_pool.get(1, [7], exclusive=True) == {7: page(7)}
    assert any_pool.get(1, [7, 8]) == {8: page(8)}


def test_a_destroyed_pool_is_unknown_and_its_name_free(store: tmem.Store, kind: Kind) -> None:
    pool = store.pool("gone", kind=kind)
    again = store.find_pool("gone")
    pool.put_range(1, 0, run(0, 10))
    assert pool.destroy() == 10
    for handle in (pool, again):
        with pytest.raises(tmem.UnknownPoolError, match="gone"):
            handle.get(1, [0])
    with pytest.raises(tmem.UnknownPoolError):
        store.find_pool("gone")
    fresh = store.pool("gone", kind=kind, codec="zstd")
    assert fresh.get(1, range(10)) == {}
    with pytest.raises(tmem.UnknownPoolError):
        pool.put(1, {0: page(0)})


def test_every_call_on_a_destroyed_pool_is_refused(store: tmem.Store) -> None:
    pool = store.pool("gone")
    pool.destroy()
    calls: list[Call] = [
        lambda: pool.put(1, {0: page(0)}),
        lambda: pool.put_range(1, 0, page(0)),
        lambda: pool.get(1, [0]),
        lambda: pool.get_range(1, 0, 1),
        lambda: pool.has(1, 0, 1),
        lambda: pool.flush(1, [0]),
        lambda: pool.flush_object(1),
        pool.destroy,
        pool.freeze,
        pool.thaw,
        lambda: pool.frozen,
        pool.stats,
        lambda: setattr(pool, "quota", "1MiB"),
        lambda: setattr(pool, "weight", 2),
    ]
    for call in calls:
        with pytest.raises(tmem.UnknownPoolError, match="gone"):
            call()


def test_a_frozen_pool_refuses_puts_as_flushes(any_pool: tmem.Pool) -> None:
    any_pool.put(1, {7: page(7), 9: page(9)})
    any_pool.freeze()
    assert any_pool.frozen
    assert any_pool.put(1, {7: page(8), 8: page(8)}) == {
        7: Outcome(stored=False, reason="frozen", old_flushed=True),
        8: Outcome(stored=False, reason="frozen"),
    }
    assert any_pool.get(1, [7, 8, 9]) == {9: page(9)}
    assert any_pool.flush(1, [9]) == 1
    any_pool.thaw()
    assert not any_pool.frozen
    assert any_pool.put(1, {7: page(7)})[7].stored


def test_freezing_twice_is_freezing_once(any_pool: tmem.Pool) -> None:
    any_pool.freeze()
    any_pool.freeze()
    any_pool.thaw()
    assert not any_pool.frozen
