"""The log: a line an event, on standard error."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("tmemd")


def log_to_stderr(process: str = "tmemd") -> None:
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s {process}: %(message)s")


class Seldom:
    """A warning that may be due very often: written at most once in so many seconds, with how often it was due.

    What it is about this time is printable text of ours, not a client's.
    """

    def __init__(self, message: str, every: float = 10.0) -> None:
        self._message = message
        self._every = every
        self._due = 0
        self._written_at = -every

    def warn(self, about: str = "") -> None:
        self._due += 1
        now = time.monotonic()
        if now - self._written_at >= self._every:
            times = f" ({self._due} times since this was said last)" if self._due > 1 else ""
            log.warning("%s%s%s", self._message, f": {about}" if about else "", times)
            self._written_at, self._due = now, 0
