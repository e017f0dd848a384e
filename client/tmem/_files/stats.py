"""What a cached file has counted."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class FileStats:
    """What one `CachedFile` has counted since it was opened. A page is one of the pool's.

    Attributes:
        reads: Reads of the caller; reading a long file to its end is several.
        bytes_read: Bytes they were given.
        pages_hit: Pages that a read found in the store, or in this process from an earlier read or read-ahead.
        pages_missed: Pages that a read had to wait for the file for.
        bytes_saved: Bytes of the pages that came from the store instead of the file.
        disk_reads: Reads of the file itself, read-ahead included.
        disk_bytes: Bytes they read.
        bypassed: Reads that went to the file alone: it changed too lately, or the store was away or slower.
        stale_identities: Times the file was seen to have changed, and what was known of it was dropped.
        readahead_pages: Pages fetched before they were asked for, from the store or the file.
        readahead_used: Those that were asked for later.
        readahead_wasted: Those that were dropped unasked for.
        puts: Pages the store took.
        puts_refused: Pages the store refused.
        puts_dropped: Pages not offered, because the store was away or too slow to keep up.
        store_failures: Calls to the store that failed or took longer than `patience`.
    """

    reads: int = 0
    bytes_read: int = 0
    pages_hit: int = 0
    pages_missed: int = 0
    bytes_saved: int = 0
    disk_reads: int = 0
    disk_bytes: int = 0
    bypassed: int = 0
    stale_identities: int = 0
    readahead_pages: int = 0
    readahead_used: int = 0
    readahead_wasted: int = 0
    puts: int = 0
    puts_refused: int = 0
    puts_dropped: int = 0
    store_failures: int = 0


class FileCounters:
    """The counts behind `FileStats`. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = asdict(FileStats())

    def add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def stats(self) -> FileStats:
        with self._lock:
            return FileStats(**self._counts)
