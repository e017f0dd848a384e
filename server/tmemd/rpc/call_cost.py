"""Estimates what a call costs, to decide whether it runs on the event loop or in a thread.

The unit is one byte of a page decompressed by LZ4: 256 pages of 4096 bytes, or 1 MiB, take about half a millisecond. A
thread adds the cost of a call of half that size (waking it, retaking the GIL), more on few processors; a call on the
loop makes all others wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tmemd.store.api import Batch, StorePool

SHORT_FLUSH = 1024
"""Most indices of a flush that runs on the event loop."""
_COMPRESS = 4.0
_COMPRESS_DENSER = {"lz4hc": 60.0, "zstd": 8.0}
_DECOMPRESS = 1.0
_DECOMPRESS_ZSTD = 3.0
_COPY = 0.25


def of_put(batch: Batch, pool: StorePool) -> float:
    """Pages are compressed; LZ4 blocks are decompressed to verify them, and recompressed for a denser codec."""
    size = len(batch.indices) * pool.page_size
    if denser := _COMPRESS_DENSER.get(pool.family):
        return size * denser
    return size * (_COMPRESS if batch.lengths is None else _DECOMPRESS)


def of_get(count: int, pool: StorePool, lz4: bool) -> float:
    """Blocks that the client accepts are copied; all others are decompressed."""
    size = count * pool.page_size
    if pool.family == "zstd":
        return size * _DECOMPRESS_ZSTD
    return size * (_COPY if lz4 else _DECOMPRESS)
