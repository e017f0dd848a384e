"""Cleancache: the kernel's operations on clean pages of files, by their names and meanings, over any store.

One ephemeral pool per file system, one object per file. A key is 24 bytes made from an inode number or file handle that
is never used for another file. All is best effort: a page may be gone at any time, and a put may come to nothing.
Where a server that is away is not to be an error either, connect with `on_unavailable="miss"`.
"""

from __future__ import annotations

import itertools
import uuid
from typing import TYPE_CHECKING

from tmem._model.checks import MAX_INDEX

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from tmem._model.sizes import Size
    from tmem._pool import Pool
    from tmem._store import Store

_KEY_BYTES = 24


class Cleancache:
    """File systems in a store. Safe to use from many threads.

    Args:
        store: Where the pools are made.
        codec: Of the pools, as in `Store.pool`.
    """

    def __init__(self, store: Store, *, codec: str = "lz4") -> None:
        self._store = store
        self._codec = codec
        self._pools: dict[int, Pool] = {}
        self._ids = itertools.count()

    def init_fs(self, page_size: Size = 4096) -> int:
        """Register a file system that only this client uses. Returns its id for the other calls."""
        pool = self._store.pool(
            f"cleancache-{uuid.uuid4().hex}", kind="ephemeral", page_size=page_size, codec=self._codec
        )
        return self._add(pool)

    def init_shared_fs(self, fs_uuid: bytes | uuid.UUID, page_size: Size = 4096) -> int:
        """Register a file system that is shared by all clients that use the same UUID."""
        name = fs_uuid if isinstance(fs_uuid, uuid.UUID) else uuid.UUID(bytes=fs_uuid)
        pool = self._store.pool(
            f"cleancache-shared-{name.hex}", kind="ephemeral", page_size=page_size, shared=True, codec=self._codec
        )
        return self._add(pool)

    def put_page(self, fs: int, key: bytes, index: int, page: Buffer) -> None:
        """Offer a clean page, as it leaves the page cache. An index of more than 32 bits is ignored."""
        pool = self._pool(fs, key)
        if _fits(index):
            pool.put(key, {index: page})

    def get_page(self, fs: int, key: bytes, index: int) -> bytes | None:
        """The page, if the store still has it. For a file system that is not shared, this takes it out."""
        pool = self._pool(fs, key)
        return pool.get(key, [index]).get(index) if _fits(index) else None

    def invalidate_page(self, fs: int, key: bytes, index: int) -> None:
        """The page changed: no older version is returned from now on."""
        pool = self._pool(fs, key)
        if _fits(index):
            pool.flush(key, [index])

    def invalidate_inode(self, fs: int, key: bytes) -> None:
        """The file was truncated or removed: none of its pages is returned from now on."""
        self._pool(fs, key).flush_object(key)

    def invalidate_fs(self, fs: int) -> None:
        """The file system was unmounted. A private one's pool is destroyed; a shared one's stays."""
        pool = self._pools.pop(fs, None)
        if pool is None:
            raise ValueError(f"file system {fs} is not initialized, or has been invalidated")
        if not pool.settings.shared:
            pool.destroy()

    def _add(self, pool: Pool) -> int:
        fs = next(self._ids)
        self._pools[fs] = pool
        return fs

    def _pool(self, fs: int, key: bytes) -> Pool:
        if not isinstance(key, bytes):
            raise TypeError(f"key must be bytes, not {type(key).__name__}")
        if len(key) != _KEY_BYTES:
            raise ValueError(f"key is {len(key)} bytes long; it must be {_KEY_BYTES}")
        pool = self._pools.get(fs)
        if pool is None:
            raise ValueError(f"file system {fs} is not initialized, or has been invalidated")
        return pool


def _fits(index: int) -> bool:
    """Whether a page number is one that the store has room for."""
    return 0 <= index <= MAX_INDEX
