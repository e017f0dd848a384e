"""How many calls of one operation are on their way at once, and how long their next answer is waited for. No socket.

A time-out is of progress: it counts from the answer before, however long the whole takes. Calls share the link, so that
many at once would all be late where one after another is in time: there are few at first, and more while answers are
quick.
"""

from __future__ import annotations

import time

WINDOW = 8
"""Most calls of one operation on their way at once."""


class Pace:
    """Of one operation."""

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

    def left(self) -> float:
        """Seconds that the next answer is still waited for."""
        return max(self._since + self._timeout - time.monotonic(), 0.0)

    def longest(self, before: int) -> float:
        """Seconds after which gRPC may give up a call that has so many before it; `left` is over before."""
        return self._timeout * (before + 2)
