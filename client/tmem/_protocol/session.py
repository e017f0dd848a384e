"""A pool's session with the server: what may be sent again, and what must happen before.

- Reads are sent again at once. A mutation whose fate is unknown leaves the session *doubtful*: before anything else is
  sent the server is asked for a new epoch, after which nothing of the earlier one can land any more.
- A session that the server forgot is opened again, once an operation, by the id of its pool: a pool that was destroyed
  stays gone for its handles, whoever made another of its name.
- Flushes that could not be delivered are *owed* and are delivered before anything else, so that no page which was
  refused or flushed while the server was away can be seen again.

Settling these three is done by one operation at a time; others wait. Used by many threads or tasks at once; the lock
guards fields only and is never held while anything is sent.

An exception from a signal handler may come between any two steps, also of what cleans up after another. So what must
not be forgotten is noted by one step, with no call of Python in between: doubt by adding to a set, the end of settling
by setting a field; and what is owed stays noted until it was delivered. A forked child opens a session of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tmem._model.errors import UnavailableError, UnknownPoolError
from tmem._protocol.connection import backoff
from tmem._protocol.messages import (
    AMBIGUOUS,
    DEADLINE_EXCEEDED,
    NOT_FOUND,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    Failure,
    batch_pages,
    is_stale,
)
from tmem._protocol.operations import Send, Steps, Wait, note
from tmem._runtime import forks
from tmem_proto.v1 import tmem_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from tmem._protocol.connection import ServerState

_T = TypeVar("_T")

MOST_OWED = 1_000_000
_SETTLE_POLL = 0.002


class _Failed(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


@dataclass(slots=True)
class _Operation:
    """What one operation has been through."""

    give_up_at: float
    attempts: int = 0


class Debt:
    """Flushes owed: indices by object; None is the whole object."""

    def __init__(self) -> None:
        self._objects: dict[bytes, set[int] | None] = {}
        self._count = 0
        self.due: tuple[bytes, set[int] | None] | None = None
        """What `take` gave. It is owed until this is None again."""

    def __bool__(self) -> bool:
        return bool(self._objects or self.due)

    def add(self, oid: bytes, indices: Collection[int] | None) -> int:
        """Owe a flush; returns by how much the debt grew. Raises where it would grow without bound."""
        new = len(indices) if indices is not None else 1
        if self._count + new > MOST_OWED:
            raise UnavailableError(f"{self._count} flushes are already pending for the server; no more can be queued")
        held = self._objects.setdefault(oid, set())
        if held is None:
            return 0
        before = len(held)
        if indices is None:
            self._objects[oid] = None
            grown = 1 - before
        else:
            held.update(indices)
            grown = len(held) - before
        self._count += grown
        return max(grown, 0)

    def take(self) -> tuple[bytes, set[int] | None]:
        """One object and what is owed for it, which is now `due`."""
        if self.due is None:
            oid = next(iter(self._objects))
            self.due = oid, self._objects[oid]
            del self._objects[oid]
            self._count -= 1 if self.due[1] is None else len(self.due[1])
        return self.due


class Session:
    """The session of one pool."""

    def __init__(self, server: ServerState, name: str, settings: pb.PoolSettings | None) -> None:
        """Without settings the pool must exist; with them the first opening may create it."""
        self.server = server
        self.name = name
        self.settings = settings or pb.PoolSettings()
        self.batch = self.flush_batch = batch_pages(self.settings.page_size or 4096)
        self.gone = False
        self.pool_id = 0
        """0 until the pool was opened, and with a server that gives none."""
        self._asked = settings
        self._id = 0
        self._epoch = 0
        self._doubts: set[tuple[int, int]] = set()
        self._settler: _Operation | None = None
        self._debt = Debt()
        self._lock = forks.lock()
        forks.register(self)

    def reset_after_fork(self) -> None:
        """In a child that was forked. It owes what the parent does, except pages that may have been put since."""
        self._id, self._settler = 0, None
        self._doubts = set()
        if self.settings.kind == "persistent":
            self._debt = Debt()

    def open(self) -> Steps[None]:
        """Open the pool now, as any call does where that was not done.

        Where there is nothing to send, the one trial of a server that is away is left to the caller.
        """
        with self._lock:
            if self._id and not (self.gone or self._doubtful or self._debt):
                return
        operation = _Operation(self.server.clock() + self.server.options.timeout)
        while True:
            try:
                yield from self._ready(operation)
            except _Failed as failed:
                yield from self._recover(failed.failure, operation)
            else:
                return

    def owe(self, oid: bytes, indices: Collection[int] | None) -> None:
        """Deliver this flush before anything else; None is the whole object."""
        with self._lock:
            grown = self._debt.add(oid, indices)
        self.server.counters.add("owed_flushes", grown)

    @property
    def gives_away(self) -> bool:
        """Whether a get takes the page out of the pool."""
        settings = self.settings
        return settings.kind != "persistent" and not (settings.shared or settings.inclusive)

    def is_other(self, pool_id: int) -> bool:
        """Whether a pool of the name is not this one, where that can be told."""
        return bool(self.pool_id and pool_id) and pool_id != self.pool_id

    def run(
        self, method: str, makers: Sequence[Callable[[], Any]], *, mutation: bool = False, in_order: bool = False
    ) -> Steps[list[Any]]:
        """Make the calls whose requests `makers` make; the replies, in their order. For `in_order` see `Send`."""
        server = self.server
        replies: list[Any] = [None] * len(makers)
        todo = list(range(len(makers)))
        operation = _Operation(server.clock() + server.options.timeout)
        while todo:
            before = len(todo)
            try:
                session = yield from self._ready(operation)
                left = yield from self._round(method, makers, replies, todo, session, mutation, in_order)
            except _Failed as failed:
                if len(todo) < before:
                    operation.give_up_at = server.clock() + server.options.timeout
                yield from self._recover(failed.failure, operation)
            else:
                if left:
                    server.counters.add("retries")
                if len(left) < len(todo):
                    operation.give_up_at = server.clock() + server.options.timeout
                elif server.clock() > operation.give_up_at:
                    raise UnavailableError(f"{server.address}: timed out behind other calls of pool {self.name!r}")
                todo = left
        return replies

    def _round(
        self,
        method: str,
        makers: Sequence[Callable[[], Any]],
        replies: list[Any],
        todo: list[int],
        session: pb.Session,
        mutation: bool,
        in_order: bool,
    ) -> Steps[list[int]]:
        """Send what is to do under this session. Returns what was dropped as stale and is to be sent again."""

        def requests() -> Iterator[Any]:
            for at in todo:
                request = makers[at]()
                request.session.CopyFrom(session)
                yield request

        try:
            answers = yield Send(method, requests(), len(todo) == 1, in_order)
            note(self.server, answers)
            failures = [answer for answer in answers if isinstance(answer, Failure)]
            stale = [at for at, answer in zip(todo, answers, strict=True) if is_stale(answer)]
            if mutation and (stale or any(failure.code in AMBIGUOUS for failure in failures)):
                self._doubts.add((session.id, session.epoch))
        except BaseException:
            # The driver gave up with calls in flight.
            if mutation:
                self._doubts.add((session.id, session.epoch))
            raise
        for at, answer in zip(todo, answers, strict=True):
            if at not in stale and not isinstance(answer, Failure):
                replies[at] = answer
        if failures:
            if any(failure.code == NOT_FOUND for failure in failures):
                self._forget(session)
            todo[:] = [at for at in todo if replies[at] is None]
            raise _Failed(_worst([_busy_is_away(failure) for failure in failures]))
        return stale

    @property
    def _doubtful(self) -> bool:
        """Whether something sent in the present epoch may yet land."""
        return (self._id, self._epoch) in self._doubts

    def _ready(self, operation: _Operation) -> Steps[pb.Session]:
        """The session to send under, with nothing left to settle."""
        while True:
            self.server.admit()
            try:
                with self._lock:
                    if self.gone:
                        raise UnknownPoolError(self.name)
                    if self._id and not (self._settler or self._doubtful or self._debt):
                        return pb.Session(id=self._id, epoch=self._epoch)
                    if self._settler is None:
                        self._settler = operation
                if self._settler is operation:
                    yield from self._settle()
                    continue
            finally:
                if self._settler is operation:
                    self._settler = None
            if self.server.clock() > operation.give_up_at:
                raise UnavailableError(
                    f"{self.server.address}: the session of pool {self.name!r} was not recovered in time"
                )
            yield Wait(_SETTLE_POLL)

    def _settle(self) -> Steps[None]:
        if not self._id:
            yield from self._open()
        if self._doubtful:
            reply = yield from self._one("NewEpoch", pb.NewEpochRequest(session_id=self._id))
            self.server.counters.add("new_epochs")
            with self._lock:
                self._epoch = reply.epoch
                self._doubts.intersection_update({(self._id, self._epoch)})
        while self._debt:
            with self._lock:
                oid, indices = self._debt.take()
            yield from self._pay(oid, indices)
            self._debt.due = None

    def _open(self) -> Steps[None]:
        known = self.settings.kind and self._asked is None
        request = pb.OpenPoolRequest(name=self.name, settings=self._asked, pool_id=self.pool_id)
        try:
            opened = yield from self._one("OpenPool", request)
        except _Failed as failed:
            if failed.failure.code == NOT_FOUND:
                self.gone = True
                raise UnknownPoolError(self.name) from None
            raise
        if self.is_other(opened.pool_id):
            self.gone = True
            raise UnknownPoolError(self.name)
        with self._lock:
            self._asked, self.settings, self.pool_id = None, opened.settings, opened.pool_id
            self.batch = batch_pages(opened.settings.page_size, opened.batch_limit)
            self.flush_batch = opened.flush_limit or self.batch
            self._id, self._epoch = opened.session.id, opened.session.epoch
        if known:
            self.server.counters.add("reopened")

    def _pay(self, oid: bytes, indices: set[int] | None) -> Steps[None]:
        session = pb.Session(id=self._id, epoch=self._epoch)
        if indices is None:
            yield from self._one("FlushObject", pb.FlushObjectRequest(session=session, oid=oid))
            return
        for part in batches(sorted(indices), self.flush_batch):
            yield from self._one("Flush", pb.FlushRequest(session=session, oid=oid, indices=part))

    def _one(self, method: str, request: Any) -> Steps[Any]:
        """One call of those that settle the session; all of them can be made again."""
        try:
            reply = (yield Send(method, (request,), single=True))[0]
            note(self.server, [reply])
        except BaseException:
            self._doubts.add((self._id, self._epoch))
            raise
        if isinstance(reply, Failure):
            if reply.code == NOT_FOUND and method != "OpenPool":
                self._id = 0
            elif method.startswith("Flush") and reply.code in AMBIGUOUS:
                self._doubts.add((self._id, self._epoch))
            raise _Failed(reply)
        if is_stale(reply):
            self._doubts.add((self._id, self._epoch))
            raise _Failed(Failure(UNAVAILABLE, "another operation asked for a new epoch"))
        return reply

    def _recover(self, failure: Failure, operation: _Operation) -> Steps[None]:
        """Wait where the operation may go on; raise where it may not."""
        server = self.server
        operation.attempts += 1
        if failure.code == NOT_FOUND:
            # A session may end again as soon as it is open. Whether the pool is there, only opening it tells.
            if server.clock() > operation.give_up_at:
                raise server.lost(f"sessions of pool {self.name!r} keep ending before they can be used")
        elif failure.code == DEADLINE_EXCEEDED:
            raise server.lost(f"no answer within {server.options.timeout:g} s")
        elif failure.code != UNAVAILABLE:
            raise failure.exception()
        else:
            wait = backoff(operation.attempts)
            # A client that was told to go on tries once more, for a connection that was merely old.
            if server.clock() + wait > operation.give_up_at or (server.forgiving and operation.attempts > 1):
                raise server.lost(failure.details)
            yield Wait(wait)
        server.counters.add("retries")

    def _forget(self, session: pb.Session) -> None:
        with self._lock:
            if self._id == session.id:
                self._id = 0


def batches(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    """The items in their order, at most `size` together."""
    return [items[at : at + size] for at in range(0, len(items), size)]


def _busy_is_away(failure: Failure) -> Failure:
    """A server that is busy has done nothing of a call, and may do it later."""
    return Failure(UNAVAILABLE, failure.details) if failure.code == RESOURCE_EXHAUSTED else failure


def _worst(failures: list[Failure]) -> Failure:
    """The failure to act on: one that ends the operation before one that can be tried again."""
    return min(failures, key=lambda failure: failure.code in (UNAVAILABLE, NOT_FOUND))
