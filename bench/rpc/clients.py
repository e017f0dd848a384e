"""Synchronous clients of tmemd and of its peers, with one face: pages by number, in batches or in one large call.

The peers' clients compress and decompress page by page with the `lz4` package, as their users do, and keep a page that
does not shrink as it is. Ours does so a batch at a time in its native part. Their keys are short. They have no
checksums; ours verifies each page.
"""

from __future__ import annotations

from typing import Any, Protocol

import lz4.block

import tmem
from bench.lib.corpus import PAGE

BATCH = 64
_OBJECT = 1


class Client(Protocol):
    """One connection."""

    name: str

    def put(self, pages: dict[int, bytes]) -> bool:
        """Store a batch; whether all of it was, as the server says."""

    def get(self, numbers: list[int]) -> dict[int, bytes]:
        """Pages of a batch."""

    def close(self) -> None:
        """Let go of the connection."""


class Bulk(Client, Protocol):
    """A client that can keep several batches of one call under way."""

    def put_large(self, first: int, data: bytes) -> bool:
        """Store neighbouring pages."""

    def get_large(self, first: int, count: int) -> bytes | bytearray:
        """Neighbouring pages in one piece."""


class Tmem:
    """The SDK, with LZ4 on the wire, and a persistent pool."""

    name = "tmem"

    def __init__(self, address: str, codec: str = "lz4") -> None:
        self._store = tmem.connect(address)
        self._pool = self._store.pool("bench", kind="persistent", codec=codec)

    def put(self, pages: dict[int, bytes]) -> bool:
        return all(outcome.stored for outcome in self._pool.put(_OBJECT, pages).values())

    def get(self, numbers: list[int]) -> dict[int, bytes]:
        return self._pool.get(_OBJECT, numbers)

    def put_large(self, first: int, data: bytes) -> bool:
        return all(self._pool.put_range(_OBJECT, first, data))

    def get_large(self, first: int, count: int) -> bytes | bytearray:
        return self._pool.get_range(_OBJECT, first, count)[0]

    def close(self) -> None:
        self._store.close()


class RedisLz4:
    """redis-py: `mset` and `mget`; a large call is a pipeline of them."""

    name = "redis + lz4"

    def __init__(self, port: int) -> None:
        import redis

        self._redis: Any = redis.Redis("127.0.0.1", port)

    def put(self, pages: dict[int, bytes]) -> bool:
        return bool(self._redis.mset({number: pack(page) for number, page in pages.items()}))

    def get(self, numbers: list[int]) -> dict[int, bytes]:
        blocks = self._redis.mget(numbers)
        return {number: unpack(block) for number, block in zip(numbers, blocks, strict=True) if block is not None}

    def put_large(self, first: int, data: bytes) -> bool:
        view, pipeline = memoryview(data), self._redis.pipeline(transaction=False)
        for start in range(0, len(data) // PAGE, BATCH):
            batch = range(start, min(start + BATCH, len(data) // PAGE))
            pipeline.mset({first + at: pack(view[at * PAGE : (at + 1) * PAGE]) for at in batch})
        return all(pipeline.execute())

    def get_large(self, first: int, count: int) -> bytes | bytearray:
        pipeline = self._redis.pipeline(transaction=False)
        for start in range(first, first + count, BATCH):
            pipeline.mget(list(range(start, min(start + BATCH, first + count))))
        return b"".join(unpack(block) for blocks in pipeline.execute() for block in blocks)

    def close(self) -> None:
        self._redis.close()


class MemcachedLz4:
    """pymemcache: `set_many`, acknowledged, and `get_many`."""

    name = "memcached + lz4"

    def __init__(self, port: int) -> None:
        from pymemcache.client.base import Client as Pymemcache

        self._memcached: Any = Pymemcache(("127.0.0.1", port), no_delay=True)

    def put(self, pages: dict[int, bytes]) -> bool:
        return not self._memcached.set_many({str(number): pack(page) for number, page in pages.items()}, noreply=False)

    def get(self, numbers: list[int]) -> dict[int, bytes]:
        blocks = self._memcached.get_many([str(number) for number in numbers])
        return {int(key): unpack(block) for key, block in blocks.items()}

    def get_block(self, number: int) -> bytes | None:
        """One page as the server has it, not decompressed."""
        block: bytes | None = self._memcached.get(str(number))
        return block

    def close(self) -> None:
        self._memcached.close()


def pack(page: bytes | memoryview) -> bytes:
    """A page as a peer's client stores it."""
    block: bytes = lz4.block.compress(page, store_size=False)
    return block if len(block) < PAGE else bytes(page)


def unpack(block: bytes) -> bytes:
    """The page that `pack` was given."""
    if len(block) == PAGE:
        return block
    page: bytes = lz4.block.decompress(block, uncompressed_size=PAGE)
    return page
