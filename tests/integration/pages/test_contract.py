"""One contract, whatever the way in: the same tests over the embedded engine, shared memory and a real daemon."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

import tmem
from tests.integration.engine.test_bad_input import BAD_SETTINGS, KEPT, WRONG_TYPES, WRONG_VALUES
from tests.lib.blocking import blocking
from tests.lib.daemon import daemon
from tests.lib.support import PAGE, filled, noise, page, run
from tmem import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STORED = Outcome(stored=True)
REPLACED = Outcome(stored=True, replaced=True)
REMOTE = ("grpc", "grpc-raw", "grpc-stream", "aio", "aio-raw", "worker", "aio-worker")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a daemon that all tests here share."""
    with daemon("--memory", "64MiB") as running:
        yield running.address


@pytest.fixture(scope="module")
def worker() -> Iterator[str]:
    """The address of the second worker of a daemon that all tests here share."""
    with daemon("--workers=2") as running:
        yield running.addresses[1]


@contextlib.contextmanager
def _shm(path: Path) -> Iterator[tmem.Store]:
    with tmem.open(memory="32MiB", arena=path), tmem.connect(f"shm://{path}") as store:
        yield store


@contextlib.contextmanager
def _grpc_alone(server: str) -> Iterator[tmem.Store]:
    """Without the SDK's own connection for its stream."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMEM_TRANSPORT", "grpc")
        with tmem.connect(server) as store:
            yield store


@pytest.fixture(params=["embedded", "shm", *REMOTE])
def store(request: pytest.FixtureRequest, tmp_path: Path, server: str, worker: str) -> Iterator[Any]:
    """A store without pools, over each way in."""
    ways: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
        "embedded": lambda: tmem.open(memory="32MiB"),
        "shm": lambda: _shm(tmp_path / "arena"),
        "grpc": lambda: tmem.connect(server),
        "grpc-raw": lambda: tmem.connect(f"grpc://{server}", encoding="raw"),
        "grpc-stream": lambda: _grpc_alone(server),
        "aio": lambda: blocking(server),
        "aio-raw": lambda: blocking(f"grpc://{server}", encoding="raw"),
        "worker": lambda: tmem.connect(worker),
        "aio-worker": lambda: blocking(worker),
    }
    with ways[request.param]() as store:
        yield store
        if not store.closed:
            for pool in store.pools():
                pool.destroy()
            assert store.check() == []


@pytest.fixture
def pool(store: Any) -> Any:
    """A persistent pool."""
    return store.pool("persistent")


@pytest.fixture
def ephemeral(store: Any) -> Any:
    """A private ephemeral pool."""
    return store.pool("ephemeral", kind="ephemeral")


def test_what_was_put_comes_back_and_a_miss_is_left_out(pool: Any) -> None:
    pages = {0: page(0), 7: noise(7), 2**32 - 1: filled(b"\0"), 64: filled(b"8 bytes.")}
    assert pool.put(1, pages) == dict.fromkeys(pages, STORED)
    assert pool.get(1, [*pages, 8]) == pages
    assert pool.get(2, [7]) == {}


def test_a_put_replaces(pool: Any) -> None:
    pool.put(1, {7: page(1)})
    assert pool.put(1, {7: page(2), 8: page(3)}) == {7: REPLACED, 8: STORED}
    assert pool.get(1, [7, 8]) == {7: page(2), 8: page(3)}


def test_an_empty_batch_is_nothing(pool: Any) -> None:
    assert (pool.put(1, {}), pool.put_lz4(1, {}), pool.get(1, []), pool.flush(1, [])) == ({}, {}, {}, 0)
    assert len(pool.put_range(1, 2**32 - 1, b"")) == 0
    assert pool.get_range(1, 0, 0) == (bytearray(), b"")
    assert pool.has(1, 0, 0) == b""


def test_an_oid_has_several_spellings(pool: Any) -> None:
    for at, (oid, same) in enumerate([(5, (5).to_bytes(24, "big")), (b"short", b"short".ljust(24, b"\0"))]):
        pool.put(oid, {at: page(at)})
        assert pool.get(same, [at]) == {at: page(at)}


def test_an_index_asked_for_twice_is_one_page(pool: Any) -> None:
    pool.put(1, {7: page(7)})
    assert pool.get(1, iter([7, 7])) == {7: page(7)}
    assert pool.flush(1, [7, 7]) == 1


def test_pages_come_from_any_buffer(pool: Any) -> None:
    whole = bytearray(page(1) + page(2))
    view = memoryview(whole)
    pool.put(1, {0: bytearray(page(0)), 1: view[:PAGE], 2: view[PAGE:], 3: view[:PAGE].cast("Q")})
    assert pool.get(1, range(4)) == {0: page(0), 1: page(1), 2: page(2), 3: page(1)}


def test_a_call_of_any_size_is_one_call(pool: Any) -> None:
    pages = {index * 3: page(index % 50) for index in range(2000)}
    assert all(pool.put(1, pages).values())
    assert pool.get(1, range(6000)) == pages
    assert pool.flush(1, range(6000)) == 2000


@pytest.mark.parametrize("page_size", [8192, 65536, 262144])
def test_pages_of_other_sizes(store: Any, page_size: int) -> None:
    pool = store.pool("sized", page_size=page_size)
    pages = {index: page(index, page_size) for index in range(40)} | {50: noise(50, page_size)}
    assert all(pool.put(1, pages).values())
    assert pool.get(1, range(60)) == pages
    assert pool.page_size == page_size


@pytest.mark.parametrize("codec", ["lz4", "lz4hc", "zstd", "raw"])
def test_ranges_go_in_and_out_in_one_buffer(store: Any, codec: str) -> None:
    pool = store.pool("range", codec=codec)
    outcomes = pool.put_range(1, 100, run(100, 700))
    assert (outcomes.first, len(outcomes), outcomes.all_stored) == (100, 700, True)
    into = bytearray(b"\xee" * PAGE * 702)
    buffer, mask = pool.get_range(1, 99, 702, into)
    assert buffer is into
    assert into == bytes(PAGE) + run(100, 700) + bytes(PAGE)
    assert mask == b"\0" + b"\1" * 700 + b"\0"


def test_has_says_which_pages_are_held_and_keeps_them(ephemeral: Any) -> None:
    ephemeral.put(1, {5: page(5), 70_000: page(6)})
    for _ in range(2):
        mask = ephemeral.has(1, 0, 140_000)
        assert [index for index, held in enumerate(mask) if held] == [5, 70_000]
        assert len(mask) == 140_000


def test_blocks_of_lz4_are_stored_as_pages(pool: Any) -> None:
    literal = noise(1)
    block = bytes([0xF0]) + b"\xff" * ((PAGE - 15) // 255) + bytes([(PAGE - 15) % 255]) + literal
    assert pool.put_lz4(1, {7: block, 8: block}) == {7: STORED, 8: STORED}
    assert pool.get(1, [7, 8]) == {7: literal, 8: literal}


@pytest.mark.parametrize("block", [b"", b"\0", b"\xff" * 64, noise(3), b"\x10x"])
def test_a_block_that_is_no_page_is_refused_before_anything_is_touched(pool: Any, block: bytes) -> None:
    pool.put(1, {7: page(7)})
    with pytest.raises(ValueError, match="7"):
        pool.put_lz4(1, {7: block})
    assert pool.get(1, [7]) == {7: page(7)}


def test_a_persistent_get_keeps_the_page_and_an_exclusive_one_takes_it(pool: Any) -> None:
    pool.put_range(1, 0, run(0, 600))
    assert pool.get(1, [7]) == pool.get(1, [7]) == {7: page(7)}
    assert pool.get(1, [7], exclusive=True) == {7: page(7)}
    assert pool.get(1, [7, 8]) == {8: page(8)}
    assert pool.get_range(1, 0, 600, exclusive=True)[1].count(1) == 599
    assert sum(pool.has(1, 0, 600)) == 0


def test_a_private_ephemeral_get_gives_the_page_away(ephemeral: Any) -> None:
    ephemeral.put(1, {7: page(7)})
    assert ephemeral.get(1, [7]) == {7: page(7)}
    assert ephemeral.get(1, [7]) == {}


@pytest.mark.parametrize("option", ["shared", "inclusive"])
def test_a_shared_or_inclusive_get_keeps_the_page(store: Any, option: str) -> None:
    pool = store.pool("kept", kind="ephemeral", **{option: True})
    pool.put(1, {7: page(7)})
    assert pool.get(1, [7]) == pool.get(1, [7]) == {7: page(7)}
    assert pool.get(1, [7], exclusive=True) == {7: page(7)}
    assert pool.get(1, [7]) == {}


def test_flushes_are_counted_complete_and_idempotent(pool: Any) -> None:
    pool.put_range(1, 0, run(0, 4))
    pool.put_range(2, 0, run(0, 4))
    assert [pool.flush(1, [1, 9]), pool.flush(1, [1, 9])] == [1, 0]
    assert [pool.flush_object(1), pool.flush_object(1)] == [3, 0]
    assert pool.has(2, 0, 4) == b"\1\1\1\1"


def test_a_refused_put_hides_the_older_page(store: Any) -> None:
    pool = store.pool("picky", max_zpage=2048)
    pool.put(1, {7: filled(b"8 bytes.")})
    refused = pool.put(1, {7: noise(7), 8: noise(8)})
    assert refused == {
        7: Outcome(stored=False, reason="poor_compression", old_flushed=True),
        8: Outcome(stored=False, reason="poor_compression"),
    }
    assert pool.get(1, [7, 8]) == {}


def test_a_pool_at_its_quota_refuses_and_says_so(store: Any) -> None:
    pool = store.pool("small", quota="256KiB")
    outcomes = pool.put_range(1, 0, b"".join(noise(seed) for seed in range(200)))
    assert outcomes.reasons == {"quota": outcomes.refused}
    assert 0 < outcomes.stored < 200
    held = [bool(outcome) for outcome in outcomes]
    assert [bool(bit) for bit in pool.has(1, 0, 200)] == held
    pool.quota = None
    assert pool.quota == 0
    assert pool.put(1, {999: noise(999)})[999].stored


def test_a_frozen_pool_refuses_puts_as_flushes(pool: Any) -> None:
    pool.put(1, {7: page(7), 9: page(9)})
    pool.freeze()
    assert pool.frozen
    assert pool.put(1, {7: page(8), 8: page(8)}) == {
        7: Outcome(stored=False, reason="frozen", old_flushed=True),
        8: Outcome(stored=False, reason="frozen"),
    }
    assert pool.get(1, [7, 8, 9]) == {9: page(9)}
    pool.thaw()
    assert not pool.frozen
    assert pool.put(1, {7: page(7)})[7].stored


def test_a_destroyed_pool_is_unknown_and_its_name_free(store: Any) -> None:
    pool = store.pool("gone")
    again = store.find_pool("gone")
    pool.put_range(1, 0, run(0, 10))
    assert pool.destroy() == 10
    fresh = store.pool("gone", codec="zstd")
    calls: list[Callable[[Any], object]] = [
        lambda gone: gone.put(1, {0: page(0)}),
        lambda gone: gone.get(1, [0]),
        lambda gone: gone.has(1, 0, 1),
        lambda gone: gone.flush(1, [0]),
        lambda gone: gone.freeze(),
        lambda gone: gone.destroy(),
        lambda gone: gone.stats(),
    ]
    for handle in (pool, again):
        for call in calls:
            with pytest.raises(tmem.UnknownPoolError, match="gone"):
                call(handle)
    assert fresh.get(1, range(10)) == {}


def test_an_unknown_pool_is_not_found(store: Any) -> None:
    with pytest.raises(tmem.UnknownPoolError, match="nowhere"):
        store.find_pool("nowhere")


def test_pools_are_opened_found_and_listed_with_their_settings(store: Any) -> None:
    made = store.pool("one", kind="ephemeral", codec="zstd:3", weight=5, shared=True, owner="me")
    store.pool("two")
    assert sorted(pool.name for pool in store.pools()) == ["one", "two"]
    assert made.settings == store.find_pool("one").settings
    assert (made.settings.codec, made.settings.allocator, made.weight, made.settings.owner) == (
        "zstd:3",
        "zbud",
        5,
        "me",
    )
    made.weight = 9
    assert store.find_pool("one").weight == 9


def test_a_pool_with_other_settings_is_a_mismatch_that_names_the_difference(store: Any) -> None:
    store.pool("one", codec="zstd")
    with pytest.raises(tmem.MismatchError, match="zstd"):
        store.pool("one", codec="lz4")


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_a_wrong_value_is_a_value_error_and_touches_nothing(pool: Any, case: str) -> None:
    pool.put(1, {7: KEPT})
    call, message = WRONG_VALUES[case]
    with pytest.raises(ValueError, match=message):
        call(pool)
    assert pool.get(1, range(20)) == {7: KEPT}


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_a_wrong_type_is_a_type_error_and_touches_nothing(pool: Any, case: str) -> None:
    pool.put(1, {7: KEPT})
    call, message = WRONG_TYPES[case]
    with pytest.raises(TypeError, match=message):
        call(pool)
    assert pool.get(1, range(20)) == {7: KEPT}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_make_no_pool(store: Any, case: str) -> None:
    settings, error, message = BAD_SETTINGS[case]
    with pytest.raises(error, match=message):
        store.pool("bad", **settings)
    assert store.pools() == []


@pytest.mark.parametrize("name", ["", "x" * 65, "ü" * 33])
def test_a_bad_name_makes_no_pool(store: Any, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        store.pool(name)
    assert store.pools() == []


def test_the_store_has_counters_and_care(store: Any, pool: Any) -> None:
    pool.put_range(1, 0, run(0, 64))
    assert (pool.stats()["pages"], store.stats()["pages"]) == (64, 64)
    assert len(pool.stats()["size_histogram"]) == 64
    assert all(entry["capacity"] >= entry["objects"] for entry in pool.stats()["classes"])
    assert set(store.compact()) == {"moved_pages", "freed_bytes"}
    assert store.relinquish("1MiB") >= 0
    assert store.memory == store.stats()["memory_bytes"]
    with pytest.raises(ValueError, match="memory"):
        store.resize("1MiB")


def test_a_closed_store_says_so(store: Any, pool: Any) -> None:
    pool.put(1, {7: page(7)})
    pool.destroy()
    other = store.pool("other")
    other.destroy()
    store.close()
    store.close()
    assert store.closed
    for call in (store.stats, store.pools, lambda: other.get(1, [7]), lambda: other.put(1, {7: page(7)})):
        with pytest.raises(tmem.ClosedError):
            call()


def test_a_connection_counts_its_calls(store: Any, pool: Any) -> None:
    pool.put_range(1, 0, run(0, 600))
    stats = store.client_stats()
    assert stats.failed_calls == stats.retries == 0
    assert isinstance(stats, tmem.ClientStats)
