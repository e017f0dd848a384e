"""Standard streams that never block the process.

Lines go through a bounded queue to a background thread: a pipe that nobody reads blocks that thread alone. Lines that
find the queue full are dropped and counted; the count is written as soon as writing resumes.

C libraries write to descriptor 2 themselves and would block there: `CapturedStderr` puts a pipe in its place.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_BYTES = 1 << 20
_LONGEST = 8 << 10
_GIVE_UP = 1.0
"""Seconds without progress after which what is still queued at the end is given up."""


class BackgroundWriter:
    """Writes to a descriptor from a background thread. `write` never blocks."""

    def __init__(self, descriptor: int, dropped: Callable[[int], bytes] | None = None) -> None:
        """`dropped` makes the line that reports dropped lines."""
        self.descriptor = descriptor
        self._dropped_line = dropped
        self._news = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._written = 0
        threading.Thread(target=self._run, name="tmemd-writer", daemon=True).start()

    def write(self, line: bytes) -> None:
        with self._news:
            if self._bytes + len(line) > MOST_BYTES:
                self._dropped += 1
                return
            self._queue.append(line)
            self._bytes += len(line)
            self._news.notify_all()

    def flush(self) -> None:
        """Wait until everything is written, as long as there is progress."""
        with self._news:
            while self._bytes:
                before = self._written
                self._news.wait(_GIVE_UP)
                if self._written == before:
                    return

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._queue)
                line = self._queue.popleft()
            self._put(line)
            with self._news:
                self._bytes -= len(line)
                self._written += 1
                dropped, self._dropped = self._dropped, 0
                self._news.notify_all()
            if dropped and self._dropped_line is not None:
                self._put(self._dropped_line(dropped))

    def _put(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self.descriptor, line) :]
            except BlockingIOError:
                select.select((), (self.descriptor,), ())
            except OSError:
                return  # nobody will read it


class CapturedStderr:
    """Captures descriptor 2: a thread hands its lines to `heard`. `outlet` writes to the original descriptor."""

    def __init__(self, heard: Callable[[str], None], dropped: Callable[[int], bytes]) -> None:
        self.outlet = BackgroundWriter(fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3), dropped)
        self._heard = heard
        self._read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(write, False)
        os.dup2(write, 2)
        os.close(write)
        self._thread = threading.Thread(target=self._run, name="tmemd-stderr", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what was captured, and restore descriptor 2."""
        os.dup2(self.outlet.descriptor, 2)
        self._thread.join(_GIVE_UP)
        self.outlet.flush()

    def _run(self) -> None:
        rest = b""
        while came := os.read(self._read, _LONGEST):
            *lines, rest = (rest + came).split(b"\n")
            if len(rest) > _LONGEST:
                lines, rest = [*lines, rest], b""
            for line in lines:
                with suppress(Exception):
                    self._heard(line.decode(errors="replace"))
        if rest:
            self._heard(rest.decode(errors="replace"))
