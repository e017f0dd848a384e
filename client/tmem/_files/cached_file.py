"""`open_cached`: a file on slow storage, read through a pool that other threads, processes and hosts share.

What holds, for every read:
- Its bytes are bytes the file had at some moment between its beginning and its end; never older ones. The proof and the
  rule behind it stand in `reader` and `identity`, with the exceptions.
- As with any open file, the handle is of the file that was opened: what is renamed over it later is another file, and
  a file that was deleted goes on until it is closed. Truncated and appended files are read as they are now.
- The store can only make a read faster: whatever it does or fails to do, the answer then comes from the file.
"""

from __future__ import annotations

import io
import os
import threading
from typing import TYPE_CHECKING

from tmem._files.cache_health import CacheHealth
from tmem._files.identity import SettledRule
from tmem._files.pages import FileStore
from tmem._files.reader import DEFAULT_PAGE_SIZE, FileReader
from tmem._files.source import FileSource, Source
from tmem._files.stats import FileCounters, FileStats
from tmem._model import checks
from tmem._model.errors import MismatchError, UnknownPoolError
from tmem._model.sizes import Size, parse_size
from tmem._store import Store, is_local

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from tmem._pool import Pool

_READ_ALL = 1 << 20
_MOST_READAHEAD = 1 << 30


