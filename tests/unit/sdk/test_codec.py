"""Both codecs of batches give the same, and neither gives out what does not have its checksum."""

import random

import google_crc32c
import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tmem_engine
from tmem._protocol.codec import Codec, PageByPage, codec

CODECS: list[Codec] = [PageByPage(), tmem_engine]
SIZE = 4096


def pages_of(seed: int, count: int, size: int) -> list[bytes]:
    dice = random.Random(seed)
    kinds = [
        lambda: bytes(size),
        lambda: dice.randbytes(size),
        lambda: dice.randbytes(16) * (size // 16),
        lambda: dice.randbytes(size // 2) + bytes(size // 2),
    ]
    return [dice.choice(kinds)() for _ in range(count)]


def test_the_native_one_is_taken_where_it_is() -> None:
    assert codec() == tmem_engine


@given(st.integers(), st.integers(0, 70), st.sampled_from([4096, 8192, 262144]))
def test_what_one_packs_each_unpacks(seed: int, count: int, size: int) -> None:
    pages = pages_of(seed, count, size)
    checksums = [google_crc32c.value(page) for page in pages]
    for packer in CODECS:
        lengths, blob = packer.pack([memoryview(page) for page in pages], size)
        assert sum(lengths) == len(blob)
        assert all(0 < length <= size for length in lengths)
        for unpacker in CODECS:
            assert list(unpacker.unpack(blob, lengths, checksums, size)) == pages


@pytest.mark.parametrize("each", CODECS, ids=["page by page", "native"])
def test_a_page_that_is_not_what_it_was_is_none(each: Codec) -> None:
    good, bad = bytes(range(256)) * 16, bytes(SIZE)
    blocks = [lz4.block.compress(good, store_size=False), b"\xff" * 20, lz4.block.compress(bad, store_size=False), good]
    sums = [google_crc32c.value(good), google_crc32c.value(good), google_crc32c.value(good), 1]
    lengths = list(map(len, blocks))
    assert list(each.unpack(b"".join(blocks), lengths, sums, SIZE)) == [good, None, None, None]


@pytest.mark.parametrize("each", CODECS, ids=["page by page", "native"])
@pytest.mark.parametrize("size", [SIZE - 8, SIZE + 8, 2 * SIZE])
def test_a_block_of_another_size_is_none(each: Codec, size: int) -> None:
    block = lz4.block.compress(bytes(size), store_size=False)
    for page in (bytes(size), bytes(SIZE)):
        assert list(each.unpack(block, [len(block)], [google_crc32c.value(page)], SIZE)) == [None]


def test_the_native_one_says_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="do not add up to 10 bytes"):
        tmem_engine.unpack(bytes(10), [4, 5], [0, 0], SIZE)
    with pytest.raises(ValueError, match="1 checksums for 2 blocks"):
        tmem_engine.unpack(bytes(10), [5, 5], [0], SIZE)
    with pytest.raises(ValueError, match="is 5 bytes long, not 4096"):
        tmem_engine.pack([bytes(5)], SIZE)
    with pytest.raises(ValueError, match="cannot be 0 bytes long"):
        tmem_engine.pack([], 0)
