"""Whether a cache is worth asking: it is bypassed while it is away, or slower than what it stands in front of.

*Away* after a failure, until a probe succeeds. *Slow* while its calls take on average more than twice as long as reads
of the file, which it is there to save, and longer than `_QUICK`, below which it harms nobody. Probes are made in the
background, ever less often.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from tmem._runtime.breaker import Breaker

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_WAIT = 5.0
_QUICK = 0.0002
_ENOUGH = 8
_TOO_SLOW = 2.0


class _Average:
    """Of recent times, the latest weighted most."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.count = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        if self.count > _ENOUGH:
            # An outlier says little.
            seconds = min(seconds, 4 * self.seconds)
        self.seconds += (seconds - self.seconds) / min(self.count, _ENOUGH)


class CacheHealth:
    """Decides for one store and one file. Safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._store, self._disk = _Average(), _Average()
        self._away = False
        self._breaker = Breaker(clock, _LONGEST_WAIT)

    def admits(self) -> bool:
        """Whether the store may be asked now."""
        return not (self._away or self._slow())

    def probe_due(self) -> bool:
        """Whether the caller is to make a probe now: one at a time, ever less often."""
        with self._lock:
            if self.admits() or not self._breaker.admits():
                return False
            self._breaker.trip()
            return True

    def answered(self, seconds: float) -> None:
        """The store did something in so many seconds."""
        with self._lock:
            was_slow = self._slow()
            self._store.add(seconds)
            self._away = False
            if not self._slow():
                self._breaker.reset()
            elif not was_slow:
                self._breaker.trip()

    def failed(self) -> None:
        """The store did not answer, or not in time."""
        with self._lock:
            if not self._away:
                self._away = True
                self._breaker.trip()

    def disk_read(self, seconds: float) -> None:
        """A reader waited for the file for so many seconds."""
        with self._lock:
            self._disk.add(seconds)

    def _slow(self) -> bool:
        known = min(self._store.count, self._disk.count) >= _ENOUGH
        return known and self._store.seconds > max(_TOO_SLOW * self._disk.seconds, _QUICK)
