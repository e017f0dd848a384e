"""Contiguous pages: one buffer in, one buffer out."""

import array
import mmap

import pytest

import tmem
from tests.lib.support import PAGE, page, run


def test_a_range_goes_in_and_comes_out_in_one_buffer(any_pool: tmem.Pool) -> None:
    outcomes = any_pool.put_range(1, 100, run(100, 70))
    assert (outcomes.first, len(outcomes), outcomes.all_stored) == (100, 70, True)
    buffer, mask = any_pool.get_range(1, 100, 70)
    assert isinstance(buffer, bytearray)
    assert buffer == run(100, 70)
    assert mask == b"\1" * 70


def test_misses_are_zeros_in_the_buffer_and_in_the_mask(any_pool: tmem.Pool) -> None:
    any_pool.put(1, {1: page(1), 3: page(3)})
    into = bytearray(b"\xee" * PAGE * 5)
    buffer, mask = any_pool.get_range(1, 0, 5, into)
    assert buffer is into
    assert mask == b"\0\1\0\1\0"
    assert into == bytes(PAGE) + page(1) + bytes(PAGE) + page(3) + bytes(PAGE)


def test_a_range_is_the_pages_of_its_indices(any_pool: tmem.Pool) -> None:
    any_pool.put_range(1, 60, run(60, 8))
    assert any_pool.get(1, range(58, 70)) == {index: page(index) for index in range(60, 68)}


def test_a_range_replaces(any_pool: tmem.Pool) -> None:
    any_pool.put_range(1, 0, run(0, 4))
    outcomes = any_pool.put_range(1, 2, run(10, 4))
    assert [outcome.replaced for outcome in outcomes] == [True, True, False, False]
    assert any_pool.get_range(1, 0, 6)[0] == run(0, 2) + run(10, 4)


def test_has_says_which_pages_are_held_and_keeps_them(ephemeral: tmem.Pool) -> None:
    ephemeral.put(1, {5: page(5), 63: page(63), 64: page(64)})
    for _ in range(2):
        mask = ephemeral.has(1, 0, 130)
        assert [index for index, held in enumerate(mask) if held] == [5, 63, 64]
        assert set(mask) == {0, 1}
        assert len(mask) == 130


def test_an_exclusive_range_takes_the_pages_out(any_pool: tmem.Pool) -> None:
    any_pool.put_range(1, 0, run(0, 3))
    assert any_pool.get_range(1, 0, 3, exclusive=True)[1] == b"\1\1\1"
    assert any_pool.has(1, 0, 3) == b"\0\0\0"


def test_empty_ranges_are_nothing(any_pool: tmem.Pool) -> None:
    assert len(any_pool.put_range(1, 2**32 - 1, b"")) == 0
    assert any_pool.get_range(1, 0, 0) == (bytearray(), b"")
    assert any_pool.has(1, 0, 0) == b""


def test_the_last_index_is_in_range(persistent: tmem.Pool) -> None:
    assert persistent.put_range(1, 2**32 - 2, run(0, 2)).all_stored
    assert persistent.get_range(1, 2**32 - 2, 2) == (bytearray(run(0, 2)), b"\1\1")


def test_buffers_of_any_type_go_in_and_out(persistent: tmem.Pool) -> None:
    words = array.array("Q", run(0, 2))
    assert persistent.put_range(1, 0, words).all_stored
    with mmap.mmap(-1, 2 * PAGE) as mapped:
        assert persistent.get_range(1, 0, 2, mapped)[0] is mapped
        assert mapped[:] == run(0, 2)
        assert persistent.put_range(2, 0, mapped).all_stored
    into = array.array("d", bytes(2 * PAGE))
    assert persistent.get_range(2, 0, 2, memoryview(into))[1] == b"\1\1"
    assert into.tobytes() == run(0, 2)


def test_a_bytearray_is_free_again_after_the_call(persistent: tmem.Pool) -> None:
    buffer = bytearray(run(0, 2))
    persistent.put_range(1, 0, buffer)
    persistent.get_range(1, 0, 2, buffer)
    buffer += b"resized"


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_ranges_of_any_length(persistent: tmem.Pool, count: int) -> None:
    data = run(0, min(count, 100)) * (count // 100 + 1)
    assert persistent.put_range(1, 37, memoryview(data)[: count * PAGE]).stored == count
    assert persistent.get_range(1, 37, count)[0] == data[: count * PAGE]
