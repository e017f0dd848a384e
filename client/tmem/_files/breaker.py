"""Whether a cache is worth asking: it is gone around while it is away, or slower than what it stands in front of.

*Away* after a failure, until a probe succeeds. *Slow* while its calls take on average more than twice as long as reads
of the file do, as it spares the storage after all, and longer than `_QUICK`, below which it harms nobody. Probes are
made off the way of reads, ever less often.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 5.0
_QUICK = 0.0002
_ENOUGH = 8
_TOO_SLOW = 2.0


class _Average:
    """Of the latest times, the newest weighing most."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.count = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        if self.count > _ENOUGH:
            # One that was held up by something else says little.
            seconds = min(seconds, 4 * self.seconds)
        self.seconds += (seconds - self.seconds) / min(self.count, _ENOUGH)


class Guard:
    """Decides for one store and one file. Safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._store, self._disk = _Average(), _Average()
        self._away = False
        self._delay = _SHORTEST_WAIT
        self._probe_at = 0.0

    def admits(self) -> bool:
        """Whether the store may be asked now."""
        return not (self._away or self._slow())

    def probe_due(self) -> bool:
        """Whether a probe is to be made now, of which there is one at a time and ever fewer."""
        with self._lock:
            now = self._clock()
            if not (self._away or self._slow()) or now < self._probe_at:
                return False
            self._wait(now)
            return True

    def answered(self, seconds: float) -> None:
        """The store did something in so many seconds."""
        with self._lock:
            was = self._slow()
            self._store.add(seconds)
            self._away = False
            if not self._slow():
                self._delay = _SHORTEST_WAIT
            elif not was:
                self._probe_at = self._clock() + self._delay

    def failed(self) -> None:
        """The store did not answer, or not in time."""
        with self._lock:
            if not self._away:
                self._away = True
                self._wait(self._clock())

    def disk_read(self, seconds: float) -> None:
        """A reader waited for the file for so many seconds."""
        with self._lock:
            self._disk.add(seconds)

    def _slow(self) -> bool:
        known = min(self._store.count, self._disk.count) >= _ENOUGH
        return known and self._store.seconds > max(_TOO_SLOW * self._disk.seconds, _QUICK)

    def _wait(self, now: float) -> None:
        self._probe_at = now + self._delay
        self._delay = min(self._delay * 2, _LONGEST_WAIT)
