"""What a call costs, to tell those that the event loop makes itself from those that threads make.

The unit is a byte of a page that LZ4 decompresses: 256 pages of 4096 bytes, or 1 MiB, take it about half a
millisecond. What a thread costs besides (waking it, taking the GIL back) is as much as a call of half that size, and
more where processors are few; what a call on the loop costs the others is that they wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tmemd.store.api import Batch, StorePool

SHORT_FLUSH = 1024
"""Indices of a flush that the event loop makes itself."""
_COMPRESS = 4.0
_COMPRESS_DENSER = {"lz4hc": 60.0, "zstd": 8.0}
_DECOMPRESS = 1.0
_DECOMPRESS_ZSTD = 3.0
_COPY = 0.25


def of_put(batch: Batch, pool: StorePool) -> float:
    """Pages are compressed here; LZ4 blocks are decompressed to verify them, and compressed anew if denser."""
    size = len(batch.indices) * pool.page_size
    if denser := _COMPRESS_DENSER.get(pool.family):
        return size * denser
    return size * (_COMPRESS if batch.lengths is None else _DECOMPRESS)


def of_get(count: int, pool: StorePool, lz4: bool) -> float:
    """Blocks that the client can take are copied; all else is decompressed."""
    size = count * pool.page_size
    if pool.family == "zstd":
        return size * _DECOMPRESS_ZSTD
    return size * (_COPY if lz4 else _DECOMPRESS)
