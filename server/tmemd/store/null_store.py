"""A store that keeps no pages, to measure everything before it: gRPC, messages, sessions.

Every put is stored, unseen; every get hits a page of zeros; `has` finds every page, a flush none. Pools have only names
and settings, and all statistics are 0.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import google_crc32c
import lz4.block

from tmem_proto.limits import PAGE_SIZES
from tmemd.base.errors import ConfigError, ExhaustedError, MismatchError, PoolExistsError, UnknownPoolError
from tmemd.store.api import REFUSALS, STORED, Fetched, PoolSettings, StoreHealth
from tmemd.store.executor import StoreExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tmemd.config.settings import Config
    from tmemd.store.api import Batch, BlockServer, Scanned

MOST_POOLS = 1024
_HELD = (
    *("pages", "payload_bytes", "footprint_frames", "footprint_bytes", "same_filled_pages", "raw_pages"),
    "promised_bytes",
)
_PUT = ("puts_stored", "puts_replaced", "puts_old_flushed")
_REFUSED = tuple(f"refused_{reason}" for reason in REFUSALS)
_GOT = ("gets_hit", "gets_miss", "gets_corrupt")
_FLUSHED = ("flushes", "flushed_pages", "flushed_objects")
_EVICTED = ("evicted_pages", "evicted_frames", "evicted_memory", "evicted_quota", "evicted_relinquish")
_COMPACTED = ("compactions", "moved_pages", "compacted_frames")
_POOL_STATS = _HELD + _PUT + _REFUSED + _GOT + _FLUSHED + _EVICTED + _COMPACTED
_USED = ("used_bytes", "metadata_bytes", "table_bytes", "slot_header_bytes", "reserve_bytes")
_WHOLE = ("objects", "shards", "full", "limit_hits", "corrupt_pages", "generation")
_REPAIRED = ("recoveries", "slots_replayed", "slots_dropped", "lock_waits", "lock_recoveries")
_STORE_STATS = _USED + _WHOLE + _REPAIRED + _POOL_STATS


class NullPool:
    """A pool without pages."""

    def __init__(self, number: int, name: str, settings: PoolSettings) -> None:
        self.id = number
        self.name = name
        self.owner = settings.owner
        self.page_size = settings.page_size
        self.keeps = settings.keeps
        self.family = settings.family
        self._settings = settings
        self._frozen = False
        self._destroyed = False
        page = bytes(settings.page_size)
        self._block: bytes = lz4.block.compress(page, store_size=False)
        self._checksum: int = google_crc32c.value(page)

    def put(self, batch: Batch) -> bytes:
        self._check_alive()
        return bytes([STORED[0]]) * len(batch.indices)

    def fetch(self, oid: bytes, indices: Sequence[int], lz4: bool) -> Fetched:  # noqa: ARG002
        self._check_alive()
        count = len(indices)
        pages = self._block * count if lz4 else bytes(self.page_size * count)
        length = len(self._block) if lz4 else self.page_size
        return Fetched(b"\1" * count, [length] * count, [self._checksum] * count, [1] * count, pages)

    def flush_if(self, oid: bytes, stamps: dict[int, int]) -> int:  # noqa: ARG002
        return self._nothing()

    def scan(self, cursor: bytes, limit: int) -> tuple[Scanned, bytes]:  # noqa: ARG002
        self._check_alive()
        if cursor:
            raise ValueError(f"a scan's cursor is not {len(cursor)} bytes")
        return [], b""

    def has(self, oid: bytes, first: int, count: int) -> bytes:  # noqa: ARG002
        self._check_alive()
        return b"\1" * count

    def flush(self, oid: bytes, indices: Sequence[int]) -> int:  # noqa: ARG002
        return self._nothing()

    def flush_object(self, oid: bytes) -> int:  # noqa: ARG002
        return self._nothing()

    def destroy(self) -> int:
        self._check_alive()
        self._destroyed = True
        return 0

    @property
    def destroyed(self) -> bool:
        return self._destroyed

    def freeze(self) -> None:
        self._check_alive()
        self._frozen = True

    def thaw(self) -> None:
        self._check_alive()
        self._frozen = False

    def frozen(self) -> bool:
        return self._frozen

    def set_quota(self, size: int) -> None:
        self._check_alive()
        self._settings = dataclasses.replace(self._settings, quota=size)

    def set_weight(self, weight: int) -> None:
        self._check_alive()
        if weight < 1:
            raise ValueError("weight must be at least 1")
        self._settings = dataclasses.replace(self._settings, weight=weight)

    def reserve(self) -> int:
        self._check_alive()
        return 0

    def set_reserve(self, size: int) -> None:
        if size:
            raise ExhaustedError("the null store cannot reserve memory")

    def settings(self) -> PoolSettings:
        return self._settings

    def stats(self) -> dict[str, Any]:
        self._check_alive()
        return {**dict.fromkeys(_POOL_STATS, 0), "size_histogram": [0] * 64, "classes": []}

    def _nothing(self) -> int:
        self._check_alive()
        return 0

    def _check_alive(self) -> None:
        if self._destroyed:
            raise UnknownPoolError(self.name)


class NullStore(StoreExecutor):
    """A store of pools without pages."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.threads, config.max_waiting, config.max_client_waiting)
        self._memory = config.memory
        self._accept_threshold = config.accept_threshold
        self._ids = itertools.count(1)
        self._pools: dict[str, NullPool] = {}

    def open_pool(self, name: str, settings: PoolSettings) -> NullPool:
        pool = self._alive().get(name)
        if pool is None:
            return self._create(name, settings)
        if pool.settings() != settings:
            raise MismatchError(f"pool {name!r} exists with other settings")
        return pool

    def find_pool(self, name: str) -> NullPool:
        pool = self._alive().get(name)
        if pool is None:
            raise UnknownPoolError(name)
        return pool

    def create_pool(self, name: str, settings: PoolSettings) -> NullPool:
        if name in self._alive():
            raise PoolExistsError(name)
        return self._create(name, settings)

    def pools(self) -> list[NullPool]:
        return list(self._alive().values())

    def block_server(self, *_: object) -> BlockServer:
        raise ConfigError("the null store serves no NBD")

    def never_wait_for_locks(self) -> None:
        """There are no locks."""

    def wait_for_lock(self, lock: int) -> None:
        """There are no locks."""

    def health(self) -> StoreHealth:
        return StoreHealth({}, "")

    def info(self) -> dict[str, Any]:
        return {"memory": self._memory, "shards": 0, "arena": None, "accept_threshold": self._accept_threshold}

    def stats(self) -> dict[str, int]:
        zeros = dict.fromkeys(_STORE_STATS, 0)
        return {**zeros, "memory_bytes": self._memory, "pools": len(self._alive())}

    def compact(self) -> dict[str, int]:
        return {"moved_pages": 0, "freed_bytes": 0}

    def relinquish(self, size: int) -> int:  # noqa: ARG002
        return 0

    def resize(self, memory: int) -> None:
        if memory < self._memory:
            raise ValueError(f"memory is {self._memory} bytes; it can only be raised")
        self._memory = memory

    def check(self) -> list[str]:
        return []

    def _alive(self) -> dict[str, NullPool]:
        return {name: pool for name, pool in list(self._pools.items()) if not pool.destroyed}

    def _create(self, name: str, settings: PoolSettings) -> NullPool:
        _validate(name, settings)
        self._pools = self._alive()
        if len(self._pools) >= MOST_POOLS:
            raise ExhaustedError(f"there are {MOST_POOLS} pools, which is the limit")
        return self._pools.setdefault(name, NullPool(next(self._ids), name, settings))


def _validate(name: str, settings: PoolSettings) -> None:
    if not 1 <= len(name.encode()) <= 64:
        raise ValueError("a pool's name has 1 to 64 bytes")
    if settings.kind not in ("persistent", "ephemeral"):
        raise ValueError(f"kind is {settings.kind!r}; it must be 'persistent' or 'ephemeral'")
    if settings.page_size not in PAGE_SIZES:
        raise ValueError(f"page_size is {settings.page_size}; it must be one of {', '.join(map(str, PAGE_SIZES))}")
