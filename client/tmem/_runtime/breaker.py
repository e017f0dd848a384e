"""A circuit breaker: whoever finds that something does not answer spares the others the wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tmem._runtime import forks

if TYPE_CHECKING:
    from collections.abc import Callable

SHORTEST_WAIT, LONGEST_WAIT = 0.05, 2.0


class Breaker:
    """Closed while calls succeed. Once tripped it admits one trial at a time, each after a longer wait.

    Safe to use from many threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, longest_wait: float = LONGEST_WAIT) -> None:
        self._clock = clock
        self._longest_wait = longest_wait
        self._lock = forks.lock()
        self._wait = 0.0
        self._try_at = 0.0

    def admits(self) -> bool:
        """Whether a call may be tried now."""
        with self._lock:
            if not self._wait:
                return True
            if self._clock() < self._try_at:
                return False
            self._try_at = self._clock() + self._wait
            return True

    def trip(self) -> None:
        """A call failed: open the breaker, or keep it open for twice as long as before."""
        with self._lock:
            self._wait = min(max(self._wait * 2, SHORTEST_WAIT), self._longest_wait)
            self._try_at = self._clock() + self._wait

    def reset(self) -> None:
        """A call succeeded: close the breaker."""
        if self._wait:
            with self._lock:
                self._wait = 0.0
