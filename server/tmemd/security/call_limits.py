"""Limits calls and streams in flight per client: one that floods the daemon leaves room for the others."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tmemd.base.errors import LimitError
from tmemd.base.logs import RateLimitedWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_WARNINGS = 64


class CallLimits:
    """Calls in flight, by client. Lives on the event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.by_client: dict[str, int] = {}
        self._warnings: dict[str, RateLimitedWarning] = {}

    def begin(self, client: str) -> None:
        """Count one more, to be ended unless this raises.

        Raises:
            LimitError: The client has as many in flight as it may.
        """
        count = self.by_client.get(client, 0)
        if count >= self.most:
            self._warn(client)
            raise LimitError(f"{count} calls of client {client!r} are in flight, which is the limit")
        self.by_client[client] = count + 1

    def end(self, client: str) -> None:
        count = self.by_client[client] - 1
        if count:
            self.by_client[client] = count
        else:
            del self.by_client[client]

    @contextmanager
    def of(self, client: str) -> Iterator[None]:
        """Count one call or stream while it is in flight."""
        self.begin(client)
        try:
            yield
        finally:
            self.end(client)

    def _warn(self, client: str) -> None:
        if client not in self._warnings:
            if len(self._warnings) >= _MOST_WARNINGS:
                self._warnings.clear()
            text = f"client {client!r} has {self.most} calls in flight, which is the limit"
            self._warnings[client] = RateLimitedWarning(text)
        self._warnings[client].warn()
