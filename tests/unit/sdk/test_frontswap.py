"""Frontswap over the embedded engine, and over a pool that fails as a server can."""

from __future__ import annotations

from typing import Any, cast

import pytest

import tmem
from tests.lib.support import noise, page


class Away:
    """A pool whose server is away while `away` is set; it counts the calls that reach it."""

    def __init__(self, pool: tmem.Pool) -> None:
        self._pool = pool
        self.away = False
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._pool, name)
        if name not in {"put", "get", "flush", "flush_object"}:
            return found
        self.calls += 1
        if self.away:
            raise tmem.UnavailableError("away")
        return found


@pytest.fixture
def pool(store: tmem.Store) -> tmem.Pool:
    return store.pool("swap", max_zpage=3000)


@pytest.fixture
def swap(pool: tmem.Pool) -> tmem.Frontswap:
    swap = tmem.Frontswap(pool)
    swap.init(0)
    return swap


def test_a_stored_page_is_loaded_and_kept(swap: tmem.Frontswap) -> None:
    assert swap.store(0, 7, page(7))
    assert swap.load(0, 7) == swap.load(0, 7) == page(7)
    assert swap.pages(0) == 1


def test_a_miss_never_reaches_the_store(pool: tmem.Pool) -> None:
    counted = Away(pool)
    swap = tmem.Frontswap(cast("tmem.Pool", counted))
    swap.init(0)
    swap.store(0, 7, page(7))
    swap.invalidate_page(0, 7)
    before = counted.calls
    assert [swap.load(0, offset) for offset in (0, 7, 2**32 - 1)] == [None] * 3
    swap.invalidate_page(0, 7)
    assert counted.calls == before


def test_a_failed_store_hides_the_older_page(swap: tmem.Frontswap, pool: tmem.Pool) -> None:
    swap.store(0, 7, page(7))
    assert not swap.store(0, 7, noise(7))
    assert swap.load(0, 7) is None
    assert pool.get(0, [7]) == {}
    assert swap.pages(0) == 0


def test_a_store_to_a_server_that_is_away_fails_and_shows_no_older_page_later(pool: tmem.Pool) -> None:
    counted = Away(pool)
    swap = tmem.Frontswap(cast("tmem.Pool", counted))
    swap.init(0)
    swap.store(0, 7, page(7))
    counted.away = True
    assert not swap.store(0, 7, page(8))
    counted.away = False
    assert swap.load(0, 7) is None


def test_the_only_copy_is_an_error_when_it_cannot_be_had(pool: tmem.Pool) -> None:
    counted = Away(pool)
    swap = tmem.Frontswap(cast("tmem.Pool", counted))
    swap.init(0)
    swap.store(0, 7, page(7))
    counted.away = True
    with pytest.raises(tmem.UnavailableError):
        swap.load(0, 7)
    counted.away = False
    assert swap.load(0, 7) == page(7)
    pool.flush(0, [7])
    with pytest.raises(tmem.LostPageError, match="page 7 of area 0"):
        swap.load(0, 7)


def test_writethrough_reports_failure_and_loads_all_the_same(store: tmem.Store) -> None:
    pool = store.pool("through", kind="ephemeral", inclusive=True)
    counted = Away(pool)
    swap = tmem.Frontswap(cast("tmem.Pool", counted), writethrough=True)
    swap.init(0)
    assert not swap.store(0, 7, page(7))
    assert swap.load(0, 7) == page(7)
    counted.away = True
    assert swap.load(0, 7) is None
    counted.away = False
    pool.flush(0, [7])
    assert swap.load(0, 7) is None
    assert swap.pages(0) == 0


def test_only_writethrough_takes_an_ephemeral_pool(store: tmem.Store) -> None:
    with pytest.raises(ValueError, match="persistent"):
        tmem.Frontswap(store.pool("through", kind="ephemeral"))


def test_an_exclusive_load_takes_the_page(pool: tmem.Pool) -> None:
    swap = tmem.Frontswap(pool, exclusive=True)
    swap.init(0)
    swap.store(0, 7, page(7))
    assert [swap.load(0, 7), swap.load(0, 7)] == [page(7), None]
    assert pool.has(0, 7, 1) == b"\0"


def test_areas_are_apart_and_go_at_once(swap: tmem.Frontswap, pool: tmem.Pool) -> None:
    swap.init(1)
    for area in (0, 1):
        for offset in (1, 1000):
            swap.store(area, offset, page(area + offset))
    swap.invalidate_area(0)
    assert sum(pool.has(0, 0, 1001)) == 0
    assert (swap.pages(1), swap.load(1, 1000)) == (2, page(1001))
    with pytest.raises(ValueError, match="area 0"):
        swap.load(0, 1)


def test_init_drops_what_an_earlier_run_left(pool: tmem.Pool) -> None:
    pool.put(3, {7: page(7)})
    swap = tmem.Frontswap(pool)
    swap.init(3)
    assert pool.has(3, 7, 1) == b"\0"


def test_shrink_gives_pages_back(swap: tmem.Frontswap) -> None:
    for offset in range(0, 40, 4):
        swap.store(0, offset, page(offset))
    assert swap.shrink(0, 3) == {0: page(0), 4: page(4), 8: page(8)}
    assert (swap.pages(0), swap.load(0, 4), swap.load(0, 12)) == (7, None, page(12))


@pytest.mark.parametrize("offset", [-1, 2**32])
def test_a_slot_out_of_range_is_refused(swap: tmem.Frontswap, offset: int) -> None:
    for call in (lambda: swap.store(0, offset, page(0)), lambda: swap.load(0, offset)):
        with pytest.raises(ValueError, match="offset is"):
            call()
