"""Sessions: who has opened which pool, in which epoch, and which exclusive gets are unacknowledged.

Lives on the event loop, without locks. Ids are random, so that a message to an earlier run of the daemon finds no
session; numbers of exclusive gets are never reused, so that no session acknowledges another's.

If there are too many sessions, the client with the most loses its least recently used one: it opens the pool again, and
a client that keeps opening sessions evicts its own. A session with a mutation running in a thread stays, because a new
epoch must wait for that mutation.
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
"""Most unacknowledged pages of all sessions together, as a multiple of `max_unacknowledged`."""


@dataclass(frozen=True, slots=True)
class ExclusiveGet:
    """The pages of an exclusive get, by index with the stamp of each: still in the pool until acknowledged."""

    oid: bytes
    stamps: dict[int, int]


class UnacknowledgedGets:
    """The unacknowledged exclusive gets of all sessions, oldest first.

    Bounded by pages: beyond the limit the oldest are forgotten, and their pages stay.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._pages = 0
        self._numbers = itertools.count(secrets.randbits(62) + 1)
        self._by_number: OrderedDict[int, tuple[Session, ExclusiveGet]] = OrderedDict()

    def add(self, session: Session, get: ExclusiveGet) -> int:
        """Record an exclusive get; returns its number."""
        number = next(self._numbers)
        self._by_number[number] = session, get
        self._pages += len(get.stamps)
        while self._pages > self._most:
            oldest, (holder, _) = next(iter(self._by_number.items()))
            holder.release(oldest)
        return number

    def remove(self, number: int) -> ExclusiveGet:
        """Forget an exclusive get and return it."""
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
        """Whether a mutation of `epoch` is stale."""
        if not 0 < epoch <= self.epoch:
            raise ValueError(f"epoch is {epoch}; the session's newest is {self.epoch}")
        return epoch < self.epoch

    @property
    def busy(self) -> bool:
        """Whether a mutation is running in a thread."""
        return bool(self._running)

    def track(self, work: asyncio.Future[Any]) -> None:
        """Record a mutation running in a thread."""
        self._running.add(work)
        work.add_done_callback(self._running.discard)

    async def new_epoch(self) -> int:
        """Begin an epoch; returns once no mutation of an earlier one is running."""
        self.epoch += 1
        epoch, running = self.epoch, tuple(self._running)
        if running:
            await asyncio.wait(running)
        return epoch

    def await_acknowledgement(self, get: ExclusiveGet) -> int:
        """Record an exclusive get; returns its number. Beyond the limit the oldest is forgotten, and its pages stay."""
        number = self._gets.add(self, get)
        self._unacknowledged[number] = None
        if len(self._unacknowledged) > self._most:
            self.release(next(iter(self._unacknowledged)))
        return number

    def release(self, number: int) -> ExclusiveGet | None:
        """Forget an unacknowledged get and return it, if it is there."""
        if number not in self._unacknowledged:
            return None
        del self._unacknowledged[number]
        return self._gets.remove(number)

    def end(self) -> None:
        """Forget all unacknowledged gets."""
        while self._unacknowledged:
            self.release(next(iter(self._unacknowledged)))


class Sessions:
    """All sessions, least recently used first."""

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
        """The session with this id, if this client opened it."""
        session = self._by_id.get(number)
        if session is None or session.client != client.name:
            raise UnknownSessionError
        self._use(session)
        return session

    def by_client(self) -> Counter[str]:
        """The number of open sessions per client."""
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
