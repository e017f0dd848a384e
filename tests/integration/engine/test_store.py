"""A store's life, its pools by name, settings and statistics."""

from collections.abc import Callable
from pathlib import Path

import pytest

import tmem
from tests.lib.support import PAGE, filled, page
from tmem._model.settings import PoolSettings
from tmem._model.stats import PoolStats, StoreStats

DEFAULTS = {
    "kind": "persistent",
    "codec": "lz4",
    "allocator": "zsmalloc",
    "page_size": 4096,
    "quota": 0,
    "weight": 1,
    "shared": False,
    "inclusive": False,
    "max_zpage": 0,
    "owner": "",
}
OTHER = {
    "kind": "ephemeral",
    "codec": "zstd:3",
    "allocator": "zbud",
    "page_size": 8192,
    "quota": 1 << 20,
    "weight": 5,
    "max_zpage": 4000,
    "owner": "client-1",
}


def test_a_pool_has_the_settings_it_was_given(store: tmem.Store) -> None:
    assert store.pool("plain").settings == PoolSettings(**DEFAULTS)  # type: ignore[arg-type]
    given = OTHER | {"shared": True, "quota": "1MiB", "page_size": "8KiB"}
    assert store.pool("other", **given).settings == PoolSettings(**DEFAULTS | OTHER | {"shared": True})  # type: ignore[arg-type]


def test_the_allocator_follows_the_kind(store: tmem.Store) -> None:
    assert store.pool("cache", kind="ephemeral").settings.allocator == "zbud"
    assert store.pool("swap0", kind="persistent").settings.allocator == "zsmalloc"


def test_the_same_name_is_the_same_pool(store: tmem.Store) -> None:
    store.pool("swap0").put(1, {7: page(7)})
    assert store.pool("swap0").get(1, [7]) == {7: page(7)}
    assert store.find_pool("swap0").get(1, [7]) == {7: page(7)}


@pytest.mark.parametrize("setting", OTHER)
def test_opening_a_pool_with_other_settings_names_the_difference(store: tmem.Store, setting: str) -> None:
    pool = store.pool("swap0", allocator="zsmalloc")
    pool.put(1, {7: page(7)})
    settings = {"allocator": "zsmalloc"} | {setting: OTHER[setting]}
    with pytest.raises(tmem.MismatchError, match=setting):
        store.pool("swap0", **settings)  # type: ignore[arg-type]
    assert pool.get(1, [7]) == {7: page(7)}


def test_quota_and_weight_can_be_changed(store: tmem.Store) -> None:
    pool = store.pool("cache", kind="ephemeral")
    pool.quota = "2MiB"
    pool.weight = 7
    assert (pool.quota, pool.weight) == (2 << 20, 7)
    assert store.pool("cache", kind="ephemeral", quota="2MiB", weight=7).quota == 2 << 20


def test_pools_are_listed(store: tmem.Store) -> None:
    assert store.pools() == []
    store.pool("one").put(1, {7: page(7)})
    store.pool("two", kind="ephemeral")
    assert sorted(pool.name for pool in store.pools()) == ["one", "two"]
    assert [pool.get(1, [7]) for pool in store.pools() if pool.name == "one"] == [{7: page(7)}]


def test_an_unknown_pool_is_an_error_with_its_name(store: tmem.Store) -> None:
    with pytest.raises(tmem.UnknownPoolError, match="'nowhere' does not exist") as caught:
        store.find_pool("nowhere")
    assert caught.value.name == "nowhere"


def test_names_are_any_text_of_64_bytes(store: tmem.Store) -> None:
    for name in ("x" * 64, "ü" * 32, "with space", "a/b"):
        assert store.pool(name).name == store.find_pool(name).name == name


def test_there_is_room_for_1024_pools(store: tmem.Store) -> None:
    for number in range(1024):
        store.pool(f"pool{number}")
    with pytest.raises(tmem.ExhaustedError, match="1024"):
        store.pool("one too many")
    store.find_pool("pool7").destroy()
    assert store.pool("now there is room").put(1, {7: page(7)})[7].stored


