"""Sessions: who has opened which pool, in which epoch, and which exclusive gets await their acknowledgement.

Lives on the event loop: no locks. Ids are random, so that a message to an earlier run of the daemon finds no session.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tmemd.errors import LimitError, UnknownSessionError

if TYPE_CHECKING:
    from tmemd.config import Config
    from tmemd.counts import Counts
    from tmemd.identity import Client
    from tmemd.surface import StorePool


@dataclass(frozen=True, slots=True)
class Taken:
    """The pages of an exclusive get, by index with the stamp of each: still in the pool until acknowledged."""

    oid: bytes
    stamps: dict[int, int]


class Session:
    """One client's use of a pool."""

    __slots__ = ("_most", "_numbers", "_running", "_taken", "client", "epoch", "id", "pool", "used_at")

    def __init__(self, client: Client, pool: StorePool, most_unacknowledged: int) -> None:
        self.id = secrets.randbits(63) or 1
        self.epoch = 1
        self.client = client.name
        self.pool = pool
        self.used_at = time.monotonic()
        self._most = most_unacknowledged
        self._numbers = itertools.count(1)
        self._taken: OrderedDict[int, Taken] = OrderedDict()
        self._running: set[asyncio.Future[Any]] = set()

    def is_stale(self, epoch: int) -> bool:
        """Whether a mutation of `epoch` came too late."""
        if not 0 < epoch <= self.epoch:
            raise ValueError(f"epoch is {epoch}; the session's newest is {self.epoch}")
        return epoch < self.epoch

    def mutating(self, work: asyncio.Future[Any]) -> None:
        """Note a mutation at work in a thread."""
        self._running.add(work)
        work.add_done_callback(self._running.discard)

    async def new_epoch(self) -> int:
        """Begin an epoch; done when no mutation of an earlier one is at work any more."""
        self.epoch += 1
        epoch, running = self.epoch, tuple(self._running)
        if running:
            await asyncio.wait(running)
        return epoch

    def take(self, taken: Taken) -> int:
        """Note an exclusive get; its number. Where too many wait the oldest is forgotten, and its pages stay."""
        number = next(self._numbers)
        self._taken[number] = taken
        if len(self._taken) > self._most:
            self._taken.popitem(last=False)
        return number

    def taken(self, number: int) -> Taken | None:
        """What awaits acknowledgement under a number, now no more."""
        return self._taken.pop(number, None)


class Sessions:
    """All sessions, the longest unused first."""

    def __init__(self, config: Config, counts: Counts) -> None:
        self._config = config
        self._counts = counts
        self._by_id: OrderedDict[int, Session] = OrderedDict()

    def open(self, client: Client, pool: StorePool) -> Session:
        self._end_idle()
        if len(self._by_id) >= self._config.max_sessions:
            raise LimitError(f"{len(self._by_id)} sessions are open, which is the limit")
        session = Session(client, pool, self._config.max_unacknowledged)
        self._by_id[session.id] = session
        self._counts.sessions = len(self._by_id)
        return session

    def find(self, number: int, client: Client) -> Session:
        """The session of a number. To another client than the one that opened it there is none."""
        session = self._by_id.get(number)
        if session is None or session.client != client.name:
            raise UnknownSessionError
        session.used_at = time.monotonic()
        self._by_id.move_to_end(number)
        return session

    def by_client(self) -> Counter[str]:
        """How many each client has open."""
        return Counter(session.client for session in self._by_id.values())

    def _end_idle(self) -> None:
        since = time.monotonic() - self._config.session_idle
        while self._by_id and next(iter(self._by_id.values())).used_at < since:
            self._by_id.popitem(last=False)
