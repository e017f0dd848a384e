"""Standard streams that never hold the process up.

What is written goes to a queue of bounded length, and a thread of its own writes it: a pipe that nobody reads holds up
that thread alone. What finds the queue full is dropped and counted; the count is told as soon as writing goes on.

Libraries in C write to descriptor 2 by themselves, and would wait there: `CapturedStderr` puts a pipe in its place.
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
    """A descriptor that is written by a thread of its own. `write` never waits."""

    def __init__(self, descriptor: int, dropped: Callable[[int], bytes] | None = None) -> None:
        """`dropped` makes the line that says how many were."""
        self.descriptor = descriptor
        self._dropped_line = dropped
        self._news = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._written = 0
        threading.Thread(target=self._go_on, name="tmemd-outlet", daemon=True).start()

    def write(self, line: bytes) -> None:
        with self._news:
            if self._bytes + len(line) > MOST_BYTES:
                self._dropped += 1
                return
            self._queue.append(line)
            self._bytes += len(line)
            self._news.notify_all()

    def flush(self) -> None:
        """Wait until all is written, for as long as writing goes on."""
        with self._news:
            while self._bytes:
                before = self._written
                self._news.wait(_GIVE_UP)
                if self._written == before:
                    return

    def _go_on(self) -> None:
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
    """Descriptor 2, whose lines are given to `heard` from a thread; `outlet` writes what it was before."""

    def __init__(self, heard: Callable[[str], None], dropped: Callable[[int], bytes]) -> None:
        self.outlet = BackgroundWriter(fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3), dropped)
        self._heard = heard
        self._read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(write, False)
        os.dup2(write, 2)
        os.close(write)
        self._thread = threading.Thread(target=self._go_on, name="tmemd-stderr", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Have descriptor 2 as it was, once all that came is written."""
        os.dup2(self.outlet.descriptor, 2)
        self._thread.join(_GIVE_UP)
        self.outlet.flush()

    def _go_on(self) -> None:
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
