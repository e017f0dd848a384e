"""Calls and streams under way, of each client: one that floods the daemon leaves room for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from tmemd.errors import LimitError
from tmemd.logs import Seldom

if TYPE_CHECKING:
    from types import TracebackType


class Flights:
    """All calls under way. Lives on the event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.by_client: dict[str, _Flying] = {}

    def of(self, client: str) -> _Flying:
        """What a call of a client is within, while it is under way. To enter raises `LimitError` where many are."""
        return self.by_client.get(client) or _Flying(self, client)


class _Flying:
    """Those of one client; there while there are any."""

    __slots__ = ("_all", "_client", "_count", "_limit")

    def __init__(self, all_flights: Flights, client: str) -> None:
        self._all = all_flights
        self._client = client
        self._count = 0
        self._limit = Seldom(f"client {client!r} has {all_flights.most} calls under way, which is the limit")

    def __enter__(self) -> Self:
        if self._count >= self._all.most:
            self._limit.warn()
            raise LimitError(f"{self._count} calls of client {self._client!r} are under way, which is the limit")
        if not self._count:
            self._all.by_client[self._client] = self
        self._count += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count -= 1
        if not self._count:
            del self._all.by_client[self._client]
