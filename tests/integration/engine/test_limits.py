"""Refusals: quotas, memory, poor compression. A refused put leaves nothing older behind."""

import pytest

import tmem
from tests.lib.support import PAGE, noise, page
from tmem._model.settings import Kind


def fill(pool: tmem.Pool, oid: int, limit: int = 20_000) -> int:
    """Put noise until a put is refused; returns the number of pages stored."""
    for index in range(limit):
        if pool.put(oid, {index: noise(index % 500)})[index].refused:
            return index
    raise AssertionError("never refused")


def test_a_quota_on_footprint_is_kept(persistent: tmem.Pool) -> None:
    persistent.quota = "1MiB"
    stored = fill(persistent, 1)
    assert 200 <= stored <= 256
    assert persistent.stats()["footprint_bytes"] <= 1 << 20
    outcome = persistent.put(1, {100_000: noise(1)})[100_000]
    assert outcome.reason == "quota"
    assert persistent.get(1, range(stored)) == {index: noise(index % 500) for index in range(stored)}


def test_a_refused_put_hides_the_older_page(persistent: tmem.Pool) -> None:
    persistent.put(1, {index: page(index) for index in range(100)})
    persistent.quota = 4096
    outcome = persistent.put(1, {7: noise(7)})[7]
    assert (outcome.refused, outcome.reason, outcome.old_flushed) == (True, "quota", True)
    assert persistent.get(1, [7]) == {}


def test_a_raised_quota_admits_again(persistent: tmem.Pool) -> None:
    persistent.quota = "1MiB"
    fill(persistent, 1)
    persistent.quota = None
    assert persistent.quota == 0
    assert persistent.put(1, {100_000: noise(1)})[100_000].stored


def test_an_ephemeral_pool_evicts_within_its_quota(ephemeral: tmem.Pool) -> None:
    ephemeral.quota = "1MiB"
    for index in range(2000):
        ephemeral.put(1, {index: noise(index % 500)})
    stats = ephemeral.stats()
    assert stats["footprint_bytes"] <= 1 << 20
    assert stats["evicted_quota"] == stats["evicted_pages"] > 0
    for index, data in ephemeral.get(1, range(2000)).items():
        assert data == noise(index % 500)


def test_a_full_arena_refuses_persistent_pages_and_keeps_what_it_has() -> None:
    with tmem.open(memory="2MiB", accept_threshold=100) as store:
        pool = store.pool("swap0")
        stored = fill(pool, 1)
        assert pool.put(1, {100_000: noise(1)})[100_000].reason == "memory"
        assert store.stats()["used_bytes"] <= 2 << 20
        assert pool.get(1, range(stored)) == {index: noise(index % 500) for index in range(stored)}
        assert pool.flush(1, range(100)) == 100
        store.compact()
        assert pool.put(2, {0: noise(0)})[0].stored
        assert store.check() == []


def test_a_full_arena_takes_nothing_until_it_is_below_its_threshold() -> None:
    with tmem.open(memory="4MiB", accept_threshold=50) as store:
        pool = store.pool("swap0")
        stored = fill(pool, 1)
        pool.flush(1, range(stored // 10))
        store.compact()
        assert pool.put(2, {0: noise(0)})[0].reason == "memory"
        pool.flush(1, range(stored * 3 // 4))
        store.compact()
        assert pool.put(2, {0: noise(0)})[0].stored


@pytest.mark.parametrize("allocator", ["zsmalloc", "zbud"])
def test_a_full_arena_evicts_ephemeral_pages_for_any_other(allocator: str) -> None:
    with tmem.open(memory="4MiB") as store:
        cache = store.pool("cache", kind="ephemeral", allocator=allocator)  # type: ignore[arg-type]
        for index in range(3000):
            assert cache.put(1, {index: noise(index % 500)})[index].stored
        assert cache.stats()["evicted_memory"] > 0
        swap = store.pool("swap0")
        assert all(swap.put(1, {index: noise(index)})[index].stored for index in range(500))
        assert swap.get(1, range(500)) == {index: noise(index) for index in range(500)}
        assert store.stats()["used_bytes"] <= 4 << 20
        assert store.check() == []


def test_pages_that_compress_worse_than_admitted_are_refused(store: tmem.Store, kind: Kind) -> None:
    pool = store.pool("dense", kind=kind, max_zpage=3000)
    pool.put(1, {7: page(7)})
    outcomes = pool.put(1, {7: noise(7), 8: noise(8), 9: page(9)})
    assert {index: outcome.reason for index, outcome in outcomes.items()} == {
        7: "poor_compression",
        8: "poor_compression",
        9: None,
    }
    assert outcomes[7].old_flushed
    assert pool.get(1, [7, 8, 9]) == {9: page(9)}


def test_a_range_reports_each_refusal(store: tmem.Store) -> None:
    pool = store.pool("dense", max_zpage=3000)
    outcomes = pool.put_range(1, 0, page(0) + noise(1) + page(2) + noise(3))
    assert (outcomes.stored, outcomes.reasons, outcomes.all_stored) == (2, {"poor_compression": 2}, False)
    assert pool.has(1, 0, 4) == b"\1\0\1\0"


def test_relinquish_gives_back_ephemeral_memory_only(store: tmem.Store) -> None:
    cache, swap = store.pool("cache", kind="ephemeral"), store.pool("swap0")
    for index in range(1000):
        cache.put(1, {index: noise(index % 500)})
        swap.put(1, {index: noise(index % 500)})
    before = store.stats()["used_bytes"]
    given = store.relinquish("1MiB")
    assert given >= 1 << 20
    assert store.stats()["used_bytes"] <= before - (1 << 20)
    assert cache.stats()["evicted_relinquish"] == cache.stats()["evicted_pages"] > 0
    assert sum(swap.has(1, 0, 1000)) == 1000
    store.relinquish("1GiB")
    assert sum(cache.has(1, 0, 1000)) == 0
    assert store.relinquish("1GiB") == 0


def test_a_raised_limit_admits_more() -> None:
    with tmem.open(memory="2MiB", accept_threshold=100) as store:
        pool = store.pool("swap0")
        stored = fill(pool, 1)
        store.resize("4MiB")
        assert store.memory == 4 << 20
        assert fill(pool, 2) > stored // 2
        assert len(pool.get(1, range(stored))) == stored
        with pytest.raises(ValueError, match="4"):
            store.resize("2MiB")
        assert store.check() == []


def test_weights_share_the_memory() -> None:
    with tmem.open(memory="8MiB") as store:
        heavy = store.pool("heavy", kind="ephemeral", weight=3)
        light = store.pool("light", kind="ephemeral", weight=1)
        for index in range(4000):
            heavy.put(1, {index: noise(index % 500)})
            light.put(1, {index: noise(index % 500)})
        pages = [pool.stats()["pages"] for pool in (heavy, light)]
        assert pages[0] / pages[1] == pytest.approx(3, rel=0.34)


def test_compaction_frees_frames(store: tmem.Store) -> None:
    pool = store.pool("swap0")
    pool.put(1, {index: page(index % 100) for index in range(4000)})
    pool.flush(1, [index for index in range(4000) if index % 10])
    before = store.stats()["used_bytes"]
    done = store.compact()
    assert done["moved_pages"] > 0
    assert done["freed_bytes"] > 0
    assert store.stats()["used_bytes"] < before
    assert pool.get(1, range(4000)) == {index: page(index % 100) for index in range(0, 4000, 10)}
    assert pool.stats()["footprint_bytes"] < 400 * PAGE