class CachedFile(io.RawIOBase):
    """A read-only binary file, from `open_cached`. Safe to use from many threads, which share one position.

    An `io.RawIOBase`: it can be wrapped in `io.BufferedReader`, and given to whatever reads a binary file. It has no
    `fileno`, as reads of the descriptor would not go through the store. A file that a forked process inherits must not
    be used there; open it again.
    """

    mode = "rb"

    def __init__(self, source: Source, reader: FileReader, counters: FileCounters) -> None:
        self._source = source
        self._reader = reader
        self._counters = counters
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._at = 0

    @property
    def name(self) -> str | bytes:
        """The path it was opened with."""
        return self._source.name

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer only where the file ends. The position stays as it is."""
        self._check_open()
        start = checks.number(offset, "offset", high=2**63 - 1)
        buffer = bytearray(self._clip(start, checks.number(size, "size", high=2**63 - 1)))
        return self._filled(buffer, start)

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill a writable buffer from the position on; the number of bytes, fewer only where the file ends."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        with self._lock:
            count = self._reader.fill(view, self._at)
            self._at += count
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes from the position on, fewer only where the file ends; all of them without a size."""
        self._check_open()
        if size is None or size < 0:
            return self.readall()
        with self._lock:
            found = self._filled(bytearray(self._clip(self._at, size)), self._at)
            self._at += len(found)
        return found

    def readall(self) -> bytes:
        """All bytes from the position to the end."""
        parts = [self.read(_READ_ALL)]
        while len(parts[-1]) == _READ_ALL:
            parts.append(self.read(_READ_ALL))
        return b"".join(parts)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position as in any file; returns the new position."""
        self._check_open()
        with self._lock:
            bases: dict[int, Callable[[], int]] = {
                io.SEEK_SET: lambda: 0,
                io.SEEK_CUR: lambda: self._at,
                io.SEEK_END: self._reader.size,
            }
            if whence not in bases:
                raise ValueError(f"whence is {whence!r}; it must be 0, 1 or 2")
            target = bases[whence]() + offset
            if target < 0:
                raise ValueError(f"the position would be {target}; it cannot be negative")
            self._at = target
        return target

    def tell(self) -> int:
        """The position."""
        self._check_open()
        return self._at

    def readable(self) -> bool:
        """True: the file is readable."""
        self._check_open()
        return True

    def seekable(self) -> bool:
        """True: the file is seekable."""
        self._check_open()
        return True

    def stats(self) -> FileStats:
        """Counters since the file was opened; they remain after it is closed."""
        return self._counters.stats()

    def close(self) -> None:
        """Close the file, after waiting briefly for puts in flight. The store stays open."""
        if not self.closed:
            try:
                # Not there where opening failed.
                if hasattr(self, "_reader"):
                    self._source.close()
                    self._reader.close()
            finally:
                super().close()

    def _clip(self, offset: int, size: int) -> int:
        """No more than there can be to read, so that a generous size costs no memory."""
        return size if size <= _READ_ALL else min(size, max(_READ_ALL, self._reader.size() - offset))

    def _filled(self, buffer: bytearray, offset: int) -> bytes:
        with memoryview(buffer) as view:
            count = self._reader.fill(view, offset)
            return bytes(view[:count])

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if os.getpid() != self._process:
            raise ValueError(f"{self.name!r} was opened before this process was forked: open it again")

    def __repr__(self) -> str:
        return f"<tmem.CachedFile {self.name!r}{' closed' if self.closed else ''}>"


def open_cached(
    path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    *,
    store: Store,
    pool: str = "cache0",
    page_size: Size | None = None,
    readahead: Size = "1MiB",
    volume: str | None = None,
    settle: float = 10.0,
    patience: float = 0.25,
) -> CachedFile:
    """Open a file for reading through a pool of a store. While the store is unavailable, the file is read directly.

    Args:
        path: A regular file.
        store: Any store; close it after the file.
        pool: An ephemeral pool whose gets keep the page (`shared` or `inclusive`), with whatever other settings it has.
            Where there is none of that name, a shared one is made. Whoever may put to the pool decides what is read
            from it: share it with those you would let write the file.
        page_size: Bytes per page, as in `Store.pool`; None is that of the pool, or 16 KiB where it is made.
        readahead: The most bytes to read ahead of each stream of reads; 0 disables it.
        volume: A name for the file system that the file is on, the same on every host that mounts it the same way, and
            never that of another one: these hosts then share its pages. None shares them among the processes of this
            machine, until it is rebooted.
        settle: Seconds for which a file must have rested before pages of it are kept. More than the granularity of the
            file system's times, and more than a single write call takes.
        patience: The longest that a read waits for the store, in seconds.

    Raises:
        OSError: The file cannot be opened.
        MismatchError: The pool exists but cannot be used; the message says why.
        ValueError: An argument is invalid, or the path is not that of a regular file.
    """
    counters = FileCounters()
    ahead = checks.number(parse_size(readahead, "readahead"), "readahead", high=_MOST_READAHEAD)
    wanted = None if page_size is None else parse_size(page_size, "page_size")
    if not isinstance(store, Store):
        raise TypeError(f"store must be a tmem.Store, not {type(store).__name__}")
    if volume is not None and not (isinstance(volume, str) and volume):
        raise ValueError(f"volume is {volume!r}; it must be a name")
    rest, wait = _seconds(settle, "settle"), _seconds(patience, "patience")
    source = FileSource(path, volume)
    try:
        cache = FileStore(
            lambda: _pool(store, pool, wanted),
            patience=wait,
            direct=is_local(store),
            counters=counters,
            health=CacheHealth(),
        )
        settled = SettledRule(rest, source.origin.local)
        reader = FileReader(source, cache, settled=settled, readahead=ahead, counters=counters)
    except BaseException:
        source.close()
        raise
    return CachedFile(source, reader, counters)


def _pool(store: Store, name: str, page_size: int | None) -> Pool:
    try:
        found = store.find_pool(name)
    except UnknownPoolError:
        return store.pool(name, kind="ephemeral", shared=True, page_size=page_size or DEFAULT_PAGE_SIZE)
    settings = found.settings
    if settings.kind != "ephemeral" or not (settings.shared or settings.inclusive):
        raise MismatchError(f"pool {name!r} cannot cache files: it must be ephemeral, and shared or inclusive")
    if page_size not in (None, settings.page_size):
        raise MismatchError(f"pool {name!r} exists with another page_size: {settings.page_size}, not {page_size}")
    return found


def _seconds(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value}; it must be a number of seconds from 0 on")
    return float(value)
