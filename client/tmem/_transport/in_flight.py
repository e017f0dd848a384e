"""Limits how many calls of one operation are in flight, and how long to wait for the next answer. No socket.

A time-out limits silence: it counts from the previous answer, however long the whole takes. Calls share the network, so
many at once could all be late where one after another would be in time: few are in flight at first, and more while
answers come quickly.
"""

from __future__ import annotations

import time

WINDOW = 8
"""The most calls of one operation in flight."""


class InFlightLimit:
    """The limit of one operation."""

    def __init__(self, timeout: float) -> None:
        self.window = 2
        self._timeout = timeout
        self._since = time.monotonic()

    def answered(self) -> None:
        """An answer came."""
        now = time.monotonic()
        quick = now - self._since < self._timeout / WINDOW
        self.window = min(self.window + 1, WINDOW) if quick else max(self.window - 1, 1)
        self._since = now

    def remaining(self) -> float:
        """Seconds that the next answer is still waited for."""
        return max(self._since + self._timeout - time.monotonic(), 0.0)

    def deadline(self, before: int) -> float:
        """Seconds after which gRPC may give up a call that has so many before it; `remaining` is over before."""
        return self._timeout * (before + 2)
