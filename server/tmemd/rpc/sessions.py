"""Sessions: who has opened which pool, in which epoch, and which exclusive gets await their acknowledgement.

Lives on the event loop: no locks. Ids are random, so that a message to an earlier run of the daemon finds no session,
and numbers of exclusive gets are never given twice, so that a message to one session acknowledges nothing of another.

Where there are too many sessions, one of the client that has the most ends, the longest unused: its client opens the
pool again, and whoever opens session after session ends its own. A session whose mutation is at work in a thread stays:
while it is there a new epoch waits for that mutation, and once it were gone nothing would.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tmemd.base.errors import LimitError, UnknownSessionError

if TYPE_CHECKING:
    from tmemd.config.settings import Config
    from tmemd.security.identity import Client
    from tmemd.store.api import StorePool
    from tmemd.telemetry.counters import Counts

MOST_HELD = 1024
"""Times `max_unacknowledged`, the pages of exclusive gets that await acknowledgement, of all sessions together."""


@dataclass(frozen=True, slots=True)
class ExclusiveGet:
    """The pages of an exclusive get, by index with the stamp of each: still in the pool until acknowledged."""

    oid: bytes
    stamps: dict[int, int]


class UnacknowledgedGets:
    """The exclusive gets of all sessions that await acknowledgement, the oldest first.

    Bounded by pages: beyond that the oldest are forgotten, and their pages stay.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._pages = 0
        self._numbers = itertools.count(secrets.randbits(62) + 1)
        self._by_number: OrderedDict[int, tuple[Session, ExclusiveGet]] = OrderedDict()

    def add(self, session: Session, get: ExclusiveGet) -> int:
        """Note an exclusive get; its number."""
        number = next(self._numbers)
        self._by_number[number] = session, get
        self._pages += len(get.stamps)
        while self._pages > self._most:
            oldest, (holder, _) = next(iter(self._by_number.items()))
            holder.release(oldest)
        return number

    def remove(self, number: int) -> ExclusiveGet:
        """What was noted under a number."""
        _, get = self._by_number.pop(number)
        self._pages -= len(get.stamps)
        return get


class Session:
    """One client's use of a pool."""

    __slots__ = ("_gets", "_most", "_running", "_unacknowledged", "client", "epoch", "id", "pool", "used_at")

    def __init__(self, client: Client, pool: StorePool, most_unacknowledged: int, gets: UnacknowledgedGets) -> None:
        self.id = secrets.randbits(63) or 1
        self.epoch = 1
        self.client = client.name
        self.pool = pool
        self.used_at = time.monotonic()
        self._most = most_unacknowledged
        self._gets = gets
        self._unacknowledged: dict[int, None] = {}
        self._running: set[asyncio.Future[Any]] = set()

    def is_stale(self, epoch: int) -> bool:
        """Whether a mutation of `epoch` came too late."""
        if not 0 < epoch <= self.epoch:
            raise ValueError(f"epoch is {epoch}; the session's newest is {self.epoch}")
        return epoch < self.epoch

    @property
    def busy(self) -> bool:
        """Whether a mutation is at work in a thread."""
        return bool(self._running)

    def track(self, work: asyncio.Future[Any]) -> None:
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

    def await_acknowledgement(self, get: ExclusiveGet) -> int:
        """Note an exclusive get; its number. Where too many wait the oldest is forgotten, and its pages stay."""
        number = self._gets.add(self, get)
        self._unacknowledged[number] = None
        if len(self._unacknowledged) > self._most:
            self.release(next(iter(self._unacknowledged)))
        return number

    def release(self, number: int) -> ExclusiveGet | None:
        """What awaits acknowledgement under a number, now no more."""
        if number not in self._unacknowledged:
            return None
        del self._unacknowledged[number]
        return self._gets.remove(number)

    def end(self) -> None:
        """Nobody acknowledges anything any more."""
        while self._unacknowledged:
            self.release(next(iter(self._unacknowledged)))


class Sessions:
    """All sessions, the longest unused first."""

    def __init__(self, config: Config, counts: Counts) -> None:
        self._config = config
        self._counts = counts
        self._gets = UnacknowledgedGets(config.max_unacknowledged * MOST_HELD)
        self._by_id: OrderedDict[int, Session] = OrderedDict()
        self._of_client: Counter[str] = Counter()

    def reconfigure(self, config: Config) -> None:
        self._config = config

    def open(self, client: Client, pool: StorePool) -> Session:
        self._end_idle()
        if len(self._by_id) >= self._config.max_sessions:
            self._make_room()
        session = Session(client, pool, self._config.max_unacknowledged, self._gets)
        self._by_id[session.id] = session
        self._of_client[client.name] += 1
        self._counts.sessions = len(self._by_id)
        return session

    def find(self, number: int, client: Client) -> Session:
        """The session of a number. To another client than the one that opened it there is none."""
        session = self._by_id.get(number)
        if session is None or session.client != client.name:
            raise UnknownSessionError
        self._use(session)
        return session

    def by_client(self) -> Counter[str]:
        """How many each client has open."""
        return self._of_client.copy()

    def _use(self, session: Session) -> None:
        session.used_at = time.monotonic()
        self._by_id.move_to_end(session.id)

    def _make_room(self) -> None:
        client, _ = self._of_client.most_common(1)[0]
        for session in self._by_id.values():
            if session.client == client and not session.busy:
                self._end(session)
                return
        raise LimitError(f"{len(self._by_id)} sessions are open, which is the limit")

    def _end_idle(self) -> None:
        since = time.monotonic() - self._config.session_idle
        while self._by_id and (session := next(iter(self._by_id.values()))).used_at < since:
            if session.busy:
                self._use(session)
            else:
                self._end(session)

    def _end(self, session: Session) -> None:
        del self._by_id[session.id]
        self._of_client[session.client] -= 1
        if not self._of_client[session.client]:
            del self._of_client[session.client]
        session.end()
