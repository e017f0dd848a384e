"""Where a cached file's bytes come from: an open file, read by position.

The descriptor is closed when the last reader that is at it has left, as its number may at once be another file's.
"""

from __future__ import annotations

import os
import stat
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from tmem._files.identity import Identity, Origin, identify, origin

if TYPE_CHECKING:
    from collections.abc import Iterator


class Source(Protocol):
    """A file that may change at any time. Safe to use from many threads; `ValueError` once it is closed."""

    @property
    def name(self) -> str | bytes: ...
    @property
    def origin(self) -> Origin: ...
    def identify(self) -> Identity: ...
    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` on; fewer bytes only where the file ends."""

    def close(self) -> None: ...


class FileSource:
    """A regular file of the operating system. Whatever becomes of its name, this goes on with the file it was."""

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes], volume: str | None) -> None:
        self.name = os.fspath(path)
        # Without O_NONBLOCK opening a FIFO would wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        self._fd = os.open(path, flags)
        self._lock = threading.Lock()
        self._readers = 0
        self._closed = False
        try:
            mode = os.fstat(self._fd).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(21, os.strerror(21), self.name)
            if not stat.S_ISREG(mode):
                raise ValueError(f"{os.fsdecode(self.name)!r} is not a regular file")
            self.origin = origin(self._fd, volume)
        except BaseException:
            os.close(self._fd)
            raise

    def identify(self) -> Identity:
        with self._open() as fd:
            return identify(fd)

    def read_into(self, view: memoryview, offset: int) -> int:
        done = 0
        with self._open() as fd:
            while done < len(view):
                count = self._read_once(fd, view[done:], offset + done)
                if not count:
                    break
                done += count
        return done

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            last = not self._readers
        if last:
            os.close(self._fd)

    def _read_once(self, fd: int, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(fd, [view], offset)
        with self._lock:
            os.lseek(fd, offset, os.SEEK_SET)
            found = os.read(fd, len(view))
        view[: len(found)] = found
        return len(found)

    @contextmanager
    def _open(self) -> Iterator[int]:
        with self._lock:
            if self._closed:
                raise ValueError("I/O operation on closed file")
            self._readers += 1
        try:
            yield self._fd
        finally:
            with self._lock:
                self._readers -= 1
                last = self._closed and not self._readers
            if last:
                os.close(self._fd)
