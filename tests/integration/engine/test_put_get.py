"""Put and get of single pages, over every kind, codec and allocator."""

import lz4.block
import pytest

import tmem
from tests.lib.support import PAGE, filled, noise, page
from tmem import Outcome

STORED = Outcome(stored=True)
REPLACED = Outcome(stored=True, replaced=True)


def test_what_was_put_comes_back(any_pool: tmem.Pool) -> None:
    pages = {0: page(0), 7: noise(7), 2**32 - 1: filled(b"\0"), 64: filled(b"8 bytes.")}
    assert any_pool.put(1, pages) == dict.fromkeys(pages, STORED)
    assert any_pool.get(1, list(pages)) == pages


def test_a_miss_is_left_out(any_pool: tmem.Pool) -> None:
    any_pool.put(1, {7: page(7)})
    assert any_pool.get(1, [6, 7, 8]) == {7: page(7)}
    assert any_pool.get(2, [7]) == {}


def test_a_put_replaces(any_pool: tmem.Pool) -> None:
    any_pool.put(1, {7: page(1)})
    assert any_pool.put(1, {7: page(2), 8: page(3)}) == {7: REPLACED, 8: STORED}
    assert any_pool.get(1, [7, 8]) == {7: page(2), 8: page(3)}


def test_an_empty_batch_is_nothing(any_pool: tmem.Pool) -> None:
    assert any_pool.put(1, {}) == {}
    assert any_pool.get(1, []) == {}
    assert any_pool.flush(1, []) == 0


def test_objects_are_apart(any_pool: tmem.Pool) -> None:
    for oid in range(1, 40):
        any_pool.put(oid, {oid: page(oid)})
    for oid in range(1, 40):
        assert any_pool.get(oid, range(40)) == {oid: page(oid)}


def test_pools_are_apart(store: tmem.Store) -> None:
    one, two = store.pool("one"), store.pool("two")
    one.put(1, {7: page(1)})
    assert two.get(1, [7]) == {}
    assert two.flush_object(1) == 0
    assert one.get(1, [7]) == {7: page(1)}


@pytest.mark.parametrize("page_size", [4096, 8192, 16384, 32768, 65536, 131072, 262144])
@pytest.mark.parametrize("allocator", ["zsmalloc", "zbud"])
@pytest.mark.parametrize("codec", ["lz4", "lz4hc", "zstd", "raw"])
def test_pages_of_every_size(store: tmem.Store, page_size: int, allocator: str, codec: str) -> None:
    pool = store.pool("sized", page_size=page_size, allocator=allocator, codec=codec)  # type: ignore[arg-type]
    pages = {0: page(0, page_size), 1: noise(1, page_size), 2: filled(b"x" * 8, page_size)}
    assert all(pool.put(1, pages).values())
    assert pool.get(1, range(4)) == pages
    assert pool.page_size == page_size


@pytest.mark.parametrize("codec", ["lz4:8", "lz4:65537", "lz4hc:3", "lz4hc:9", "lz4hc:12", "zstd:-7", "zstd:9"])
def test_codecs_take_a_parameter(store: tmem.Store, codec: str) -> None:
    pool = store.pool("tuned", codec=codec)
    pool.put(1, {7: page(7)})
    assert pool.get(1, [7]) == {7: page(7)}
    assert pool.settings.codec == codec


@pytest.mark.parametrize(
    ("oid", "same"),
    [
        (5, (5).to_bytes(24, "big")),
        (2**192 - 1, b"\xff" * 24),
        (2**64, (2**64).to_bytes(24, "big")),
        (b"short", b"short".ljust(24, b"\0")),
        (b"", 0),
        (tmem.oid("text"), tmem.oid("text")),
    ],
)
def test_an_oid_has_several_spellings(store: tmem.Store, oid: int | bytes, same: int | bytes) -> None:
    pool = store.pool("oids")
    pool.put(oid, {7: page(7)})
    assert pool.get(same, [7]) == {7: page(7)}
    assert pool.flush(same, [7]) == 1


def test_indices_come_from_any_iterable(persistent: tmem.Pool) -> None:
    persistent.put(1, {index: page(index) for index in range(4)})
    for indices in (range(4), (3, 0, 1, 2), {0, 1, 2, 3}, iter([0, 1, 2, 3]), {0: "", 1: "", 2: "", 3: ""}):
        assert sorted(persistent.get(1, indices)) == [0, 1, 2, 3]


def test_an_index_asked_for_twice_is_one_page(persistent: tmem.Pool) -> None:
    persistent.put(1, {7: page(7)})
    assert persistent.get(1, [7, 7]) == {7: page(7)}
    assert persistent.get(1, [7, 7], exclusive=True) == {7: page(7)}
    assert persistent.get(1, [7]) == {}


def test_pages_come_from_any_buffer(persistent: tmem.Pool) -> None:
    whole = bytearray(page(1) + page(2))
    view = memoryview(whole)
    persistent.put(1, {0: bytearray(page(0)), 1: view[:PAGE], 2: view[PAGE:], 3: view[:PAGE].cast("Q")})
    assert persistent.get(1, range(4)) == {0: page(0), 1: page(1), 2: page(2), 3: page(1)}


def test_a_large_batch_takes_one_call(persistent: tmem.Pool) -> None:
    pages = {index * 3: page(index % 50) for index in range(2000)}
    assert all(persistent.put(1, pages).values())
    assert persistent.get(1, range(6000)) == pages


def test_blocks_of_lz4_are_stored_as_pages(store: tmem.Store) -> None:
    pool = store.pool("lz4")
    literal = noise(1)
    block = bytes([0xF0]) + b"\xff" * ((PAGE - 15) // 255) + bytes([(PAGE - 15) % 255]) + literal
    assert pool.put_lz4(1, {7: block, 8: block}) == {7: STORED, 8: STORED}
    assert pool.get(1, [7, 8]) == {7: literal, 8: literal}


@pytest.mark.parametrize("codec", ["lz4hc", "zstd", "raw"])
def test_blocks_of_lz4_go_into_any_pool(store: tmem.Store, codec: str) -> None:
    pool = store.pool("other", codec=codec)
    block = (
        b"\x1fx\x01\x00" + b"\xff" * ((PAGE - 1 - 5 - 19) // 255) + bytes([(PAGE - 1 - 5 - 19) % 255]) + b"\x50xxxxx"
    )
    assert pool.put_lz4(1, {7: block}) == {7: STORED}
    assert pool.get(1, [7]) == {7: b"x" * PAGE}


@pytest.mark.parametrize("codec", ["lz4hc", "zstd"])
def test_blocks_of_lz4_are_compressed_anew_where_the_pool_is_denser(store: tmem.Store, codec: str) -> None:
    squares = "".join(f"{n * n} " for n in range(1000)).encode()[:PAGE]
    block = lz4.block.compress(squares, store_size=False)
    pool = store.pool("denser", codec=codec)
    pool.put_lz4(1, {7: block})
    of_block = pool.stats()["payload_bytes"]
    pool.put(1, {7: squares})
    assert of_block == pool.stats()["payload_bytes"] < len(block)
    assert pool.get(1, [7]) == {7: squares}


@pytest.mark.parametrize("block", [b"", b"\0", b"\xff" * 64, noise(3), b"\x10x"])
def test_a_block_that_is_no_page_is_refused_before_anything_is_touched(store: tmem.Store, block: bytes) -> None:
    pool = store.pool("lz4")
    pool.put(1, {7: page(7)})
    with pytest.raises(ValueError, match="7"):
        pool.put_lz4(1, {7: block})
    assert pool.get(1, [7]) == {7: page(7)}