def test_statistics_count_what_happened(store: tmem.Store) -> None:
    pool = store.pool("swap0")
    pool.put(1, {0: page(0), 1: filled(b"\0"), 2: page(2)})
    pool.put(1, {0: page(3)})
    pool.get(1, [0, 1, 2, 3])
    pool.flush(1, [2, 3])
    stats = pool.stats()
    assert (stats["puts_stored"], stats["puts_replaced"]) == (4, 1)
    assert (stats["gets_hit"], stats["gets_miss"]) == (3, 1)
    assert (stats["pages"], stats["flushed_pages"]) == (2, 1)
    assert stats["same_filled_pages"] == 1
    assert 0 < stats["payload_bytes"] < 2 * PAGE
    assert len(stats["size_histogram"]) == 64
    assert sum(row["objects"] for row in stats["classes"]) >= 1


def test_statistics_have_the_documented_names(store: tmem.Store) -> None:
    pool = store.pool("swap0")
    pool.put(1, {0: page(0)})
    assert set(store.stats()) == StoreStats.__annotations__.keys()
    assert set(pool.stats()) == PoolStats.__annotations__.keys()


def test_a_store_counts_all_memory_in_use(store: tmem.Store) -> None:
    store.pool("swap0").put(1, {index: page(index % 50) for index in range(2000)})
    stats = store.stats()
    assert stats["pages"] == 2000
    assert 0 < stats["metadata_bytes"] < stats["used_bytes"] <= stats["memory_bytes"] == 32 << 20
    assert 0 < stats["payload_bytes"] < stats["used_bytes"]


def test_a_store_says_what_it_is(store: tmem.Store, arena: Path) -> None:
    assert repr(store) == "<tmem.Store private memory=32MiB>"
    assert repr(store.pool("swap0")) == "<tmem.Pool 'swap0' page_size=4096>"
    with tmem.open(memory="4MiB", arena=arena) as other:
        assert other.arena == str(arena)
        assert repr(other) == f"<tmem.Store {arena} memory=4MiB>"
    assert repr(other) == "<tmem.Store closed>"


CALLS: list[Callable[[tmem.Store, tmem.Pool], object]] = [
    lambda store, _: store.pool("new"),
    lambda store, _: store.find_pool("swap0"),
    lambda store, _: store.pools(),
    lambda store, _: store.stats(),
    lambda store, _: store.compact(),
    lambda store, _: store.relinquish(1),
    lambda store, _: store.resize("64MiB"),
    lambda store, _: store.check(),
    lambda store, _: store.memory,
    lambda store, _: store.arena,
    lambda _, pool: pool.put(1, {7: page(7)}),
    lambda _, pool: pool.put_lz4(1, {7: b"block"}),
    lambda _, pool: pool.put_range(1, 0, page(0)),
    lambda _, pool: pool.get(1, [7]),
    lambda _, pool: pool.get_range(1, 0, 1),
    lambda _, pool: pool.has(1, 0, 1),
    lambda _, pool: pool.flush(1, [7]),
    lambda _, pool: pool.flush_object(1),
    lambda _, pool: pool.destroy(),
    lambda _, pool: pool.freeze(),
    lambda _, pool: pool.thaw(),
    lambda _, pool: pool.frozen,
    lambda _, pool: pool.settings,
    lambda _, pool: pool.quota,
    lambda _, pool: setattr(pool, "quota", 0),
    lambda _, pool: pool.weight,
    lambda _, pool: setattr(pool, "weight", 1),
    lambda _, pool: pool.stats(),
]


def test_a_closed_store_refuses_every_call(store: tmem.Store) -> None:
    pool = store.pool("swap0")
    store.close()
    assert store.closed
    for call in CALLS:
        with pytest.raises(tmem.ClosedError, match="closed"):
            call(store, pool)
    assert (pool.name, pool.page_size) == ("swap0", 4096)


def test_closing_twice_does_nothing(store: tmem.Store) -> None:
    store.close()
    store.close()
    with store:
        pass


def test_a_pool_keeps_the_store_alive() -> None:
    pool = tmem.open(memory="4MiB").pool("swap0")
    pool.put(1, {7: page(7)})
    assert pool.get(1, [7]) == {7: page(7)}


@pytest.mark.parametrize("what", ["clients", "workers", "events"])
def test_what_only_a_server_has_is_an_error_that_says_so(store: tmem.Store, what: str) -> None:
    with pytest.raises(tmem.TmemError, match="needs a server"):
        getattr(store, what)()
